"""Sizes and costs that follow from a config are those of the model itself: counted, and measured by torch."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from kivla.modeling_kivla.action_expert import Prefix
from kivla.modeling_kivla.backbone_attention import PrefixRecorder, find_text_decoder
from kivla.training import model_size
from kivla.training.model_size import ExampleShape
from tests.helpers.families import FAMILIES, make_example

SHAPE = ExampleShape(prompt=30, learned=6, chunk=8, draws=3)


def make_config(name: str, **expert) -> KIVLAConfig:
    expert = {"hidden_size": 32, "intermediate_size": 64} | expert
    return KIVLAConfig(
        vlm_config=FAMILIES[name].config(), expert_config=expert, chunk_size=SHAPE.chunk, state_encoding="none"
    )


@pytest.mark.parametrize("name", ["paligemma", "qwen3_vl_moe", "gemma3n", "llava"])
def test_the_parts_are_the_whole_policy(name):
    config = make_config(name)
    sizes = model_size.part_sizes(model_size.build_without_memory(config))
    whole = sum(parameter.numel() for parameter in KIVLAForActionPrediction(config).parameters())
    assert sum(sizes.values()) == whole
    assert {"vision and sound", "projector", "text layers", "vocabulary", "expert"} == set(sizes)


@pytest.mark.parametrize(("name", "stride"), [("paligemma", 1), ("gemma4", 1), ("kimi_k25", 2), ("lfm2_vl", 1)])
def test_what_is_read_of_a_token_is_what_the_backbone_records(name, stride):
    config = make_config(name, layer_stride=stride)
    vlm = KIVLAForActionPrediction(config).vlm
    example = make_example(FAMILIES[name])
    recorder = PrefixRecorder([layer["layer"] for layer in config.expert_layers])
    del example["expert_attention_mask"], example["labels"]
    with torch.no_grad():
        vlm(**example, use_cache=False, kivla_recorder=recorder)
    tokens = example["input_ids"].shape[1]
    measured = sum(key.nbytes + value.nbytes for key, value in recorder.key_values.values())
    assert measured == 4 * tokens * model_size.key_value_numbers(config)


@pytest.mark.parametrize("name", ["paligemma", "qwen3_vl_moe", "gemma4_moe", "kimi_k25", "aria"])
def test_arithmetic_of_the_text_layers_is_what_torch_counts(name, monkeypatch):
    monkeypatch.setattr(model_size, "STEP_PER_ATTENTION", 3.0)  # written out, attention makes no scores again
    vlm_config = FAMILIES[name].config()
    vlm_config.get_text_config()._experts_implementation = "eager"  # the counter does not know grouped products
    vlm = AutoModelForImageTextToText.from_config(vlm_config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        ids = torch.randint(10, 200, (1, SHAPE.prompt + SHAPE.learned))
        hidden = find_text_decoder(vlm)(input_ids=ids, use_cache=False).last_hidden_state
        vlm.get_output_embeddings()(hidden[:, -SHAPE.learned :]).sum().backward()
    counted = counter.get_total_flops() / 2  # a multiplication and an addition each
    model = model_size.build_without_memory(make_config(name))
    assert model_size.decoder_products(model, SHAPE) == pytest.approx(counted, rel=0.02)


def test_arithmetic_of_the_expert_is_what_torch_counts(monkeypatch):
    monkeypatch.setattr(model_size, "STEP_PER_ATTENTION", 3.0)
    config = make_config("paligemma")
    expert = KIVLAForActionPrediction(config).expert
    key_values = [
        tuple(
            torch.randn(SHAPE.draws, layer["num_key_value_heads"], SHAPE.prompt, layer[size], requires_grad=True)
            for size in ("key_dim", "value_dim")
        )
        for layer in config.expert_layers
    ]
    inv_freq = {layer["inv_freq"]: torch.ones(layer["key_dim"] // 2) for layer in config.expert_layers}
    prefix = Prefix(key_values, None, torch.full((SHAPE.draws,), SHAPE.prompt), inv_freq)
    actions = torch.randn(SHAPE.draws, SHAPE.chunk, config.max_action_dim, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        time = expert.time_condition(torch.rand(SHAPE.draws), ahead=False)
        expert(actions, time, prefix, expert.suffix_layout(prefix, SHAPE.chunk)).sum().backward()
    assert model_size.expert_products(expert, SHAPE) == pytest.approx(counter.get_total_flops() / 2, rel=0.02)


def test_a_suggested_expert_keeps_to_its_budget_and_the_next_wider_one_does_not():
    config = make_config("paligemma")
    size, step = 20.0, 15.0  # shares of a VLM that is smaller than any expert
    one = model_size.suggest_expert(config, SHAPE, size, step)
    assert one is not None
    for width, fits in ((one.hidden_size, True), (one.hidden_size + 64, False)):
        expert = {"hidden_size": width, "intermediate_size": 4 * width, "layer_stride": one.layer_stride}
        model = model_size.build_without_memory(make_config("paligemma", **expert))
        of_size, of_step = model_size.expert_shares(model, SHAPE)
        assert (of_size <= size and of_step <= step) == fits
        if fits:
            assert (one.parameter_share, one.step_share) == pytest.approx((of_size, of_step))


def test_layers_are_skipped_only_where_the_expert_would_be_narrow_otherwise():
    # Shares by which the narrowest expert is too large with all four layers, and fits with every second one.
    config = make_config("paligemma")
    narrow = model_size.expert_shares(
        model_size.build_without_memory(make_config("paligemma", hidden_size=128, intermediate_size=512)), SHAPE
    )
    one = model_size.suggest_expert(config, SHAPE, narrow[0] * 0.7, narrow[1] * 0.7)
    assert one is not None and one.layer_stride == 2
    assert model_size.suggest_expert(config, SHAPE, 1e-3, 1e-3) is None


def test_more_draws_cost_the_expert_more_and_the_text_layers_nothing():
    model = model_size.build_without_memory(make_config("llava"))
    more = replace(SHAPE, draws=6)
    assert model_size.expert_products(model.expert, more) == 2 * model_size.expert_products(model.expert, SHAPE)
    assert model_size.decoder_products(model, more) == model_size.decoder_products(model, SHAPE)


def test_an_expert_is_suggested_for_a_decoder_without_rotary_embedding_too():
    config = make_config("blip-2")
    assert not any(layer["rope"] for layer in config.kv_layers)
    assert model_size.suggest_expert(config, SHAPE, 1e3, 1e3) is not None

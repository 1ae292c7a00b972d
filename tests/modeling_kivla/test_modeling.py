"""The model beyond the contract: configuration, probing, options, precision, and what is refused."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction, UnsupportedBackboneError
from kivla.modeling_kivla.action_expert import Modulation
from kivla.modeling_kivla.backbone_attention import PrefixRecorder, apply_rope, find_text_decoder
from kivla.modeling_kivla.flow_matching import euler_times, flow_matching_loss, sample_flow_time, time_embedding
from kivla.modeling_kivla.real_time_chunking import RealTimeChunking
from kivla.modeling_kivla.vlm_pass import rotary_frequencies
from tests.helpers.families import (
    FAMILIES,
    REFUSED,
    collate,
    drop_suffix,
    each_family,
    make_example,
    randomize_zero_parameters,
)
from tests.helpers.families.absolute import ABSOLUTE
from tests.helpers.tolerance import assert_close_relative, assert_gradients_close

CHUNK, WIDTH, STATE = 5, 3, 4
EXPERT = {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2}


def make_config(name="llava", **settings) -> KIVLAConfig:
    sizes = {"chunk_size": CHUNK, "max_action_dim": WIDTH, "max_state_dim": STATE}
    expert = {**EXPERT, **settings.pop("expert_config", {})}
    return KIVLAConfig(vlm_config=FAMILIES[name].config(), expert_config=expert, **{**sizes, **settings})


def make_model(name="llava", **settings) -> KIVLAForActionPrediction:
    torch.manual_seed(0)
    model = KIVLAForActionPrediction(make_config(name, **settings)).eval()
    randomize_zero_parameters(model)
    return model


def make_batch(name="llava", rows=2, **extra) -> dict:
    family = FAMILIES[name]
    batch = collate(family, [make_example(family, text_length=4 + i, seed=i) for i in range(rows)])
    generator = torch.Generator().manual_seed(3)
    batch["actions"] = torch.randn(rows, CHUNK, WIDTH, generator=generator)
    return {**batch, **extra}


# ------------------------------------------------------------------------------------------------ configuration
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"num_flow_samples": 0}, "num_flow_samples must be at least 1"),
        ({"backbone_gradient_scale": 1.5}, "between 0 .knowledge insulation. and 1 .joint training., got 1.5"),
        ({"backbone_gradient_scale": float("nan")}, "backbone_gradient_scale must be between"),
        ({"flow_loss_weight": -1.0}, "flow_loss_weight must not be negative"),
        ({"state_encoding": "continuous", "max_state_dim": 0}, "needs max_state_dim of at least 1"),
        ({"time_sampling_offset": 0.5}, r"Flow times must lie in \[0, 1\]"),
        ({"time_sampling_alpha": 0.0}, "positive parameters"),
        ({"expert_config": {"hidden_size": 33}}, "must be a positive even number"),
        ({"expert_config": {"layer_stride": 0}}, "layer_stride must be at least 1"),
        ({"expert_config": {"layer_stride": 99}}, "leaves next to nothing to read"),
        ({"expert_config": {"num_attention_heads": 3}}, "not a multiple of the 2 key/value heads of backbone layer 0"),
        ({"expert_config": {"min_period": 5.0}}, "0 < min_period < max_period"),
        ({"state_encoding": "telepathy"}, "state_encoding"),
    ],
)
def test_impossible_settings_are_refused_at_construction(settings, message):
    with pytest.raises(Exception, match=message):
        make_config(**settings)


def test_config_without_a_vlm():
    with pytest.raises(ValueError, match="needs `vlm_config`"):
        KIVLAConfig()
    with pytest.raises(ValueError, match="without `model_type`"):
        KIVLAConfig(vlm_config={"hidden_size": 3})


@pytest.mark.parametrize("name", REFUSED)
def test_a_vlm_that_cannot_work_is_refused_by_name(name):
    refused = REFUSED[name]
    with pytest.raises(UnsupportedBackboneError) as error:
        KIVLAConfig(vlm_config=refused.config())
    message = str(error.value)
    assert f"'{refused.config().model_type}'" in message and refused.reason in message
    assert len(message) > 80, f"nothing to do is named: {message}"


def test_config_round_trip(tmp_path):
    config = make_config("gemma3", backbone_gradient_scale=0.25, state_encoding="none")
    config.save_pretrained(tmp_path)
    loaded = KIVLAConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert type(loaded.vlm_config) is type(config.vlm_config)


def test_probing_allocates_no_weights():
    """A 72B VLM is measured in a moment, on any machine."""
    config = AutoConfig.for_model("qwen2_vl")  # the defaults are those of Qwen2-VL-72B
    layers = KIVLAConfig(vlm_config=config).kv_layers
    assert len(layers) == 80
    assert layers[0]["num_key_value_heads"] == 8 and layers[0]["key_dim"] == 128 and layers[0]["rope"] == "half"


def test_probing_does_not_ask_for_the_default_device():
    """`with torch.device("cuda")`, a model is built on the GPU at once."""
    with torch.device("meta"):
        config = KIVLAConfig(vlm_config=FAMILIES["llava"].config())
    assert config.kv_layers == KIVLAConfig(vlm_config=FAMILIES["llava"].config()).kv_layers


@each_family
def test_probed_rotary_embedding_is_the_backbones(name):
    """With real weights and at a far position too: the recorded keys turn exactly as the config says."""
    model = make_model(name)
    decoder = find_text_decoder(model.vlm)
    for layer in model.config.kv_layers:  # a scale that is learned is none at first
        if scale := layer.get("inv_freq_scale"):
            module, _, tensor = scale.rpartition(".")
            torch.nn.init.uniform_(getattr(decoder.get_submodule(module), tensor))
    layers = {layer["layer"]: layer for layer in model.config.kv_layers}
    recorder = PrefixRecorder(list(layers))
    positions = torch.tensor([[0], [37]])
    with torch.no_grad():
        decoder(input_ids=torch.full((2, 1), 20), position_ids=positions, use_cache=False, kivla_recorder=recorder)
    assert set(recorder.key_values) == set(layers)
    for index, layer in layers.items():
        key, value = recorder.key_values[index]
        assert key.shape[1:] == (layer["num_key_value_heads"], 1, layer["key_dim"])
        assert value.shape[-1] == layer["value_dim"]
        expected = key[0]
        if layer["rope"] is not None:
            angles = 37 * rotary_frequencies(decoder, [layer])[layer["inv_freq"]][layer["rope_order"] or slice(None)]
            expected = apply_rope(key[0], angles.cos(), angles.sin(), layer["rope"], layer["rope_start"])
            assert not torch.allclose(key[0], key[1], atol=1e-3), "position does not matter?"
        if FAMILIES[name] in ABSOLUTE:
            continue  # positions were added to the tokens, and are in keys of any kind
        assert_close_relative(key[1], expected, what=f"keys of layer {index}")


# ------------------------------------------------------------------------------------------------------ options
def test_noise_draws_equal_separate_passes():
    """One backbone pass for N draws gives what N passes with one draw each give, gradients included."""
    n = 3
    many = make_model(num_flow_samples=n, backbone_gradient_scale=1.0)
    one = copy.deepcopy(many)
    one.config.num_flow_samples = 1
    batch = make_batch()
    noise, time = torch.randn(n * 2, CHUNK, WIDTH), torch.rand(n * 2)
    out = many(**batch, noise=noise, timestep=time)
    out.flow_loss.backward()
    total = 0.0
    for i in range(n):
        rows = slice(2 * i, 2 * i + 2)
        single = one(**batch, noise=noise[rows], timestep=time[rows])
        assert_close_relative(single.velocity, out.velocity[rows], what="velocity")
        total = total + single.flow_loss / n
    total.backward()
    assert_close_relative(total, out.flow_loss, what="flow loss")
    found, expected = ({n: p.grad for n, p in model.named_parameters()} for model in (many, one))
    assert_gradients_close(found, expected)


def test_padding_never_enters():
    """Padded dimensions and steps change neither loss nor velocity of the real ones."""
    model, batch = make_model(), make_batch()
    mask = torch.ones(2, CHUNK, WIDTH, dtype=torch.bool)
    mask[:, :, -1] = False
    mask[1, -2:] = False
    noise, time = torch.randn(2, CHUNK, WIDTH), torch.rand(2)
    with torch.no_grad():
        out = model(**batch, action_mask=mask, noise=noise, timestep=time)
        changed_noise = noise + 5.0 * ~mask.any(1, keepdim=True)
        again = model(**batch, action_mask=mask, noise=changed_noise, timestep=time)
        assert torch.equal(out.flow_loss, again.flow_loss)
        target = noise - batch["actions"]
        expected = (out.velocity - target)[mask].square().mean()
        assert_close_relative(out.flow_loss, expected, what="flow loss")
        chunk = model.sample_actions(**drop_suffix(make_example(FAMILIES["llava"])), action_mask=mask[:1])
    assert (chunk[..., -1] == 0).all() and (chunk[..., :-1] != 0).all()


@pytest.mark.parametrize("conditioning", ["adarms", "concat"])
@pytest.mark.parametrize("state_encoding", ["text", "continuous", "none"])
def test_state_and_time(conditioning, state_encoding):
    model = make_model(state_encoding=state_encoding, expert_config={"time_conditioning": conditioning})
    batch = make_batch()
    noise, time = torch.randn(2, CHUNK, WIDTH), torch.tensor([0.2, 0.8])
    draws = {"noise": noise, "timestep": time}
    states = [{}, {}]
    if state_encoding == "continuous":
        states = [{"state": torch.randn(2, STATE)}, {"state": torch.randn(2, STATE)}]
    with torch.no_grad():
        first, second = (model(**batch, **draws, **state).velocity for state in states)
        other_time = model(**batch, noise=noise, timestep=1 - time, **states[0]).velocity
    assert torch.equal(first, second) == (state_encoding != "continuous")
    assert not torch.allclose(first, other_time, atol=1e-4), "flow time is ignored"
    if state_encoding == "continuous":
        with pytest.raises(ValueError, match=r"needs `state` of shape \(2, 4\), got none"):
            model(**batch, **draws)
    else:
        with pytest.raises(ValueError, match="the expert has no state token"):
            model(**batch, **draws, state=torch.zeros(2, STATE))


def test_every_other_layer():
    model = make_model(expert_config={"layer_stride": 2})
    layers = [layer["layer"] for layer in model.config.expert_layers]
    assert layers[-1] == model.config.kv_layers[-1]["layer"] and len(model.expert.layers) == len(layers)
    assert layers == [layer["layer"] for layer in model.config.kv_layers][::-1][::2][::-1]
    assert model(**make_batch()).flow_loss.isfinite()


def test_insulated_batch_without_labels_builds_no_backbone_graph():
    model = make_model().train()
    batch = {k: v for k, v in make_batch().items() if k != "labels"}
    built = []
    for parameter in model.vlm.parameters():
        parameter.register_hook(lambda g: built.append(g))
    seen = []
    find_text_decoder(model.vlm).register_forward_hook(lambda m, i, o: seen.append(o.last_hidden_state.requires_grad))
    out = model(**batch)
    out.loss.backward()
    assert seen == [False], "the backbone built a graph that nobody needs"
    assert not built and out.token_loss is None and out.logits is None


def test_logits_of_the_whole_sequence_are_never_made():
    model, batch = make_model(), make_batch()
    supervised = int((batch["labels"] != -100).sum())
    vocabulary = model.config.get_text_config().vocab_size
    with torch.no_grad():
        out = model(**batch)
    assert out.logits.shape == (supervised, vocabulary)
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    model(**batch)
    model.sample_actions(**drop_suffix(make_example(FAMILIES["llava"])), num_steps=1)
    assert shapes == [(1, supervised, vocabulary), (1, 0, vocabulary)]


def test_denominators_from_outside():
    """A trainer divides by the counts of the whole step: two half batches then add up to the whole one."""
    model, batch = make_model(), make_batch()
    noise, time = torch.randn(2, CHUNK, WIDTH), torch.rand(2)
    with torch.no_grad():
        whole = model(**batch, noise=noise, timestep=time)
        tokens, values = (batch["labels"] != -100).sum(), batch["actions"].numel()
        halves = []
        for i in range(2):
            half = {k: v[i : i + 1] for k, v in batch.items()}
            counts = {"num_supervised_tokens": tokens, "num_supervised_actions": values}
            halves.append(model(**half, noise=noise[i : i + 1], timestep=time[i : i + 1], **counts))
    assert_close_relative(sum(h.loss for h in halves), whole.loss, what="loss")


# ---------------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("name", ["paligemma", "qwen3_vl", "gemma3"])
def test_bfloat16_autocast_keeps_losses_in_float32(name):
    model, batch = make_model(name), make_batch(name)
    draws = {"noise": torch.randn(2, CHUNK, WIDTH), "timestep": torch.rand(2)}
    full = model(**batch, **draws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**batch, **draws)
    mixed.loss.backward()
    assert mixed.token_loss.dtype == mixed.flow_loss.dtype == mixed.velocity.dtype == torch.float32
    for name in ("token_loss", "flow_loss"):  # of values that are bfloat16 on their way
        assert_close_relative(mixed[name], full[name], roundings=8, dtype=torch.bfloat16, what=name)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("name", ["paligemma", "qwen3_vl", "gemma3"])
def test_attention_is_float32_where_a_cpu_computes_in_bfloat16(name, how, monkeypatch):
    """Layers compute in bf16, and what the expert reads is bf16; queries meet keys in float32, the expert's too."""
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def note(query, key, value, *args, **kwargs):
        seen.append((query.dtype, key.dtype, value.dtype, torch.is_autocast_enabled("cpu")))
        return attend(query, key, value, *args, **kwargs)

    model, batch = make_model(name), make_batch(name)
    if how == "weights":
        model.to(torch.bfloat16)
    example, layers = drop_suffix(make_example(FAMILIES[name])), len(model.config.expert_layers)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
    in_float32 = (torch.float32, torch.float32, torch.float32, False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        prefix = model.encode_prefix(**example)
        assert seen.count(in_float32) == layers
        model.sample_actions(prefix=prefix, num_steps=2)
        assert seen.count(in_float32) == 3 * layers
        seen.clear()
        model.train()(**batch).loss.backward()
    assert seen.count(in_float32) == 2 * layers
    types = {x.dtype for pair in prefix.key_values for x in pair}
    assert types == {torch.bfloat16} or (how == "autocast" and types <= {torch.bfloat16, torch.float32})
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in model.expert.parameters())


def test_a_bias_for_each_position_may_be_bfloat16_beside_float32_keys():
    """As autocast of a GPU has it (Inkling): the mask is the keys' lowest number, written into the bias."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 16, generator=generator)
    bias = torch.randn(2, 4, 6, 6, generator=generator)
    mask = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6)
    attention, layer = ALL_ATTENTION_FUNCTIONS["kivla_sdpa"], torch.nn.Identity()
    expected, _ = attention(layer, query, key, value, mask, position_bias=bias)
    found, _ = attention(layer, query, key, value, mask, position_bias=bias.bfloat16())
    assert_close_relative(found, expected, 8, what="attention")


@pytest.mark.parametrize("settings", [{}, {"state_encoding": "continuous"}, {"rtc_max_delay": 2}], ids=str)
@pytest.mark.parametrize("name", ["paligemma", "qwen3_vl", "gemma3"])
def test_bfloat16_weights_act_as_their_float32_does(name, settings):
    """The same weights, computed with in both types."""
    half = make_model(name, **settings).to(torch.bfloat16)
    full = copy.deepcopy(half).float()
    out = half(**make_batch(name, **({"state": torch.randn(2, STATE)} if "state_encoding" in settings else {})))
    assert out.loss.dtype == out.velocity.dtype == torch.float32 and out.loss.isfinite()
    example = drop_suffix(make_example(FAMILIES[name])) | {"noise": torch.randn(1, CHUNK, WIDTH)}
    if "state_encoding" in settings:
        example["state"] = torch.randn(1, STATE)
    if "rtc_max_delay" in settings:
        example["rtc"] = RealTimeChunking(torch.randn(1, CHUNK, WIDTH), torch.tensor([3]), torch.tensor([2]), "trained")
    chunk, expected = half.sample_actions(**example), full.sample_actions(**example)
    assert chunk.dtype == torch.float32
    assert_close_relative(chunk, expected, roundings=8, dtype=torch.bfloat16, what="actions")


def test_the_state_of_the_integration_is_float32_with_bfloat16_weights(monkeypatch):
    """Many small steps add up: in bfloat16 those below a 256th of the actions would be lost."""
    model, steps = make_model("paligemma").to(torch.bfloat16), 1024
    monkeypatch.setattr(model.expert, "forward", lambda x, **_: torch.full_like(x, 0.5))
    noise = torch.full((1, CHUNK, WIDTH), 3.0)
    chunk = model.sample_actions(**drop_suffix(make_example(FAMILIES["paligemma"])), noise=noise, num_steps=steps)
    assert_close_relative(chunk, torch.full_like(noise, 2.5), what="actions")


# ----------------------------------------------------------------------------------------------------- sampling
def test_sampling_is_euler_integration():
    """Against the definition: x ← x - v / n from t = 1, with the velocities that `forward` gives."""
    model, n = make_model(), 4
    example = drop_suffix(make_example(FAMILIES["llava"]))
    x = torch.randn(1, CHUNK, WIDTH)
    chunk = model.sample_actions(**example, noise=x, num_steps=n)
    for step in range(n):
        t = 1 - step / n
        # forward mixes noise and actions itself; with equal ones the mixture is x
        with torch.no_grad():
            x = x - model(**example, actions=x, noise=x, timestep=torch.tensor([t])).velocity / n
    assert_close_relative(chunk, x, what="actions")


def test_sampling_with_a_generator_is_repeatable():
    model, example = make_model(), drop_suffix(make_example(FAMILIES["llava"]))
    chunks = [model.sample_actions(**example, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(chunks[0], chunks[1]) and not torch.equal(chunks[0], chunks[2])


def test_suffix_in_the_batch_does_not_change_sampled_actions():
    """Evaluation may sample from a training batch: the expert does not see the answer."""
    model, family = make_model("paligemma"), FAMILIES["paligemma"]
    example = make_example(family)
    noise = torch.randn(1, CHUNK, WIDTH)
    with_answer = {k: v for k, v in example.items() if k != "labels"}
    a = model.sample_actions(**with_answer, noise=noise)
    b = model.sample_actions(**drop_suffix(example), noise=noise)
    assert_close_relative(a, b, what="actions")


# ---------------------------------------------------------------------------------------------------- bad input
def test_bad_input_is_refused_with_a_reason():
    model, batch = make_model(), make_batch()

    def check(message, **changes):
        with pytest.raises(ValueError, match=message):
            model(**{**batch, **changes})

    check(r"must be \(batch, chunk_size, max_action_dim\) = \(2, 5, 3\), got \(2, 4, 3\)", actions=torch.zeros(2, 4, 3))
    check("`action_mask` must have the shape of `actions`", action_mask=torch.ones(2, 5, dtype=torch.bool))
    check("`expert_attention_mask` must be", expert_attention_mask=None)
    check("Token id 999 is unknown: the VLM's embedding has 256 rows", input_ids=batch["input_ids"] * 0 + 999)
    check("hides the whole prompt", expert_attention_mask=torch.zeros_like(batch["input_ids"]).bool())
    check("num_flow_samples = 1 draws", noise=torch.zeros(4, CHUNK, WIDTH))
    check(
        "nothing to learn",
        labels=torch.full_like(batch["labels"], -100),
        action_mask=torch.zeros(2, CHUNK, WIDTH, dtype=torch.bool),
    )
    example = drop_suffix(make_example(FAMILIES["llava"]))
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        model.sample_actions(**example, num_steps=0)
    with pytest.raises(ValueError, match=r"`noise` must be .*\(1, 5, 3\)"):
        model.sample_actions(**example, noise=torch.zeros(1, 4, 3))


def test_paligemma_without_token_types_is_refused():
    """Without them the whole sequence would be bidirectional and the answer would leak into the prompt."""
    batch = make_batch("paligemma")
    del batch["token_type_ids"]
    with pytest.raises(ValueError, match="needs `token_type_ids`"):
        make_model("paligemma")(**batch)


def test_reentrant_checkpointing_is_refused_unless_insulated():
    options = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
    make_model().gradient_checkpointing_enable(**options)
    with pytest.raises(ValueError, match="would silently drop the expert's gradient"):
        make_model(backbone_gradient_scale=1.0).gradient_checkpointing_enable(**options)


def test_text_only_model_is_refused_before_loading(tmp_path):
    AutoConfig.for_model("llama", num_hidden_layers=2).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedBackboneError, match="'llama' is not a vision-language model"):
        KIVLAForActionPrediction.from_vlm(tmp_path)


# ------------------------------------------------------------------------------------------------- whole models
def test_new_tokens(tmp_path):
    model = make_model("paligemma")
    model.resize_token_embeddings(300)
    assert model.config.get_text_config().vocab_size == 300
    model.save_pretrained(tmp_path)
    loaded = KIVLAForActionPrediction.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().weight.shape[0] == 300
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_generation_config_travels_with_the_model(tmp_path):
    model = make_model()
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    loaded = KIVLAForActionPrediction.from_pretrained(tmp_path)
    example = drop_suffix(make_example(FAMILIES["llava"]))
    assert loaded.generate(**example, do_sample=False).shape[1] == example["input_ids"].shape[1] + 3


def test_a_new_process_gives_the_same_from_the_same_files(tmp_path):
    """Weights bit for bit; outputs within rounding, as for any model that was loaded."""
    model, batch = make_model("qwen3_vl"), make_batch("qwen3_vl")
    batch |= {"noise": torch.randn(2, CHUNK, WIDTH), "timestep": torch.rand(2)}
    model.save_pretrained(tmp_path / "model")
    torch.save(batch, tmp_path / "batch.pt")
    script = (
        "import sys, torch; from kivla import KIVLAForActionPrediction;"
        "m = KIVLAForActionPrediction.from_pretrained(sys.argv[1] + '/model').eval();"
        "b = torch.load(sys.argv[1] + '/batch.pt');"
        "o = m(**b); torch.save((m.state_dict(), o.logits, o.velocity), sys.argv[1] + '/out.pt')"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=root, capture_output=True)
    weights, logits, velocity = torch.load(tmp_path / "out.pt")
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    with torch.no_grad():
        out = model(**batch)
    assert_close_relative(logits, out.logits, what="logits")
    assert_close_relative(velocity, out.velocity, what="velocity")


# ------------------------------------------------------------------------------------------------ pure functions
def test_flow_time_distribution():
    torch.manual_seed(0)
    t = sample_flow_time(20_000, 1.5, 1.0, 0.999, 0.001, torch.device("cpu"))
    assert t.dtype == torch.float32 and t.min() >= 0.001 and t.max() <= 1.0
    # Beta(a, 1) has the distribution function x^a: compare quantiles.
    for q in (0.1, 0.5, 0.9):
        assert t.quantile(q).item() == pytest.approx(0.001 + 0.999 * q ** (1 / 1.5), abs=0.01)


def test_time_embedding_by_hand():
    embedding = time_embedding(torch.tensor([0.25]), 4, 4e-3, 4.0)
    angles = [2 * torch.pi * 0.25 / 4e-3, 2 * torch.pi * 0.25 / 4.0]
    expected = torch.tensor([angles], dtype=torch.float64)
    expected = torch.cat([expected.sin(), expected.cos()], -1).float()
    assert_close_relative(embedding, expected, what="embedding")


def test_flow_loss_is_the_mean_over_real_values():
    velocity, target = torch.tensor([[[1.0, 9.0], [3.0, 9.0]]]), torch.zeros(1, 2, 2)
    mask = torch.tensor([[[True, False], [True, False]]])
    assert flow_matching_loss(velocity, target, mask).item() == 5.0
    assert flow_matching_loss(velocity, target, mask, num_supervised=10).item() == 1.0
    velocity[~mask] = float("nan")
    assert flow_matching_loss(velocity, target, mask).item() == 5.0, "padding reaches the loss"


def test_euler_times():
    assert euler_times(4, torch.device("cpu")).tolist() == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("name", ["paligemma", "qwen3_vl"])
def test_another_attention_implementation_is_recorded_too(name, tmp_path):
    model, batch = make_model(name), make_batch(name)
    draws = {"noise": torch.randn(2, CHUNK, WIDTH), "timestep": torch.rand(2)}
    model.save_pretrained(tmp_path)
    eager = KIVLAForActionPrediction.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert find_text_decoder(eager.vlm).config._attn_implementation == "kivla_eager"
    with torch.no_grad():
        expected = model(**batch, **draws)
        outputs = [eager(**batch, **draws)]
        model.set_attn_implementation("eager")
        outputs.append(model(**batch, **draws))
        model.set_attn_implementation("sdpa")
        outputs.append(model(**batch, **draws))
    for out in outputs:
        assert_close_relative(out.velocity, expected.velocity, what="velocity")
        assert_close_relative(out.logits, expected.logits, what="logits")


@pytest.mark.parametrize("route", ["config", "from_vlm", "meta device"])
def test_adaptive_norms_start_as_the_identity(route, tmp_path):
    """openpi's rule: scale, shift and gate are zero before the first step, whichever way the model is made."""
    config = make_config()
    if route == "from_vlm":
        AutoModelForImageTextToText.from_config(config.vlm_config).save_pretrained(tmp_path)
        model = KIVLAForActionPrediction.from_vlm(tmp_path, expert_config=EXPERT)
    elif route == "config":
        model = KIVLAForActionPrediction(config)
    else:
        with torch.device("meta"):
            model = KIVLAForActionPrediction(config)
        model.to_empty(device="cpu")
        model.expert.apply(lambda module: [p.data.fill_(float("nan")) for p in module.parameters(recurse=False)])
        model.init_weights()
    norms = {name: module for name, module in model.expert.named_modules() if isinstance(module, Modulation)}
    assert len(norms) == 2 * len(model.expert.layers) + 1
    for name, module in norms.items():
        assert not module.weight.any() and not module.bias.any(), f"{name} does not start at zero"
    for scale, shift, gate in model.expert.time_condition(torch.tensor([0.1, 0.9])).modulations:
        assert (scale == 1).all() and (shift == 0).all() and (gate == 0).all()

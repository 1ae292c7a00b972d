"""LoRA for three kinds of backbones: insulated, saved, loaded on a fresh base, merged."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import TorchAoConfig

from kivla import KIVLAForActionPrediction
from kivla.training.lora import lora_config
from tests.processing.test_processing_kivla import CHUNK, LONG, SHORT, WIDTH, columns, make, observation, policy
from tests.tolerance import assert_close_relative

FAMILIES = ("paligemma", "qwen2_5_vl", "smolvlm")  # bidirectional prompt; M-RoPE; chat template
DRAWS = {"noise": torch.randn(2, CHUNK, WIDTH + 1, generator=torch.Generator().manual_seed(0))}
DRAWS["timestep"] = torch.tensor([0.3, 0.8])


def with_lora(name):
    base, processor = copy.deepcopy(policy(name)), make(name)
    base.resize_token_embeddings(processor.vocab_size)
    fresh = copy.deepcopy(base)
    torch.manual_seed(0)
    return get_peft_model(base, lora_config(base, processor, rank=4)), fresh, processor


@pytest.mark.parametrize("name", FAMILIES)
def test_the_flow_loss_reaches_the_expert_alone(name):
    model, _, processor = with_lora(name)
    batch = processor(**columns(LONG, SHORT))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if "expert" not in name.split(".")}
    assert adapters and any("lora_A" in name for name in adapters)
    model(**batch, **DRAWS).flow_loss.backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in adapters:
            assert parameter.grad is None, f"the flow loss reaches {parameter_name}"
    assert all(parameter.grad is not None for n, parameter in model.named_parameters() if n in trained - adapters)
    model.zero_grad()
    model(**batch, **DRAWS).token_loss.backward()
    assert any(parameter.grad is not None for n, parameter in model.named_parameters() if n in adapters)
    assert all(parameter.grad is None for n, parameter in model.named_parameters() if n not in adapters)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_loaded_and_merged_it_is_the_same(name, tmp_path):
    model, fresh, processor = with_lora(name)
    batch = processor(**columns(LONG, SHORT))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    before = model(**batch, **DRAWS).loss.item()
    for _ in range(4):
        optimizer.zero_grad()
        model(**batch, **DRAWS).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = model(**batch, **DRAWS)
    assert expected.loss.item() < before, "nothing was learned"
    inputs = processor(**columns(observation(LONG), observation(SHORT)))
    chunk = model.sample_actions(**inputs, noise=DRAWS["noise"], num_steps=3)

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    with torch.no_grad():
        again = loaded(**batch, **DRAWS)
    weights = dict(loaded.named_parameters())
    assert all(torch.equal(weights[n], weight) for n, weight in model.named_parameters())
    assert_close_relative(again.logits, expected.logits, what="logits")
    assert_close_relative(again.velocity, expected.velocity, what="velocity")
    actions = loaded.sample_actions(**inputs, noise=DRAWS["noise"], num_steps=3)
    assert_close_relative(actions, chunk, what="actions")

    # Merged, sums come in another order: compared in float64, where that leaves next to nothing.
    def outputs(model):
        precise = [{**given, "pixel_values": given["pixel_values"].double()} for given in (batch, inputs)]
        with torch.no_grad():
            out = model(**precise[0], **DRAWS)
        return out.logits, out.velocity, model.sample_actions(**precise[1], noise=DRAWS["noise"], num_steps=3)

    wanted = outputs(model.double())
    found = outputs(model.merge_and_unload())
    for what, a, b in zip(("logits", "velocity", "actions"), found, wanted, strict=True):
        error = ((a - b).norm() / b.norm()).item()
        assert error <= 1e-6, f"{what}: relative error {error:.1e}"


def test_a_model_without_room_for_action_tokens_is_refused():
    processor = make("paligemma")
    model = copy.deepcopy(policy("paligemma"))
    model.resize_token_embeddings(processor.vocab_size - 1)
    with pytest.raises(ValueError, match="but the processor's vocabulary is"):
        lora_config(model, processor)


def test_a_quantised_backbone_learns_through_lora(tmp_path):
    """QLoRA: int8 weights, float updates; insulated, and the same when the updates are loaded on a fresh base."""
    torchao = pytest.importorskip("torchao.quantization")
    processor = make()
    policy("paligemma").vlm.save_pretrained(tmp_path / "vlm")

    def quantised():
        torch.manual_seed(0)
        sizes = {name: getattr(processor, name) for name in ("chunk_size", "max_action_dim", "max_state_dim")}
        model = KIVLAForActionPrediction.from_vlm(
            tmp_path / "vlm",
            quantization_config=TorchAoConfig(torchao.Int8WeightOnlyConfig()),
            expert_config={"hidden_size": 32, "intermediate_size": 48},
            **sizes,
        )
        model.resize_token_embeddings(processor.vocab_size)
        return model

    base = quantised()
    attention = base.get_decoder().layers[0].self_attn
    assert type(attention.q_proj.weight.data).__name__ == "Int8Tensor", "the backbone is not quantised"
    assert type(base.expert.layers[0].self_attn.q_proj.weight.data) is torch.Tensor, "the expert is"
    model = get_peft_model(base, lora_config(base, processor, rank=4))
    batch = processor(**columns(LONG, SHORT))
    model(**batch, **DRAWS).flow_loss.backward()
    assert not [n for n, p in model.named_parameters() if "lora_" in n and p.grad is not None], "not insulated"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**batch, **DRAWS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0], losses
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(quantised(), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = model.eval()(**batch, **DRAWS).velocity
        assert_close_relative(loaded(**batch, **DRAWS).velocity, expected, what="velocity")

"""LoRA for three kinds of backbones: insulated, saved, loaded on a fresh base, merged."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

from kivla.training.lora import lora_config
from tests.processing.test_processing_kivla import CHUNK, LONG, SHORT, WIDTH, columns, make, observation, policy

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
    merged = model.merge_and_unload()
    for other, tolerance in ((loaded, 0.0), (merged, 3e-6)):  # merged, float32 sums come in another order
        with torch.no_grad():
            out = other(**batch, **DRAWS)
        again = other.sample_actions(**inputs, noise=DRAWS["noise"], num_steps=3)
        pairs = (out.logits, expected.logits), (out.velocity, expected.velocity), (again, chunk)
        for what, (found, wanted) in zip(("logits", "velocity", "actions"), pairs, strict=True):
            error = ((found - wanted).norm() / wanted.norm()).item()
            assert error <= tolerance, f"{what}: relative error {error:.1e}"


def test_a_model_without_room_for_action_tokens_is_refused():
    processor = make("paligemma")
    model = copy.deepcopy(policy("paligemma"))
    model.resize_token_embeddings(processor.vocab_size - 1)
    with pytest.raises(ValueError, match="but the processor's vocabulary is"):
        lora_config(model, processor)

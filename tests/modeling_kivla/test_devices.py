"""Parts of a model on several devices, or kept on disk."""

import pytest
import torch

from kivla.modeling_kivla import KIVLAForActionPrediction, modeling_kivla
from tests.helpers.families import FAMILIES, drop_suffix, make_example
from tests.helpers.tolerance import assert_close_relative
from tests.modeling_kivla.test_contract import CHUNK, WIDTH, policy, training_batch
from tests.modeling_kivla.test_modeling import STATE, make_batch, make_model


@pytest.mark.parametrize("where", [("actions", "noise", "timestep", "action_mask"), ()], ids=["expert's", "VLM's"])
@pytest.mark.parametrize("state_encoding", ["text", "continuous"])
def test_the_expert_on_another_device_than_the_vlm(state_encoding, where, monkeypatch):
    """The meta device stands for a second GPU: every product of tensors on two devices raises."""
    monkeypatch.setattr(modeling_kivla, "check_finite", lambda chunks: None)
    model = make_model(state_encoding=state_encoding)
    model.expert.to("meta")
    state = {"state": torch.zeros(2, STATE)} if state_encoding == "continuous" else {}
    batch = make_batch(noise=torch.zeros(2, CHUNK, WIDTH), timestep=torch.zeros(2), **state)
    out = model(**{name: value.to("meta") if name in where else value for name, value in batch.items()})
    assert out.velocity.device.type == "meta" and out.loss.shape == ()
    for name in ("labels", "actions", "timestep"):
        del batch[name]
    batch["action_mask"] = torch.ones(2, CHUNK, WIDTH, dtype=torch.bool)
    batch = {name: value.to("meta") if name in where else value for name, value in batch.items()}
    assert model.sample_actions(**batch, num_steps=2).shape == (2, CHUNK, WIDTH)


def test_a_generator_of_another_device_draws_the_noise():
    """One on the CPU, so that a seed gives the same noise on every machine."""
    model = make_model()
    model.expert.to("meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_kivla, "check_finite", lambda chunks: None)
        example = drop_suffix(make_example(FAMILIES["llava"]))
        assert model.sample_actions(**example, generator=torch.Generator().manual_seed(0)).shape == (1, CHUNK, WIDTH)


@pytest.mark.parametrize("name", ["paligemma", "qwen2_5_vl"])
@pytest.mark.parametrize("share", [0.7, 0.3], ids=["the expert", "most of it"])
def test_what_does_not_fit_is_fetched_when_it_runs(name, share, tmp_path):
    """`device_map="auto"` under tight memory: what comes last in the model, the expert first, is kept on disk."""
    model, batch = policy(name), training_batch(name)
    prompt = drop_suffix(make_example(FAMILIES[name]))
    noise = batch["noise"][:1]
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(tmp_path / "policy")
    loaded = KIVLAForActionPrediction.from_pretrained(
        tmp_path / "policy",
        device_map="auto",
        max_memory={"cpu": int(share * size)},
        offload_folder=tmp_path / "offloaded",
    ).eval()
    assert "disk" in loaded.hf_device_map.values()
    with torch.no_grad():
        assert_close_relative(loaded(**batch).loss, model(**batch).loss)
    found, expected = (m.sample_actions(**prompt, noise=noise, num_steps=2) for m in (loaded, model))
    assert_close_relative(found, expected)
    said, words = (m.generate(**prompt, max_new_tokens=3, do_sample=False) for m in (loaded, model))
    assert torch.equal(said, words)

"""Configured as π0 and given the weights of transformers' PI0, the model computes the same velocities and actions."""

import pytest
import torch
from transformers import PaliGemmaConfig, PI0Config, PI0ForConditionalGeneration

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from tests.helpers.tolerance import assert_close_relative, assert_gradients_close

IMAGE_ID, TOKENS_PER_IMAGE, CHUNK, ACTION_DIM, STATE_DIM = 250, 4, 6, 5, 7


def pi0_model() -> PI0ForConditionalGeneration:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 3}
    text = {"model_type": "gemma", "hidden_size": 32, "intermediate_size": 64, "vocab_size": 256, **heads}
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = PI0Config(
        vlm_config=PaliGemmaConfig(
            text_config=text, vision_config=vision, projection_dim=32, image_token_id=IMAGE_ID
        ).to_dict(),
        dit_config={"model_type": "gemma", "hidden_size": 16, "intermediate_size": 48, "vocab_size": 256, **heads},
        chunk_size=CHUNK,
        max_action_dim=ACTION_DIM,
        max_state_dim=STATE_DIM,
    )
    torch.manual_seed(0)
    model = PI0ForConditionalGeneration(config).eval()
    with torch.no_grad():  # weights large enough that every part matters
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def as_kivla(pi0: PI0ForConditionalGeneration) -> KIVLAForActionPrediction:
    config = KIVLAConfig(
        vlm_config=pi0.config.vlm_config,
        expert_config={
            "hidden_size": 16,
            "intermediate_size": 48,
            "time_conditioning": "concat",
            "time_embedding_dtype": "float32",
        },
        chunk_size=CHUNK,
        max_action_dim=ACTION_DIM,
        max_state_dim=STATE_DIM,
        state_encoding="continuous",
        backbone_gradient_scale=1.0,
    )
    model = KIVLAForActionPrediction(config).eval()
    renamed = {}
    for name, weight in pi0.state_dict().items():
        if name == "model.dit.embed_tokens.weight":
            continue  # never used: PI0 feeds its expert embeddings
        for old, new in (
            ("model.vlm.", "vlm.model."),
            ("model.dit.", "expert."),
            ("embed_action_time.", "expert."),
            ("action_out_proj.", "expert.action_out_proj."),
        ):
            if name.startswith(old):
                renamed[new + name.removeprefix(old)] = weight
                break
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert set(missing) <= {"vlm.lm_head.weight"} and not unexpected, (missing, unexpected)
    return model


@pytest.fixture(scope="module")
def models():
    pi0 = pi0_model()
    return pi0, as_kivla(pi0)


def observation(padded: bool) -> tuple[dict, dict]:
    """The same two observations for both models; the second one has a shorter prompt if `padded`."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(5, 200, (2, 8), generator=generator)
    input_ids = torch.cat([torch.full((2, 2 * TOKENS_PER_IMAGE), IMAGE_ID), text], dim=1)
    attention_mask = torch.ones_like(input_ids)
    if padded:
        attention_mask[1, -3:] = 0
    pixels = torch.randn(2, 2, 3, 28, 28, generator=generator)
    state = torch.randn(2, STATE_DIM, generator=generator)
    shared = {"input_ids": input_ids, "attention_mask": attention_mask, "state": state}
    theirs = {**shared, "pixel_values": pixels, "pixel_attention_mask": torch.ones(2, 2, dtype=torch.bool)}
    ours = {
        **shared,
        "pixel_values": pixels.flatten(0, 1),
        "expert_attention_mask": attention_mask.bool(),
        "token_type_ids": torch.zeros_like(input_ids),
        "position_ids": attention_mask.cumsum(-1) - 1,
    }
    return theirs, ours


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_velocity_and_loss(models, padded):
    pi0, model = models
    theirs, ours = observation(padded)
    generator = torch.Generator().manual_seed(2)
    actions, noise = torch.randn(2, 2, CHUNK, ACTION_DIM, generator=generator)
    draws = {"actions": actions, "noise": noise, "timestep": torch.tensor([0.9, 0.2])}
    with torch.no_grad():
        expected, out = pi0(**theirs, **draws), model(**ours, **draws)
    assert_close_relative(out.velocity, expected.logits, what="velocity")
    assert_close_relative(out.flow_loss, expected.loss, what="loss")
    assert expected.logits.std() > 0.1, "the comparison would not see a mistake"


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_sampled_actions(models, padded):
    pi0, model = models
    theirs, ours = observation(padded)
    noise = torch.randn(2, CHUNK, ACTION_DIM, generator=torch.Generator().manual_seed(3))
    expected = pi0.sample_actions(**theirs, noise=noise.clone(), num_steps=10)
    actions = model.sample_actions(**ours, noise=noise, num_steps=10)
    assert_close_relative(actions, expected, what="actions")


def test_joint_gradient_of_the_backbone(models):
    """Not insulated, the flow loss gives the backbone the gradient that PI0 gives it."""
    pi0, model = models
    theirs, ours = observation(padded=True)
    generator = torch.Generator().manual_seed(4)
    actions, noise = torch.randn(2, 2, CHUNK, ACTION_DIM, generator=generator)
    draws = {"actions": actions, "noise": noise, "timestep": torch.tensor([0.5, 0.7])}
    pi0.zero_grad(), model.zero_grad()
    pi0(**theirs, **draws).loss.backward()
    model(**ours, **draws).flow_loss.backward()
    found, expected = (
        {name: parameter.grad for name, parameter in vlm.named_parameters()} for vlm in (model.vlm.model, pi0.model.vlm)
    )
    found = {name: gradient for name, gradient in found.items() if gradient is not None}
    assert len(found) > 20
    assert_gradients_close(found, {name: expected[name] for name in found})

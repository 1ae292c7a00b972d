"""What is not trained stays as it is: statistics of norms, dropout, and nothing else changes for the rest."""

import pytest
import torch
from torch import nn

from kivla.training.recipes import EXPERT_ONLY, TOKENS_ONLY, set_stage
from tests.helpers.families import FAMILIES
from tests.modeling_kivla.test_contract import policy, training_batch

NAME = "fast_vlm"


def policy_with_batch_norm():
    """FastVLM's real tower has norms with statistics of their own; here one follows the tower's first convolution."""
    if NAME not in FAMILIES:
        pytest.skip(f"this version of transformers has no {NAME}")
    model = policy(NAME)
    tower = model.get_submodule("vlm.model.vision_tower")
    convolution = next(module for module in tower.modules() if isinstance(module, nn.Conv2d))
    norm = nn.BatchNorm2d(convolution.out_channels)
    tower.add_module("extra_norm", norm)
    convolution.register_forward_hook(lambda module, inputs, output: norm(output))
    return model, tower, norm


def test_a_frozen_vlm_stays_as_it_is():
    model, _, norm = policy_with_batch_norm()
    model.expert.add_module("dropout", nn.Dropout(0.5))
    set_stage(model, EXPERT_ONLY)
    batch = {n: v for n, v in training_batch(NAME).items() if n != "labels"}
    with torch.no_grad():
        before = model.eval()(**batch).velocity
    mean = norm.running_mean.clone()
    model.train()
    assert model.training and not any(module.training for module in model.vlm.modules())
    assert all(module.training for module in model.expert.modules()), "the expert is trained, dropout included"
    model(**batch).loss.backward()
    assert torch.equal(norm.running_mean, mean)
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).velocity, before)


def test_a_frozen_expert_rests_and_the_vlm_trains():
    model, _, norm = policy_with_batch_norm()
    set_stage(model, TOKENS_ONLY)
    mean = norm.running_mean.clone()
    model.train()
    assert not any(module.training for module in model.expert.modules())
    assert all(module.training for module in model.vlm.modules())
    model(**training_batch(NAME)).loss.backward()
    assert not torch.equal(norm.running_mean, mean)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_frozen_tower_rests_inside_a_vlm_that_is_trained(checkpointed):
    """Layers that are checkpointed keep their mode, which checkpointing goes by; what is in them does not."""
    model, tower, norm = policy_with_batch_norm()
    tower.requires_grad_(False)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    mean = norm.running_mean.clone()
    model.train()
    decoder = model.get_decoder()
    assert all(module.training for module in decoder.modules()), "the decoder is trained"
    assert not norm.training and not tower.training
    awake = {type(module).__name__ for module in tower.modules() if module.training}
    assert all(name.endswith("Layer") for name in awake) and (checkpointed or not awake), awake
    model(**training_batch(NAME)).loss.backward()
    assert torch.equal(norm.running_mean, mean)
    # Trained again, it wakes up
    tower.requires_grad_(True)
    model.train()
    assert all(module.training for module in tower.modules())

"""The gradient of each loss alone on the language model: what it is, and that measuring it changes nothing."""

import pytest
import torch

from kivla import KIVLACollator
from kivla.modeling_kivla.backbone_attention import decoder_layers, find_text_decoder
from kivla.training.evaluation.gradient_conflict import gradient_conflict
from tests.helpers.policies import awaken, dataset, make_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    model, processor = make_policy(tmp_path_factory.mktemp("vlm"))
    model.resize_token_embeddings(processor.vocab_size)
    awaken(model)
    batch = KIVLACollator(processor)([dataset()[i] for i in (0, 40)])
    return model.train(), batch, torch.as_tensor(processor.action_token_ids)


def layers_of(model) -> list[torch.nn.Parameter]:
    return [p for layer in decoder_layers(find_text_decoder(model.vlm)) for p in layer.parameters()]


def test_norms_and_cosine_are_those_of_two_backward_passes(policy):
    model, batch, actions = policy
    found = gradient_conflict(model, batch, actions)
    model.config.backbone_gradient_scale = 1.0
    gradients = {}
    for name in ("token_loss", "flow_loss"):
        torch.manual_seed(0)
        output = model.eval()(**batch)
        model.zero_grad()
        output[name].backward()
        gradients[name] = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in layers_of(model)]
        )
        assert found[name] == pytest.approx(float(output[name]), rel=1e-5)
    model.zero_grad()
    model.train().config.backbone_gradient_scale = 0.0
    assert found["token_gradient"] == pytest.approx(float(gradients["token_loss"].norm()), rel=1e-4)
    assert found["flow_gradient"] == pytest.approx(float(gradients["flow_loss"].norm()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(gradients["token_loss"], gradients["flow_loss"], dim=0)
    assert found["cosine"] == pytest.approx(float(cosine), abs=1e-4)
    assert 0 <= found["action_token_accuracy"] <= 1


def test_it_is_the_same_frozen_or_not_and_changes_nothing(policy):
    model, batch, actions = policy
    expected = gradient_conflict(model, batch, actions)
    layers_of(model)[0].requires_grad_(False)
    before = torch.random.get_rng_state()
    assert gradient_conflict(model, batch, actions) == pytest.approx(expected)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not layers_of(model)[0].requires_grad and layers_of(model)[1].requires_grad
    assert all(p.grad is None for p in model.parameters()) and model.training
    assert model.config.backbone_gradient_scale == 0.0
    layers_of(model)[0].requires_grad_(True)


def test_a_loss_that_is_not_there_has_no_gradient(policy):
    model, batch, actions = policy
    found = gradient_conflict(model, {**batch, "labels": torch.full_like(batch["labels"], -100)}, actions)
    assert found["flow_gradient"] > 0
    assert all(found[name] is None for name in ("token_loss", "token_gradient", "cosine", "action_token_accuracy"))

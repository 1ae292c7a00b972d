"""The token loss at supervised positions, with one gradient for the vocabulary's matrix, and among candidates alone."""

import copy

import pytest
import torch
import torch.nn.functional as F

from kivla.modeling_kivla import KIVLAForActionPrediction
from kivla.modeling_kivla.next_token import token_losses
from tests.helpers.families import each_family
from tests.helpers.tolerance import assert_close_relative, assert_gradients_close
from tests.modeling_kivla.test_contract import backbone_gradients, policy, training_batch

OURS = ("actions", "noise", "timestep", "expert_attention_mask")
# One of each kind whose embedding is the output layer: looked up as it is, scaled, and with inputs for each layer
TIED = ("paligemma", "gemma3", "gemma3n")


def token_batch(name: str) -> dict:
    return {key: value for key, value in training_batch(name).items() if key not in OURS}


def plain_loss(model: KIVLAForActionPrediction, batch: dict, candidates=None, mask=None) -> torch.Tensor:
    """The formula on the VLM's own logits of all positions; where the mask is True all other tokens have none."""
    labels = batch["labels"][:, 1:]
    logits = model.vlm(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
    if candidates is not None:
        others = torch.ones(logits.shape[-1], dtype=torch.bool)
        others[candidates] = False
        logits = logits.masked_fill(mask[:, 1:, None] & others, -torch.inf)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def some_choice(batch: dict) -> dict:
    """The learned tokens of the last example, and one more, as candidates of that example."""
    mask = torch.zeros_like(batch["labels"], dtype=torch.bool)
    mask[-1] = batch["labels"][-1] != -100
    return {"candidates": torch.cat([batch["labels"][mask].unique(), torch.tensor([1])]), "candidates_mask": mask}


@each_family
def test_gradients_are_those_of_the_plain_loss(name):
    model, batch = policy(name), token_batch(name)
    found = backbone_gradients(model, model(**batch).token_loss)
    assert_gradients_close(found, backbone_gradients(model, plain_loss(model, batch)))


@each_family
def test_a_closed_choice_is_that_of_masked_logits(name):
    """Some positions among candidates, the others among all tokens; and all of them among candidates."""
    model, batch = policy(name), token_batch(name)
    both = some_choice(batch)
    is_learned = batch["labels"] != -100
    alone = {"candidates": batch["labels"][is_learned].unique(), "candidates_mask": is_learned}
    for choice in (both, alone):
        loss, expected = model(**batch, **choice).token_loss, plain_loss(model, batch, *choice.values())
        assert_close_relative(loss, expected, what="loss")
        found, expected = backbone_gradients(model, loss), backbone_gradients(model, expected)
        assert_gradients_close(found, expected)


@pytest.mark.parametrize("name", TIED)
def test_the_embedding_takes_no_buffer_of_its_own(name):
    """Autograd sees one gradient for the matrix: nothing is added up that is as large."""
    model, batch = policy(name), token_batch(name)
    weight = model.get_input_embeddings().weight
    assert weight is model.get_output_embeddings().weight
    arrived = [edge for edge in graph(model(**batch).token_loss) if edge is weight]
    assert len(arrived) == 1, f"{len(arrived)} gradients of the vocabulary's size"


def graph(loss: torch.Tensor) -> list[torch.Tensor]:
    """The leaves at the ends of all edges of a graph, once for every edge."""
    leaves, waiting, seen = [], [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            if hasattr(following, "variable"):
                leaves.append(following.variable)
            elif following not in seen:
                seen.add(following)
                waiting.append(following)
    return leaves


@pytest.mark.parametrize("name", TIED)
def test_gradients_add_up_over_batches(name):
    model, batch = policy(name), token_batch(name)
    once = backbone_gradients(model, model(**batch).token_loss)
    for _ in range(2):
        model(**batch).token_loss.backward()
    found = {n: p.grad for n, p in model.vlm.named_parameters()}
    assert_gradients_close(found, {n: None if g is None else 3 * g for n, g in once.items()})


def test_an_output_layer_with_somebody_elses_hooks_runs_as_it_is():
    """FSDP, ZeRO-3 and accelerate put hooks there, and so may a user; what they see and change counts."""
    model, batch = policy("paligemma"), token_batch("paligemma")
    expected, choice = plain_loss(model, batch), some_choice(batch)
    of_choice = plain_loss(model, batch, *choice.values())
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert_close_relative(model(**batch).token_loss, expected, what="loss")
    assert_close_relative(model(**batch, **choice).token_loss, of_choice, what="loss among candidates")
    assert [shape[1] for shape in seen] == [int((batch["labels"] != -100).sum())] * 2


def test_a_padding_row_of_the_embedding_learns_from_the_output_layer_alone():
    model = policy("paligemma")
    batch = token_batch("paligemma")
    token = int(batch["input_ids"][0, -1])
    model.get_input_embeddings().padding_idx = token
    found = backbone_gradients(model, model(**batch).token_loss)
    assert_gradients_close(found, backbone_gradients(model, plain_loss(model, batch)))


def test_embeddings_in_the_place_of_ids():
    """There the output layer alone has a gradient for the matrix."""
    for name in ("llava", "paligemma"):
        model, inputs = policy(name), token_batch(name)
        inputs.pop("pixel_values")
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
        for choice in ({}, some_choice(inputs)):
            expected = backbone_gradients(model, plain_loss(model, inputs, *choice.values()))
            assert_gradients_close(backbone_gradients(model, model(**inputs, **choice).token_loss), expected)


def test_a_frozen_matrix_and_no_gradients_at_all():
    model, batch = policy("paligemma"), token_batch("paligemma")
    with torch.no_grad():
        assert_close_relative(model(**batch).token_loss, plain_loss(model, batch), what="loss")
    model.get_input_embeddings().weight.requires_grad_(False)
    found = backbone_gradients(model, model(**batch).token_loss)
    assert found["model.language_model.embed_tokens.weight"] is None
    assert_gradients_close(found, backbone_gradients(model, plain_loss(model, batch)))


def test_in_bfloat16():
    """Under autocast the matrix is cast for the output layer alone: both gradients still meet in float32."""
    model, batch = policy("paligemma"), token_batch("paligemma")
    with torch.autocast("cpu", torch.bfloat16):
        found = backbone_gradients(model, model(**batch).token_loss)
    with torch.autocast("cpu", torch.bfloat16):
        expected = backbone_gradients(model, plain_loss(model, batch))
    for name, gradient in expected.items():
        if gradient is not None:
            error = (found[name] - gradient).abs().max() / gradient.abs().max()
            assert found[name].dtype == torch.float32 and error < 0.05, name
    half = copy.deepcopy(model).to(torch.bfloat16)
    gradients = backbone_gradients(half, half(**batch).token_loss)
    assert all(g is None or (g.dtype == torch.bfloat16 and g.isfinite().all()) for g in gradients.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 7), (1, 7), (9, 300)])
def test_cross_entropy_is_pytorchs(dtype, shape, monkeypatch):
    monkeypatch.setattr("kivla.modeling_kivla.next_token.BLOCK", 1000)  # three rows at once
    logits = torch.randn(shape).mul(10).to(dtype).requires_grad_()
    targets = torch.randint(shape[1], shape[:1])
    losses = token_losses(logits, targets)
    expected = F.cross_entropy(logits.float(), targets, reduction="none")
    torch.testing.assert_close(losses, expected)
    weights = torch.randn(shape[0])
    (found,) = torch.autograd.grad(losses @ weights, logits)
    (expected,) = torch.autograd.grad(expected @ weights, logits)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)


def test_tokens_without_a_say_are_fine():
    """The lowest number and minus infinity are what families give to tokens that are never said."""
    logits = torch.randn(2, 5)
    logits[0, 1], logits[1, 2] = -torch.inf, torch.finfo(torch.float32).min
    logits.requires_grad_()
    token_losses(logits, torch.tensor([0, 0])).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 1] == logits.grad[1, 2] == 0


def test_impossible_choices_are_refused():
    model, batch = policy("llava"), token_batch("llava")
    choice = some_choice(batch)
    with pytest.raises(ValueError, match="go together"):
        model(**batch, candidates=choice["candidates"])
    with pytest.raises(ValueError, match="not among `candidates`"):
        model(**batch, candidates=torch.tensor([1]), candidates_mask=choice["candidates_mask"])

"""Every recipe: which loss reaches which parameters, exactly."""

import pytest
import torch

from kivla import BinningActionTokenizer, KIVLACollator, KIVLAForActionPrediction, KIVLAProcessor
from kivla.training.parts import NEW_TOKENS, part_of, vocabulary_weights
from kivla.training.recipes import RECIPES, TOKENS_ONLY, Stage, get_recipe, set_stage, split_steps
from tests.helpers.policies import SIZES, _action_tokenizer, dataset
from tests.helpers.tolerance import assert_gradients_close

STAGES = [(name, number) for name, recipe in RECIPES.items() for number in range(len(recipe.stages))]


def make(vlm, name: str) -> tuple[KIVLAForActionPrediction, dict]:
    """A policy as the recipe wants it, and a batch of demonstrations and, if it takes any, VLM data."""
    recipe = get_recipe(name)
    tokenizer = {"fast": _action_tokenizer(), "bins": BinningActionTokenizer(64), "none": None}[recipe.action_tokenizer]
    options = {**SIZES, "state_encoding": recipe.state_encoding}
    processor = KIVLAProcessor.from_vlm(vlm, action_tokenizer=tokenizer, statistics=dataset().statistics, **options)
    torch.manual_seed(0)
    expert = {"hidden_size": 32, "intermediate_size": 64}
    model = KIVLAForActionPrediction.from_vlm(vlm, expert_config=expert, **options)
    model.resize_token_embeddings(processor.vocab_size)
    for module in model.expert.modules():  # adaRMS starts as the identity, which lets no gradient through its gates
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.2)
    examples = [dataset()[0], dataset()[90]]
    if recipe.vlm_data:
        examples.append({"images": dataset()[5]["images"], "text": "what is it?", "response": "a drawer"})
    return model, KIVLACollator(processor)(examples)


def reached(model, loss) -> dict[str, bool]:
    """Parameter -> whether this loss gives it a gradient, zeros included."""
    model.zero_grad(set_to_none=True)
    if loss is not None and loss.requires_grad:
        loss.backward(retain_graph=True)
    return {name: parameter.grad is not None for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("name", "number"), STAGES)
def test_which_loss_trains_which_parameters(vlm, name, number):
    model, batch = make(vlm, name)
    stage = RECIPES[name].stages[number]
    set_stage(model, stage)
    out = model(**batch)
    learns_tokens = RECIPES[name].action_tokenizer != "none"
    learns_flow = stage.flow_loss_weight > 0
    assert (out.token_loss is not None) == learns_tokens and (out.flow_loss is not None) == learns_flow

    by_tokens, by_flow = reached(model, out.token_loss), reached(model, out.flow_loss)
    for parameter in by_tokens:
        is_expert = parameter.startswith("expert.")
        is_trained = dict(model.named_parameters())[parameter].requires_grad
        assert by_tokens[parameter] == (learns_tokens and not is_expert and is_trained), f"token loss and {parameter}"
        if is_expert:
            assert by_flow[parameter] == learns_flow, f"flow loss and {parameter}"
    # Under joint training the flow loss reaches all that keys and values depend on, which is not the last layer's MLP.
    backbone = [name for name, is_reached in by_flow.items() if is_reached and not name.startswith("expert.")]
    assert bool(backbone) == (stage.backbone_gradient_scale > 0), backbone[:3]
    if backbone:
        assert {"k_proj", "v_proj"} <= {parameter.split(".")[-2] for parameter in backbone}

    rows = set(vocabulary_weights(model)) if model.trains_new_rows_only else set()
    trained = {NEW_TOKENS if p in rows else part_of(name) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == stage.parts - ({NEW_TOKENS} if "backbone" in stage.trains else set())


def test_partial_insulation_is_a_part_of_the_joint_gradient(vlm):
    model, batch = make(vlm, "joint")
    draws = {"noise": torch.randn(3, *batch["actions"].shape[1:]), "timestep": torch.rand(3)}
    gradients = {}
    for name in ("joint", "insulated-partial"):
        set_stage(model, RECIPES[name].stages[0])
        model.zero_grad()
        model(**batch, **draws).flow_loss.backward()
        gradients[name] = {n: p.grad for n, p in model.vlm.named_parameters()}
    scale = RECIPES["insulated-partial"].stages[0].backbone_gradient_scale
    expected = {name: None if whole is None else scale * whole for name, whole in gradients["joint"].items()}
    assert_gradients_close(gradients["insulated-partial"], expected)


def test_steps_are_shared_out():
    pi05 = RECIPES["pi0.5"].stages
    assert split_steps(pi05, 360) == [280, 80]
    assert split_steps(pi05, 2) == [1, 1]
    assert split_steps((TOKENS_ONLY,), 7) == [7]
    with pytest.raises(ValueError, match="1 steps cannot be shared out among 2 stages"):
        split_steps(pi05, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trains": ()}, r"trains \[\] has nothing to train"),
        ({"trains": ("expret",)}, r"got \['expret'\]"),
        ({"trains": ("expert",), "flow_loss_weight": 0.0}, "nothing to train the expert with"),
        ({"trains": ("backbone", "expert"), "flow_loss_weight": 0.0}, "nothing to train the expert with"),
        ({"trains": ("expert",), "backbone_gradient_scale": 0.5}, "backbone is frozen"),
        ({"trains": ("backbone", "expert"), "backbone_gradient_scale": 2.0}, "between 0 .* and 1 .* got 2.0"),
        ({"trains": ("backbone", "expert"), "backbone_gradient_scale": -1.0}, "between 0 .* and 1 .* got -1.0"),
        ({"trains": ("backbone", "expert"), "backbone_gradient_scale": float("nan")}, "between 0 .* and 1 .* got nan"),
        ({"trains": ("new_tokens",), "flow_loss_weight": 0.0, "backbone_gradient_scale": 0.5}, "backbone is frozen"),
        ({"trains": ("backbone", "new_tokens")}, "backbone is the whole VLM, new_tokens among it"),
        ({"trains": ("expert",), "learning_rates": {"projector": 1e-3}}, "that the stage trains; got 'projector'"),
        ({"trains": ("backbone",), "learning_rates": {"backbone": 1e-3}}, "that the stage trains; got 'backbone'"),
        ({"trains": ("expert",), "learning_rates": {"expert": 0.0}}, "rate of expert must be a positive number, got 0"),
        (
            {"trains": ("expert",), "learning_rates": 1e-3},
            "learning_rates must be a map of parts to numbers, got 0.001",
        ),
        ({"trains": ("backbone", "expert"), "flow_loss_weight": -1.0}, "flow_loss_weight must .* got -1.0"),
        ({"trains": ("backbone", "expert"), "flow_loss_weight": float("inf")}, "flow_loss_weight must .* got inf"),
        ({"trains": ("backbone", "expert"), "share": 0.0}, "share of the steps must be positive"),
    ],
)
def test_stages_that_make_no_sense_cannot_be_made(settings, message):
    with pytest.raises(ValueError, match=message):
        Stage(**settings)


def test_unknown_recipe():
    with pytest.raises(
        ValueError, match=r"no recipe 'insulatd'. Did you mean insulated\? Recipes: insulated, autoregressive"
    ):
        get_recipe("insulatd")


def test_an_expert_that_was_never_trained_does_not_act(vlm):
    model, batch = make(vlm, "pi0-fast")
    set_stage(model, TOKENS_ONLY)
    observation = {name: values for name, values in batch.items() if name not in ("labels", "actions")}
    with pytest.raises(ValueError, match="its action expert knows nothing"):
        model.sample_actions(**observation)

"""The parts of a policy: which are trained and how fast; and rows of a matrix that are trained unlike others."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForImageTextToText

from kivla import KIVLAProcessor
from kivla.modeling_kivla.backbone_attention import find_language_head, find_text_decoder
from kivla.training.lora import lora_config
from kivla.training.parts import PROJECTOR, TokenRows, part_of, set_trained_parts, split_groups, vocabulary_weights
from kivla.training.recipes import Stage, set_stage
from tests.helpers.families import FAMILIES, each_family
from tests.helpers.fixed_noise import FixedNoiseCollator
from tests.helpers.policies import SIZES, dataset, make_policy, make_trainer

WARM_UP = Stage(("new_tokens", "projector", "expert"))
RATES = {"new_token_learning_rate": 3e-3, "projector_learning_rate": 2e-3, "expert_learning_rate": 4e-3}


@each_family
def test_every_family_has_a_projector_and_it_is_no_part_of_the_text_model(name):
    with torch.device("meta"):
        vlm = AutoModelForImageTextToText.from_config(FAMILIES[name].config())
    projector = {parameter for n, parameter in vlm.named_parameters() if part_of(n) == PROJECTOR}
    text = {*find_text_decoder(vlm).parameters(), *find_language_head(vlm).get_output_embeddings().parameters()}
    assert projector and not projector & text


def test_a_vlm_whose_projector_is_not_known_is_refused(tmp_path):
    model, _ = make_policy(tmp_path)
    del model.vlm.model.multi_modal_projector
    with pytest.raises(ValueError, match="'paligemma' has no module by a name that projectors are known by"):
        set_trained_parts(model, ("projector",))


# ------------------------------------------------------------------------------------------------------------- the rows
class Reader(nn.Module):
    """Reads and says tokens by one matrix; `split` is that as several parameters, which an optimiser can tell apart."""

    def __init__(self, new: slice, split: bool):
        super().__init__()
        matrix = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
        pieces = (matrix[: new.start], matrix[new], matrix[new.stop :]) if split else (matrix,)
        self.pieces = nn.ParameterList(pieces)

    def forward(self, seed: int) -> torch.Tensor:
        matrix = torch.cat(list(self.pieces))
        tokens = torch.randint(12, (8, 5), generator=torch.Generator().manual_seed(seed))
        logits = matrix[tokens].cumsum(1) @ matrix.T
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("new", [slice(9, 12), slice(4, 7)], ids=["at the end", "over existing tokens"])
@pytest.mark.parametrize("old_rows_rest", [False, True])
def test_rows_are_stepped_as_parameters_of_their_own(new, old_rows_rest):
    """Bit for bit as AdamW with two groups steps two matrices; with decay, and under a schedule."""
    ours, theirs = Reader(new, split=False), Reader(new, split=True)
    rows = TokenRows(ours.parameters(), range(12)[new], old_rows_rest)
    parts = {piece: part for part, piece in rows.of(ours.pieces[0])}
    groups = split_groups([{"params": [*parts], "lr": 0.01}], parts, {"new_tokens": 0.1})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    optimizer.register_step_pre_hook(rows.follow)
    old = [theirs.pieces[0], theirs.pieces[2]]
    if old_rows_rest:
        old = [piece.requires_grad_(False) for piece in old][:0]
    groups = [{"params": old, "lr": 0.01}, {"params": [theirs.pieces[1]], "lr": 0.1}]
    reference = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.1)
    before = ours.pieces[0].detach().clone()
    for seed in range(5):
        for model, stepped in ((ours, optimizer), (theirs, reference)):
            for group in stepped.param_groups:
                group["lr"] *= 0.9
            model.zero_grad()
            model(seed).backward()
            stepped.step()
    found = ours.pieces[0].detach()
    assert torch.equal(found, torch.cat(list(theirs.pieces)))
    moved = (found != before).any(1)
    assert (
        moved[new].all()
        and moved[: new.start].any() != old_rows_rest
        and moved[new.stop :].any() != (old_rows_rest or new.stop == 12)
    )


def test_rows_follow_a_weight_that_is_put_elsewhere():
    """Somebody may move a model away and back again, for an evaluation say: its weights then lie in other memory."""
    model = Reader(slice(9, 12), split=False)
    rows = TokenRows(model.parameters(), range(9, 12), old_rows_rest=True)
    ((_, view),) = rows.of(model.pieces[0])
    optimizer = torch.optim.SGD([view], lr=1.0)
    optimizer.register_step_pre_hook(rows.follow)
    model.pieces[0].data = model.pieces[0].data.clone()
    before = model.pieces[0].detach().clone()
    model(0).backward()
    optimizer.step()
    assert torch.equal(model.pieces[0][9:], before[9:] - model.pieces[0].grad[9:])
    model.zero_grad()
    before = model.pieces[0].detach().clone()
    optimizer.step()
    assert torch.equal(model.pieces[0], before), "without a gradient there is no step"


# ---------------------------------------------------------------------------------------------------------- the trainer
def warm_policy(folder, tied: bool = True, placement: str = "added", stage: Stage = WARM_UP):
    model, processor = make_policy(folder / "vlm")
    if placement == "tail":  # over bytes that no word here has
        made = {"action_tokenizer": processor.action_tokenizer, "action_token_placement": "tail"}
        known = {"statistics": dataset().statistics, "cameras": dataset().cameras, **SIZES}
        processor = KIVLAProcessor.from_vlm(folder / "vlm", **made, action_token_skip=0, **known)
    model.resize_token_embeddings(processor.vocab_size, pad_to_multiple_of=64)
    if not tied:
        model.vlm.lm_head.weight = nn.Parameter(model.vlm.lm_head.weight.detach() * 0.5)
    set_stage(model, stage)
    return model, processor


SETTINGS = {
    "AdamW with decay": {"weight_decay": 0.1},
    "no clipping": {"max_grad_norm": 0.0},
    "rates of their own": {**RATES, "weight_decay": 0.1},
    "Muon": {**RATES, "muon": True, "weight_decay": 0.1},
    "Adafactor": {"optim": "adafactor", "weight_decay": 0.1},
    "averaged": {"ema_decay": 0.9, "weight_decay": 0.1},
    "untied": {"tied": False, "weight_decay": 0.1},
    "over existing tokens": {"placement": "tail", "weight_decay": 0.1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_vlm_at_rest_stays_bit_for_bit(tmp_path, name):
    settings = dict(SETTINGS[name])
    made = {key: settings.pop(key) for key in ("tied", "placement") if key in settings}
    model, processor = warm_policy(tmp_path, **made)
    before = copy.deepcopy(model.state_dict())
    vocabulary = {n for n, p in model.named_parameters() if any(p is w for w in vocabulary_weights(model))}
    assert len(vocabulary) == (1 if made.get("tied", True) else 2)
    trainer = make_trainer(tmp_path, model, processor, max_steps=3, **settings)
    trainer.train()
    trainer.take_average()
    new = torch.zeros(model.get_input_embeddings().num_embeddings, dtype=torch.bool)
    new[processor.action_token_ids] = True
    for parameter_name, parameter in model.named_parameters():
        same = parameter.detach() == before[parameter_name]
        if parameter_name in vocabulary:
            assert same[~new].all(), f"{parameter_name}: old rows moved"
            assert not same[new].all(), f"{parameter_name}: no new row moved"
        elif parameter_name.startswith("expert.") or part_of(parameter_name) == PROJECTOR:
            assert not parameter.requires_grad or not same.all() or parameter.grad is None, f"{parameter_name} rests"
        else:
            assert same.all(), f"{parameter_name} moved"
    log = trainer.state.log_history[0]
    assert {"new_tokens_grad_norm", "projector_grad_norm", "expert_grad_norm"} <= log.keys()
    assert "backbone_grad_norm" not in log


@pytest.mark.parametrize("settings", [{"weight_decay": 0.1}, {"muon": True, "weight_decay": 0.1}])
def test_a_rate_of_their_own_that_is_the_backbones_changes_nothing(tmp_path, settings):
    """Bit for bit, without clipping (which is by part)."""
    runs = []
    for rate in (None, 1e-3):
        model, processor = make_policy(tmp_path / "vlm")
        given = {"learning_rate": 1e-3, "new_token_learning_rate": rate, "max_grad_norm": 0.0, "max_steps": 3}
        trainer = make_trainer(tmp_path, model, processor, FixedNoiseCollator, **given, **settings)
        trainer.train()
        runs.append(model.state_dict())
    for name, weight in runs[0].items():
        assert torch.equal(weight, runs[1][name]), name


@pytest.mark.parametrize("muon", [False, True])
def test_every_part_has_its_learning_rate_and_the_schedule(tmp_path, muon):
    rates = {"learning_rate": 1e-3, **RATES}
    trainer = make_trainer(tmp_path, *make_policy(tmp_path / "vlm"), weight_decay=0.1, muon=muon, **rates)
    trainer.create_optimizer_and_scheduler(10)
    stepped = {p: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    expected = {"backbone": 1e-3, "new_tokens": 3e-3, "projector": 2e-3, "expert": 4e-3}
    found = [(part, stepped[parameter]) for _, part, parameter in trainer._trained()]
    assert {*found} == {*expected.items()} and len(found) == len(stepped)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    now = {p: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert now == {p: pytest.approx(0.9 * rate) for p, rate in stepped.items()}


@pytest.mark.parametrize("settings", [{}, {"muon": True}], ids=["AdamW", "Muon"])
@pytest.mark.parametrize("stage", [WARM_UP, Stage(("backbone", "expert"))], ids=["at rest", "all"])
def test_killed_and_resumed_it_ends_as_if_it_had_not_been(tmp_path, settings, stage):
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "weight_decay": 0.1, **RATES, **settings}
    whole = make_trainer(tmp_path / "whole", *warm_policy(tmp_path, stage=stage), **given)
    whole.train()
    resumed = make_trainer(tmp_path / "whole", *warm_policy(tmp_path, stage=stage), **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-2"))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_skipped_step_moves_no_row(tmp_path):
    model, processor = warm_policy(tmp_path)
    trainer = make_trainer(tmp_path, model, processor, max_steps=1, on_nonfinite="skip")
    before = copy.deepcopy(model.state_dict())
    model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * float("nan"))
    trainer.train()
    assert trainer.skipped_steps == 1
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_with_lora_new_tokens_have_a_learning_rate_of_their_own(tmp_path):
    model, processor = make_policy(tmp_path / "vlm")
    model.resize_token_embeddings(processor.vocab_size)
    model = get_peft_model(model, lora_config(model, processor, rank=2))
    trainer = make_trainer(tmp_path, model, processor, max_steps=2, learning_rate=1e-3, new_token_learning_rate=3e-3)
    optimizer = trainer.create_optimizer()
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[p] for name, p in model.named_parameters() if p.requires_grad}
    assert {rate for name, rate in found.items() if "trainable_tokens" in name} == {3e-3}
    assert {rate for name, rate in found.items() if "trainable_tokens" not in name} == {1e-3}
    trainer.train()
    assert "new_tokens_grad_norm" in trainer.state.log_history[0]


# -------------------------------------------------------------------------------------------------------------- refused
def test_a_learning_rate_of_what_is_not_trained_is_refused(tmp_path):
    model, processor = warm_policy(tmp_path, stage=Stage(("expert",)))
    for name in ("new_token_learning_rate", "projector_learning_rate"):
        with pytest.raises(ValueError, match=f"{name} is the learning rate of a part that is not trained here"):
            make_trainer(tmp_path, model, processor, **{name: 1e-3})
    lora = get_peft_model(model, lora_config(model, processor))
    with pytest.raises(ValueError, match="projector_learning_rate is the learning rate of a part that is not trained"):
        make_trainer(tmp_path, lora, processor, projector_learning_rate=1e-3)


@pytest.mark.parametrize("rates", [{}, {"new_token_learning_rate": 1e-3}])
def test_rows_that_devices_share_out_are_refused(tmp_path, rates):
    stage = Stage(("backbone", "expert")) if rates else WARM_UP
    trainer = make_trainer(tmp_path, *warm_policy(tmp_path, stage=stage), **rates)
    for name in ("is_fsdp_enabled", "is_deepspeed_enabled"):
        setattr(trainer, name, True)
        with pytest.raises(ValueError, match=f"share out the rows of new tokens, and {next(iter(rates), 'a stage')}"):
            trainer._check_parts()
        setattr(trainer, name, False)


def test_new_tokens_of_a_processor_without_any_are_refused(tmp_path):
    model, processor = warm_policy(tmp_path)
    processor.action_token_ids = processor.action_token_ids[:0]
    with pytest.raises(ValueError, match="no action tokenizer: there are no new tokens"):
        make_trainer(tmp_path, model, processor)

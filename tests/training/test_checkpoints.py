"""Interrupted anywhere and started again, a run ends with the same weights; and what is not whole is recognised."""

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset, Subset
from transformers import TrainerCallback

from kivla import KIVLAForActionPrediction, KIVLAProcessor
from kivla.training.checkpoints import (
    CheckpointError,
    check_output_folder,
    digest,
    newest_good_checkpoint,
    problem_of,
    publish,
    written_aside,
)
from kivla.training.data.mixture import Mixture
from kivla.training.sole_use import IN_USE
from tests.helpers.policies import dataset, make_policy, make_trainer

EPOCH, STEPS = 5, 12


class Augmented(Dataset):
    """Twenty frames whose actions are disturbed by the random numbers of three libraries."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        example = dataset()[9 * index]
        noise = torch.randn(4).numpy() + np.random.randn(4) + random.gauss(0, 1)
        return {**example, "actions": example["actions"] + 0.1 * noise.astype(np.float32)}


SETTINGS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 4,
    "save_strategy": "steps",
    "save_steps": 100,
    "ema_decay": 0.9,
    "lr_scheduler_type": "cosine",
    "ignore_data_skip": False,
}


class StopAfter(TrainerCallback):
    """Saves after a step and breaks off, as a run does that is killed."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == self.step

    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def train(folder: Path, mixed: bool = False, stop_after: int | None = None, resume: bool = False, **settings):
    trainer = make_trainer(folder, **{**SETTINGS, **settings})
    trainer.train_dataset = Augmented()
    if mixed:
        sources = [Subset(Augmented(), range(7)), Subset(Augmented(), range(7, 20))]
        trainer.train_dataset = Mixture(sources, [1, 2], 4 * STEPS, seed=3)
    if stop_after is None:
        trainer.train(resume_from_checkpoint=resume)
    else:
        trainer.add_callback(StopAfter(stop_after))
        with pytest.raises(KeyboardInterrupt):
            trainer.train(resume_from_checkpoint=resume)
    return trainer


def everything(trainer) -> dict[str, torch.Tensor]:
    """Weights, averages and what the optimiser remembers."""
    found = dict(trainer.model.state_dict())
    found |= {f"average of {name}": average for name, average in trainer.average.weights.items()}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        found |= {f"{name} of parameter {number}": torch.as_tensor(value) for name, value in state.items()}
    return found


def log(trainer) -> list[dict]:
    """All that was logged but the times."""
    return [
        {name: value for name, value in entry.items() if not name.endswith(("runtime", "per_second", "total_flos"))}
        for entry in trainer.state.log_history
    ]


def assert_same(found, expected):
    theirs, ours = everything(expected), everything(found)
    assert ours.keys() == theirs.keys()
    different = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    assert not different, f"{len(different)} of {len(ours)} differ after resuming: {different[:5]}"
    *ours, our_end = log(found)
    *theirs, their_end = log(expected)
    assert ours == theirs
    assert our_end["train_loss"] == pytest.approx(their_end["train_loss"], rel=1e-6)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return {mixed: train(tmp_path_factory.mktemp("undisturbed"), mixed) for mixed in (False, True)}


PERSISTENT = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}


@pytest.mark.parametrize(
    ("mixed", "stops", "workers"),
    [
        pytest.param(False, (3, EPOCH, 7), {}, id="in the first epoch, at its end, in the second"),
        pytest.param(False, (EPOCH + 1,), {"dataloader_num_workers": 2}, id="workers"),
        pytest.param(False, (EPOCH,), PERSISTENT, id="persistent workers", marks=pytest.mark.slow),
        pytest.param(True, (4,), {"dataloader_num_workers": 2}, id="mixture, workers"),
        pytest.param(False, (STEPS,), {}, id="at the end, within an epoch"),
    ],
)
def test_resumed_runs_end_as_undisturbed_ones(tmp_path, undisturbed, mixed, stops, workers):
    for i, step in enumerate(stops):
        train(tmp_path, mixed, step, resume=i > 0, **workers)
    resumed = train(tmp_path, mixed, resume=True, **workers)
    assert resumed.state.global_step == STEPS
    assert_same(resumed, undisturbed[mixed])


# ------------------------------------------------------------------------------------------------- damaged checkpoints
def make_checkpoint(folder: Path, step: int) -> Path:
    aside = folder / "_unfinished" / f"checkpoint-{step}"
    (aside / "sub").mkdir(parents=True)
    for name in ("progress_0.json", "scheduler.pt", "sub/weights.bin"):
        (aside / name).write_bytes(bytes(range(200)) * step)
    publish(aside, folder / aside.name)
    return folder / aside.name


def overwrite(file: Path):
    content = bytearray(file.read_bytes())
    content[17] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda c: overwrite(c / "sub" / "weights.bin"), "content of sub/weights.bin is not what was written"),
        (lambda c: (c / "scheduler.pt").write_bytes(b"x"), "scheduler.pt has 1 bytes, but 600 were written"),
        (lambda c: (c / "sub" / "weights.bin").unlink(), "sub/weights.bin is missing"),
        (lambda c: (c / "manifest.json").unlink(), "has no manifest.json"),
        (lambda c: (c / "manifest.json").write_text('{"files": {'), "manifest.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog, damage, reason):
    good, bad = make_checkpoint(tmp_path, 2), make_checkpoint(tmp_path, 3)
    assert problem_of(bad) is None
    damage(bad)
    assert newest_good_checkpoint(tmp_path) == good
    assert "checkpoint-3 cannot be resumed from" in caplog.text
    assert reason in caplog.text
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["_damaged-checkpoint-3", "checkpoint-2"]


def test_half_written_checkpoints_are_no_checkpoints(tmp_path):
    (tmp_path / "_unfinished" / "checkpoint-9").mkdir(parents=True)
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_good_checkpoint(tmp_path) is None
    assert newest_good_checkpoint(tmp_path / "nowhere") is None


def test_the_newest_is_the_one_with_the_most_steps(tmp_path):
    for step in (9, 100, 20):
        make_checkpoint(tmp_path, step)
    assert newest_good_checkpoint(tmp_path).name == "checkpoint-100"


def test_publishing_replaces_what_had_the_name(tmp_path):
    overwrite(make_checkpoint(tmp_path, 3) / "scheduler.pt")
    assert problem_of(make_checkpoint(tmp_path, 3)) is None


def test_digest_does_not_pass_over_anything(tmp_path):
    file, content = tmp_path / "file", bytearray(np.random.default_rng(0).bytes(1000))
    digests = set()
    for position in (None, 0, 99, 100, 550, 999):
        changed = bytearray(content)
        if position is not None:
            changed[position] ^= 128
        file.write_bytes(changed)
        digests.add(digest(file, part_size=100))
    assert len(digests) == 6


def test_the_old_checkpoint_goes_only_when_the_new_one_is_whole(tmp_path):
    """With save_total_limit=1, whenever a file of the new one is written the old one is still there, whole."""

    seen = []

    class Witness(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(sorted(path.name for path in Path(args.output_dir).iterdir() if path.name != IN_USE))

    trainer = make_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1)
    save, whole = trainer._save_optimizer_and_scheduler, []

    def save_and_look(folder):
        save(folder)
        whole.append([c.name for c in (tmp_path / "run").glob("checkpoint-*") if problem_of(c) is None])

    trainer._save_optimizer_and_scheduler = save_and_look
    trainer.add_callback(Witness())
    trainer.train()
    assert whole == [[], ["checkpoint-1"], ["checkpoint-2"]]
    assert seen == [["checkpoint-1"], ["checkpoint-2"], ["checkpoint-3"]]


def test_resuming_from_a_damaged_checkpoint_by_name_is_refused(tmp_path):
    train(tmp_path, stop_after=1)
    checkpoint = tmp_path / "run" / "checkpoint-1"
    overwrite(checkpoint / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint-1 cannot be resumed from: the content of optimizer\.pt"):
        make_trainer(tmp_path, **SETTINGS).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        train(tmp_path, resume=True)


def test_weights_alone_are_nothing_to_resume_from(tmp_path, caplog):
    train(tmp_path, stop_after=1, save_only_model=True, ema_decay=None)
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        train(tmp_path, resume=True, ema_decay=None)
    assert "weights only (save_only_model)" in caplog.text


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_steps": 2, "save_total_limit": 1}
    trainer = make_trainer(
        tmp_path, **{**SETTINGS, **best, "max_steps": 4}, eval_strategy="steps", eval_steps=2, sample_in_eval=False
    )
    trainer.train_dataset, trainer.eval_dataset = Augmented(), Subset(dataset(), range(4))
    trainer.train()
    folder = Path(trainer.state.best_model_checkpoint)
    assert folder.parent == tmp_path / "run" and problem_of(folder) is None
    assert json.loads((folder / "trainer_state.json").read_text())["best_model_checkpoint"] == str(folder)


# ------------------------------------------------------------------------------------------------------ the final model
def test_a_model_is_written_aside_and_its_config_comes_last(tmp_path):
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "model.safetensors").write_text("old")
    with pytest.raises(KeyboardInterrupt), written_aside(tmp_path, is_writer=True) as aside:
        (aside / "model.safetensors").write_text("ne")
        raise KeyboardInterrupt
    assert (tmp_path / "model.safetensors").read_text() == (tmp_path / "config.json").read_text() == "old"
    with written_aside(tmp_path, is_writer=True) as aside:
        assert not any(aside.iterdir()), "what a killed run left was taken over"
        (aside / "config.json").write_text("new")
        (aside / "templates").mkdir()
        (aside / "templates" / "a.jinja").write_text("new")
        (aside / "model.safetensors").write_text("new")
    found = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == dict.fromkeys(("config.json", "model.safetensors", "templates/a.jinja"), "new")


def test_the_saved_model_loads(tmp_path):
    model, processor = make_policy(tmp_path / "vlm")
    make_trainer(tmp_path, model, processor).save_model()
    again = KIVLAForActionPrediction.from_pretrained(tmp_path / "run")
    assert KIVLAProcessor.from_pretrained(tmp_path / "run").to_dict() == processor.to_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    assert not (tmp_path / "run" / "_unfinished").exists()
    assert load_file(tmp_path / "run" / "model.safetensors")


# --------------------------------------------------------------------------------------------------------------- room
def test_too_little_room_is_said_before_the_first_step(tmp_path, caplog):
    with pytest.raises(OSError, match=r"free, but a checkpoint and the final policy take about 1000000000\.0 GB"):
        check_output_folder(tmp_path, needed=10**18, wanted=10**18)
    with caplog.at_level(logging.WARNING):
        check_output_folder(tmp_path, needed=1, wanted=10**18)
    assert "Set save_total_limit" in caplog.text
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_said_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Checkpoints cannot be written to .*/file/run: Not a directory\. Choose"):
        check_output_folder(tmp_path / "file" / "run", needed=1, wanted=1)


def test_the_estimate_is_that_of_a_real_checkpoint(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("kivla.training.resumable_trainer.check_output_folder", lambda *sizes: asked.append(sizes[1:]))
    trainer = train(tmp_path, stop_after=1, save_steps=4, save_total_limit=1)
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    files = ("model.safetensors", "optimizer.pt", "ema.safetensors")
    real = sum((tmp_path / "run" / "checkpoint-1" / name).stat().st_size for name in files)
    ((needed, wanted),) = asked
    assert needed - weights == pytest.approx(real, rel=0.1)
    assert wanted - weights == 2 * (needed - weights), "one that is kept and one that is being written"

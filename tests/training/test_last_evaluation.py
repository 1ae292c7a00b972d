"""The weights that a run ends with are evaluated once."""

import json
from types import SimpleNamespace

import pytest

from kivla.cli import main
from kivla.training.last_evaluation import LastEvaluation
from kivla.training.trainer import KIVLATrainer
from tests.commands.test_commands import TINY
from tests.helpers.policies import DATASET


def at(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step)


def trainer_at(step: int, load_best: bool = False) -> SimpleNamespace:
    args = SimpleNamespace(load_best_model_at_end=load_best)
    return SimpleNamespace(state=at(step), args=args, evaluate=lambda: {"measured": "anew"})


def test_what_training_ended_with_is_not_measured_again():
    last = LastEvaluation()
    last.on_evaluate(None, at(4), None, {"eval_train_loss": 4.0, "eval_old": 0.0})
    last.on_evaluate(None, at(8), None, {"eval_train_loss": 8.0})
    last.on_evaluate(None, at(8), None, {"eval_held_out_loss": 9.0})
    assert last.of(trainer_at(8)) == {"eval_train_loss": 8.0, "eval_held_out_loss": 9.0}
    assert last.of(trainer_at(9)) == {"measured": "anew"}, "of other weights"
    assert last.of(trainer_at(8, load_best=True)) == {"measured": "anew"}, "the best ones were loaded since"
    assert LastEvaluation().of(trainer_at(8)) == {"measured": "anew"}


@pytest.mark.parametrize("strategy, count", [("steps", 1), ("no", 1)])
def test_a_run_evaluates_its_last_weights_once(vlm, tmp_path, monkeypatch, strategy, count):
    evaluated, loop = [], KIVLATrainer.evaluation_loop

    def counted(self, *args, **kwargs):
        evaluated.append(self.state.global_step)
        return loop(self, *args, **kwargs)

    monkeypatch.setattr(KIVLATrainer, "evaluation_loop", counted)
    options = [f"--{name}={value}" for name, value in TINY.items()]
    given = ["--dataset", str(DATASET), "--output_dir", str(tmp_path / "run"), "--max_steps", "2", *options]
    main(["train", "--vlm", str(vlm), *given, "--eval_strategy", strategy, "--max_eval_frames", "4"])
    assert evaluated.count(2) - 1 == count, "the evaluation, and the chunks that are drawn"
    metrics = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert {"eval_train_loss", "eval_train_action_mae", "epoch"} <= metrics.keys()

"""The log of a run is lines that people read, by the names that trackers have."""

import pytest

from kivla.cli import main
from kivla.training.readable_log import log_line
from tests.commands.test_commands import TINY
from tests.helpers.policies import DATASET


def test_a_training_step():
    logs = {"loss": 1.23456, "token_loss": 0.5, "learning_rate": 2.5e-05, "epoch": 0.1, "total_flos": 3}
    assert log_line(logs, 1200) == "step 1,200:  loss 1.235  token_loss 0.5  learning_rate 2.5e-05"
    assert log_line({"loss": 1.0}, 1) == "step 1:  loss 1"


def test_an_evaluation_names_its_set_once_and_lists_dimensions():
    logs = {"loss": 9.0, "action_mae": 1.5, "action_mae_0": 1.0, "action_mae_1": 2.0, "runtime": 3.0}
    line = log_line({**{f"eval_held_out_{name}": value for name, value in logs.items()}, "epoch": 1.0}, 7)
    assert line == "step 7, eval_held_out:  loss 9  action_mae 1.5  action_mae_... 1 2"
    assert log_line({"eval_loss": 9.0, "eval_runtime": 3.0, "epoch": 1.0}, 7) == "step 7, eval:  loss 9"


def test_the_averages_of_the_whole_run_are_not_a_step():
    assert log_line({"train_runtime": 1.0, "train_loss": 2.0}, 9) is None


@pytest.mark.slow
def test_a_run_prints_lines(vlm, tmp_path, capsys):
    settings = {**TINY, "vlm": vlm, "dataset": DATASET, "max_steps": 2, "output_dir": tmp_path}
    for bars in ("false", "true"):
        words = {**settings, "disable_tqdm": bars, "output_dir": tmp_path / bars}
        main(["train", *(str(word) for name, value in words.items() for word in (f"--{name}", value))])
        printed = capsys.readouterr().out
        assert "{'" not in printed and "step 2:  loss " in printed and "step 2, eval_train:  token_loss " in printed

"""What would do nothing is refused by a command, by name, and what is used is not."""

import pytest

from kivla.training.idle_options import idle_options
from kivla.training.run_arguments import RunArguments


@pytest.mark.parametrize(
    ("given", "idle"),
    [
        ({}, []),
        ({"hub_model_id": "me/policy", "hub_private_repo": True}, ["hub_model_id", "hub_private_repo"]),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": False}}, ["gradient_checkpointing_kwargs"]),
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}, []),
        ({"eval_strategy": "no", "eval_steps": 5}, ["eval_steps"]),
        ({"eval_strategy": "steps", "eval_steps": 5}, []),
        ({"save_strategy": "epoch", "save_steps": 5}, ["save_steps"]),
        ({"save_strategy": "no", "save_total_limit": 5}, ["save_total_limit"]),
        ({"logging_strategy": "epoch", "logging_steps": 5}, ["logging_steps"]),
        ({"metric_for_best_model": "flow_loss"}, ["metric_for_best_model"]),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, ["warmup_steps"]),
        ({"do_train": True, "do_predict": True}, ["do_predict"]),
        ({"dataloader_num_workers": 0, "dataloader_persistent_workers": True}, ["dataloader_persistent_workers"]),
    ],
    ids=lambda value: " ".join(map(str, value)) or "none",
)
def test_idle_options(given, idle, tmp_path):
    assert list(idle_options(RunArguments(output_dir=str(tmp_path), **given))) == idle

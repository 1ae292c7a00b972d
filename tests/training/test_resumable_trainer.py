"""ResumableTrainer by itself: an ordinary model of the library, an ordinary dataset, no policy anywhere."""

from functools import partial

import datasets
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from kivla.training.arguments import ResumableTrainingArguments
from kivla.training.checkpoints import OtherRunError
from kivla.training.resumable_trainer import ResumableTrainer
from kivla.training.sole_use import IN_USE, InUseError, sole_use
from tests.helpers.another_process import another_process


class KillAt(TrainerCallback):
    """The process dies in the middle of this step: nothing is tidied up."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make(folder, steps: int = 6, **settings) -> ResumableTrainer:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=32, max_position_embeddings=8, num_labels=2, **sizes))
    rows = [{"input_ids": [i % 32, (3 * i) % 32, 7], "labels": i % 2, "note": "not for the model"} for i in range(20)]
    defaults = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 2}
    args = ResumableTrainingArguments(
        str(folder), max_steps=steps, use_cpu=True, report_to="none", disable_tqdm=True, **{**defaults, **settings}
    )
    data = datasets.Dataset.from_list(rows)
    return ResumableTrainer(model, args, default_data_collator, train_dataset=data)


def test_killed_and_resumed_it_ends_as_if_it_had_not_been(tmp_path):
    whole = make(tmp_path / "a", ema_decay=0.5)
    start = {name: weight.clone() for name, weight in whole.model.state_dict().items()}
    whole.train()
    killed = make(tmp_path / "b", ema_decay=0.5)
    killed.add_callback(KillAt(4))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    again = make(tmp_path / "b", ema_decay=0.5)
    torch.nn.init.normal_(again.model.classifier.weight)  # whatever it is: the checkpoint's are taken
    again.train(resume_from_checkpoint=again.newest_checkpoint())
    assert again.state.global_step == 6
    expected = whole.model.state_dict()
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert any(not torch.equal(start[name], weight) for name, weight in expected.items()), "nothing was learned"
    logged = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, again)]
    assert logged[0] == logged[1]


def test_another_run_is_refused_by_name(tmp_path):
    make(tmp_path, steps=2).train()
    with pytest.raises(OtherRunError, match=r"training\.learning_rate: was 5e-05, is 0.1"):
        make(tmp_path, steps=2, learning_rate=0.1).train()


def test_a_folder_that_another_process_trains_into_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("kivla.training.resumable_trainer.sole_use", partial(sole_use, patience=0))
    refused = pytest.raises(InUseError, match="is being filled by another process")
    with another_process(tmp_path, name=""), refused:
        make(tmp_path, restart=True).train()
    make(tmp_path).train()
    assert not (tmp_path / IN_USE).exists()


def test_plain_arguments_are_refused(tmp_path):
    model = make(tmp_path).model
    with pytest.raises(TypeError, match="args must be ResumableTrainingArguments, got TrainingArguments"):
        ResumableTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True))

"""Data of other sizes than the policy's is refused before training, or with its first batch."""

import re

import datasets
import pytest
import torch
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from kivla import KIVLACollator, KIVLATrainer, KIVLATrainingArguments, LeRobotDataset
from kivla.training.data.mixture import Mixture
from tests.helpers.policies import CHUNK, DATASET, dataset, make_policy

OTHER = CHUNK - 2


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def short():
    return LeRobotDataset(DATASET, chunk_size=OTHER)


def _rows(data, with_padding: bool = False) -> list[dict]:
    names = ("images", "text", "state", "actions") + (("action_is_pad",) if with_padding else ())
    return [{name: data[i][name] for name in names} for i in range(4)]


class Stream(IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


def _columns(data) -> datasets.Dataset:
    names = ("text", "state", "actions")
    features = {name: [row[name] if name == "text" else row[name].tolist() for row in _rows(data)] for name in names}
    return datasets.Dataset.from_dict({**features, "images": [[] for _ in features["text"]]})


KNOWN_BEFORE = {
    "LeRobotDataset": lambda data: data,
    "Subset": lambda data: Subset(data, [0, 1]),
    "ConcatDataset": lambda data: ConcatDataset([dataset(), data]),
    "Mixture": lambda data: Mixture([dataset(), data], [1, 1], 20),
    "Subset of a mixture": lambda data: Subset(Mixture([data], [1], 20), [0]),
}
KNOWN_BY_ITS_EXAMPLES = {"a list": _rows, "a stream": lambda data: Stream(_rows(data)), "datasets": _columns}


def make(policy, folder, **given) -> KIVLATrainer:
    args = KIVLATrainingArguments(
        str(folder), max_steps=1, use_cpu=True, report_to="none", save_strategy="no", per_device_train_batch_size=2
    )
    return KIVLATrainer(policy[0], args, processing_class=policy[1], **given)


@pytest.mark.parametrize("kind", KNOWN_BEFORE)
@pytest.mark.parametrize("role", ["train_dataset", "eval_dataset", "one of several", "evaluate", "predict"])
def test_another_chunk_size_is_known_before_training(policy, short, tmp_path, kind, role):
    data = KNOWN_BEFORE[kind](short)
    with pytest.raises(ValueError, match="was read with chunk_size=4, but the policy acts in chunks of 6"):
        if role in ("evaluate", "predict"):
            getattr(make(policy, tmp_path), role)(data)
        elif role == "one of several":
            make(policy, tmp_path, eval_dataset={"a": dataset(), "b": data})
        else:
            make(policy, tmp_path, **{role: data})
    make(policy, tmp_path, train_dataset=KNOWN_BEFORE[kind](dataset()))


@pytest.mark.parametrize("kind", KNOWN_BY_ITS_EXAMPLES)
def test_another_chunk_size_is_known_by_the_first_examples(policy, short, tmp_path, kind):
    with pytest.raises(ValueError, match=r"Example 0 of this batch has 4 actions.*chunks of 6.*chunk_size=6"):
        make(policy, tmp_path, train_dataset=KNOWN_BY_ITS_EXAMPLES[kind](short)).train()


def test_the_end_of_an_episode_is_no_other_chunk_size(policy, short):
    batch = KIVLACollator(policy[1])(_rows(short, with_padding=True))
    assert batch["action_mask"].any(2).sum(1).tolist() == [OTHER] * 4


def test_cameras(policy, tmp_path, monkeypatch):
    own = policy[1].cameras
    for cameras, problem in (
        ([*own, "observation.images.wrist"], "none is of 'observation.images.wrist'"),
        ([], f"the policy has no camera '{own[0]}'"),
        (["observation.images.front"], f"--cameras front={own[0]}"),
    ):
        monkeypatch.setattr(policy[1].robot(), "cameras", cameras)
        with pytest.raises(ValueError, match=re.escape(problem)):
            make(policy, tmp_path, train_dataset=dataset())
    mapped = KIVLACollator(policy[1], cameras={"front": own[0]})
    make(policy, tmp_path, train_dataset=dataset(), data_collator=mapped)
    with pytest.raises(ValueError, match="The policy has no camera 'top'; it has"):
        KIVLACollator(policy[1], cameras={"top": own[0]})


def test_another_robot(policy, tmp_path, monkeypatch):
    named = LeRobotDataset(DATASET, chunk_size=CHUNK, robot="left")
    with pytest.raises(ValueError, match=r"a single robot without a name, got robot='left'"):
        make(policy, tmp_path, train_dataset=named)
    data = LeRobotDataset(DATASET, chunk_size=CHUNK)
    monkeypatch.setattr(data, "action_dim", 3)
    with pytest.raises(ValueError, match="has actions of 3 dimensions, the processor's robot has 4"):
        make(policy, tmp_path, train_dataset=data)


def test_a_stream_of_whole_chunks_is_fine(policy, tmp_path):
    trainer = make(policy, tmp_path, train_dataset=Stream(_rows(dataset())))
    trainer.train()
    assert trainer.state.global_step == 1 and torch.isfinite(torch.tensor(trainer.state.log_history[-1]["train_loss"]))

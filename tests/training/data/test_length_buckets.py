"""Grouping by length inside a step: less padding, the same step."""

import datasets
import pytest
import torch

from kivla import KIVLATrainer, KIVLATrainingArguments, LeRobotDataset
from kivla.simulation import make_questions
from kivla.training.data.example_order import ExampleOrder
from kivla.training.data.length_buckets import StepBuckets
from kivla.training.data.mixture import Mixture
from kivla.training.data.vlm.dataset import StreamedRows, VLMDataset
from tests.helpers.policies import CHUNK, DATASET, make_policy
from tests.helpers.tolerance import assert_close_relative

WORDS = ["a", "a much longer question, with many words", "two words"]


class Seen(KIVLATrainer):
    """Remembers the widths of its batches, and the gradient of the backbone before the last step."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.widths.append(inputs["input_ids"].shape[1])
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.gradient = torch.cat([p.grad.flatten() for p in model.vlm.parameters() if p.grad is not None])
        return loss


def train(folder, bucketed: bool) -> Seen:
    model, processor = make_policy(folder / "vlm")
    questions = datasets.Dataset.from_dict(
        {"images": [[]] * 3, "question": WORDS, "answer": ["yes", "no", "three words more"]}
    )
    mixture = Mixture([LeRobotDataset(DATASET, CHUNK), VLMDataset(questions)], [1, 1], 12, seed=1)
    args = KIVLATrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=6,
        bucket_by_length=bucketed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Seen(model, args, train_dataset=mixture, processing_class=processor)
    trainer.widths = []
    trainer.train()
    return trainer


def test_a_bucketed_step_has_less_padding_and_the_same_gradient(tmp_path):
    plain, bucketed = train(tmp_path / "plain", False), train(tmp_path / "bucketed", True)
    assert sum(bucketed.widths) < sum(plain.widths), (bucketed.widths, plain.widths)
    assert_close_relative(bucketed.gradient, plain.gradient, what="gradient")


def test_every_step_keeps_its_examples():
    order = ExampleOrder(20, seed=0, shuffle=True)
    buckets = StepBuckets(order, 6, lambda i: i % 5)
    for epoch in (0, 1):
        buckets.set_epoch(epoch)
        plain, grouped = list(order), list(buckets)
        for start in range(0, 20, 6):
            step = grouped[start : start + 6]
            assert sorted(step) == sorted(plain[start : start + 6]), "an example changed its step"
            assert [i % 5 for i in step] == sorted(i % 5 for i in step), "not from small to large"
    assert len(buckets) == 20


def test_sizes_are_known_without_decoding():
    robot = LeRobotDataset(DATASET, CHUNK)
    for index in (0, len(robot) - 1):
        example = robot[index]
        assert robot.size_of(index) == (len(example["images"]), len(example["text"]))
    questions = make_questions(3, seed=0)
    data = VLMDataset(questions)
    assert [data.size_of(i)[0] for i in range(3)] == [len(data[i]["images"]) for i in range(3)]
    texts = VLMDataset(datasets.Dataset.from_dict({"images": [[]] * 3, "question": WORDS, "answer": ["b"] * 3}))
    assert sorted(range(3), key=texts.size_of) == sorted(range(3), key=lambda i: len(WORDS[i]))
    mixture = Mixture([robot, texts], [1, 1], 6, seed=1)
    assert [mixture.size_of(i)[0] for i in range(6)] == [len(mixture[i]["images"]) for i in range(6)]


def test_a_stream_is_refused():
    rows = datasets.Dataset.from_dict({"images": [[]] * 3, "question": WORDS, "answer": ["b"] * 3})
    stream = VLMDataset(StreamedRows(rows.to_iterable_dataset(), num_rows=3))
    with pytest.raises(ValueError, match="Streamed rows cannot be grouped by length"):
        stream.size_of(0)

import pytest

from kivla.simulation import make_questions
from kivla.training.vlm_dataset import VLMDataset


def test_rows_become_examples():
    rows = make_questions(2, seed=0)
    for example, row in zip(VLMDataset(rows), rows, strict=True):
        question, answer = row["messages"]
        assert example["text"] == question["content"][1]["text"]
        assert example["response"] == answer["content"][0]["text"]
        assert example["images"] == row["images"]


def test_longer_conversations_are_refused():
    rows = make_questions(1, seed=0, multi_turn=True)
    with pytest.raises(ValueError, match="Row 0 has messages of"):
        VLMDataset(rows)[0]

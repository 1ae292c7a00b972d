import pickle
from collections import Counter

import datasets
import pytest

from kivla.training.data.mixture import Mixture
from kivla.training.data.vlm.dataset import VLMDataset
from kivla.training.data.vlm.streaming import StreamedRows

ROBOT, QUESTIONS = [f"robot {i}" for i in range(7)], [f"question {i}" for i in range(5)]


def test_shares_are_the_weights():
    drawn = Counter(example.split()[0] for example in Mixture([ROBOT, QUESTIONS], [3, 1], 4000))
    assert drawn["robot"] / 4000 == pytest.approx(0.75, abs=0.03), drawn


def test_every_example_of_a_source_comes_once_before_any_comes_twice():
    mixture = Mixture([ROBOT, QUESTIONS], [1, 1], 400, seed=3)
    for source in (ROBOT, QUESTIONS):
        drawn = [example for example in mixture if example in source]
        epochs = [drawn[i : i + len(source)] for i in range(0, len(drawn) - len(source), len(source))]
        assert all(sorted(epoch) == sorted(source) for epoch in epochs)
        assert epochs[0] != epochs[1], "each pass has an order of its own"


def test_an_example_depends_on_seed_and_index_alone():
    first, second, other = (Mixture([ROBOT, QUESTIONS], [1, 1], 50, seed) for seed in (0, 0, 1))
    forward = [first[i] for i in range(50)]
    assert [second[i] for i in reversed(range(50))] == forward[::-1]
    assert [other[i] for i in range(50)] != forward
    copied = pickle.loads(pickle.dumps(first))
    assert [copied[i] for i in range(50)] == forward


def test_a_stream_is_read_forward_and_again():
    rows = datasets.Dataset.from_dict({"images": [[]] * 3, "question": ["a?", "b?", "c?"], "answer": ["1", "2", "3"]})
    stream = VLMDataset(StreamedRows(rows.to_iterable_dataset(), num_rows=3))
    mixture = Mixture([ROBOT, stream], [1, 1], 40)
    drawn = [example["response"] for example in mixture if isinstance(example, dict)]
    assert drawn == (["1", "2", "3"] * 40)[: len(drawn)]


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([ROBOT], [1, 1], "1 sources and weights"),
        ([ROBOT], [0], "positive"),
        ([ROBOT], [float("nan")], "positive"),
        ([ROBOT, []], [1, 1], "Source 1 of the mixture is empty"),
    ],
)
def test_bad_input_is_refused(sources, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(sources, weights, 10)

"""Frames in blocks: the same rows as at once, wherever the borders of blocks fall."""

import datasets
import numpy as np
import pytest

from kivla.training.data.lerobot import frame_table
from kivla.training.data.lerobot.frame_table import blocks, episode_runs, matrix

LENGTHS = np.array([3, 1, 5, 4, 2])
STARTS = np.cumsum(LENGTHS) - LENGTHS
NUMBERS = np.array([7, 2, 9, 4, 5])  # of the episodes
ROWS = int(LENGTHS.sum())


@pytest.fixture(params=[1, 2, 4, ROWS, 100])
def block_rows(request, monkeypatch):
    monkeypatch.setattr(frame_table, "BLOCK_ROWS", request.param)
    return request.param


@pytest.fixture(scope="module")
def table():
    action = np.arange(2.0 * ROWS, dtype=np.float32).reshape(ROWS, 2)
    columns = {"episode_index": np.repeat(NUMBERS, LENGTHS), "action": action.tolist()}
    features = datasets.Features(
        {"episode_index": datasets.Value("int64"), "action": datasets.List(datasets.Value("float32"), length=2)}
    )
    return datasets.Dataset.from_dict(columns, features=features).with_format("arrow")


def test_episodes_are_found_across_blocks(block_rows, table):
    indices, first_rows = episode_runs(table)
    np.testing.assert_array_equal(indices, NUMBERS)
    np.testing.assert_array_equal(first_rows, STARTS)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [4, 0], [2], [3, 1]])
def test_blocks_hold_the_rows_of_the_chosen_episodes(block_rows, table, chosen):
    rows, episodes, actions = [], [], []
    for number, episode, columns in blocks(table, ["action"], STARTS[chosen], LENGTHS[chosen]):
        assert 0 < len(number) <= block_rows
        rows += number.tolist()
        episodes += [chosen[i] for i in episode]
        actions += matrix(columns["action"])[:, 0].tolist()
    expected = [row for i in sorted(chosen) for row in range(STARTS[i], STARTS[i] + LENGTHS[i])]
    assert rows == expected
    assert episodes == [i for i in sorted(chosen) for _ in range(LENGTHS[i])]
    assert actions == [2.0 * row for row in expected]

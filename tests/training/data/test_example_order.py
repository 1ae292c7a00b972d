"""Shuffling that computes one position alone."""

import numpy as np
import pytest

from kivla.training.data.example_order import fold_seed, shuffled


@pytest.mark.parametrize("length", [1, 2, 3, 255, 256, 257, 5000])
def test_every_example_comes_once(length):
    assert sorted(shuffled(position, length, seed=7) for position in range(length)) == list(range(length))


def test_all_orders_of_four_are_about_equally_likely():
    orders = [tuple(shuffled(position, 4, fold_seed(0, seed)) for position in range(4)) for seed in range(1200)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 50) ** 2 / 50).sum() < 49.7, "chi-square with 23 degrees of freedom: 1 in 1,000 beyond"


def test_a_billion_examples_need_no_memory_and_neighbours_are_far_apart():
    items = np.array([shuffled(position, 1_000_000_000, seed=3) for position in range(4000)])
    assert items.min() >= 0 and items.max() < 1_000_000_000 and len(set(items.tolist())) == 4000
    assert abs(items.mean() / 5e8 - 1) < 0.05
    assert abs(np.corrcoef(items[:-1], items[1:])[0, 1]) < 0.06

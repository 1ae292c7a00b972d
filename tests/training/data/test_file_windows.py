"""The order in which streamed examples come."""

from itertools import pairwise

import pytest

from kivla.training.data.example_order import ExampleOrder
from kivla.training.data.file_windows import FileWindows

# Three groups of files; the second has two pieces, which are not next to each other.
PIECES = [[(0, 12)], [(12, 9), (30, 4)], [(21, 9)]]
GROUP = {
    item: number for number, pieces in enumerate(PIECES) for first, n in pieces for item in range(first, first + n)
}


def test_every_item_comes_once_in_every_epoch_and_in_another_order():
    windows = FileWindows(PIECES, [10, 10, 10], 20)
    orders = [list(windows.epoch(seed)) for seed in range(3)]
    assert all(sorted(order) == list(range(34)) for order in orders) and len(windows) == 34
    assert len({tuple(order) for order in orders}) == 3
    again = FileWindows(PIECES, [10, 10, 10], 20)
    assert [again.item(position, 1) for position in (33, 5, 0)] == [orders[1][position] for position in (33, 5, 0)]


@pytest.mark.parametrize(("window_bytes", "groups"), [(10, 1), (20, 2), (30, 3)])
def test_a_window_has_the_groups_that_fit_and_shuffles_them_together(window_bytes, groups):
    order = list(FileWindows(PIECES, [10, 10, 10], window_bytes).epoch(seed=7))
    seen = list(dict.fromkeys(GROUP[item] for item in order))
    for start in range(0, 3, groups):
        window = seen[start : start + groups]
        size = sum(n for number in window for _, n in PIECES[number])
        part, order = order[:size], order[size:]
        assert {GROUP[item] for item in part} == set(window), "no item of another window comes between"
        assert part != sorted(part)
        changes = sum(GROUP[a] != GROUP[b] for a, b in pairwise(part))
        assert (changes > 3) == (len(window) > 1), "the files of a window are mixed"


def test_a_sample_is_of_few_groups():
    items = FileWindows(PIECES, [10, 10, 10], 10).sample(6, groups=2)
    assert len(items) == 6 and {GROUP[item] for item in items} == {0, 2}
    assert len(FileWindows(PIECES, [10, 10, 10], 10).sample(500, groups=8)) == 34


def test_epochs_of_the_trainer():
    windows = FileWindows(PIECES, [10, 10, 10], 10)
    order = ExampleOrder(34, 0, True, windows.epoch)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == list(range(34)) and sorted(second) == list(range(34, 68))
    assert [number - 34 for number in second] != first
    assert list(ExampleOrder(34, 0, False, windows.epoch)) == list(range(34)), "not shuffled is not shuffled"

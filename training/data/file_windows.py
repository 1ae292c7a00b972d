"""The order of examples that are streamed: shuffled within windows of files, so that a file is fetched once an epoch.

In a window are as many files as fit into the space that there is. The files come in another order in every epoch, and
so do the examples of a window. What comes when is a function of seed and position, as everywhere (`example_order`).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .example_order import shuffled


class FileWindows:
    """Which item stands at a position of an epoch, for items that come in pieces out of groups of files.

    Args:
        pieces: for each group of files its pieces, (n, 2): first item and number of items. An episode is a piece.
        sizes: bytes of each group.
        window_bytes: how large the groups of a window may be together; one alone may be larger.
    """

    def __init__(self, pieces: Sequence[ArrayLike], sizes: ArrayLike, window_bytes: int):
        self.window_bytes = window_bytes
        self._pieces = [np.array(own, np.int64).reshape(-1, 2) for own in pieces]
        self._counts = np.array([own[:, 1].sum() for own in self._pieces])  # items of each group
        self._sizes = np.array(sizes, np.int64)
        self._seed: int | None = None  # of the layout that was used last, which is kept for speed alone

    def __len__(self) -> int:
        return int(self._counts.sum())

    def item(self, position: int, seed: int) -> int:
        """The item at a position of the epoch with this seed: all come once.

        Args:
            seed: of the epoch; neighbouring ones give unrelated orders if they are of `fold_seed`.
        """
        if seed != self._seed:
            self._lay_out(seed)
        window = int(np.searchsorted(self._window_ends, position, side="right"))
        start = int(self._window_ends[window - 1]) if window else 0
        length = int(self._window_ends[window]) - start
        place = start + shuffled(position - start, length, seed + window)
        piece = int(np.searchsorted(self._piece_ends, place, side="right"))
        return int(self._first_items[piece]) + place - int(self._piece_ends[piece - 1] if piece else 0)

    def epoch(self, seed: int) -> Iterator[int]:
        """All items in the order of an epoch."""
        return (self.item(position, seed) for position in range(len(self)))

    def sample(self, count: int, groups: int) -> list[int]:
        """At most `count` items, spread evenly over so many groups of files, which are spread evenly themselves."""
        chosen = np.unique(np.linspace(0, len(self._pieces) - 1, groups).round().astype(int))
        items = np.concatenate(
            [np.arange(first, first + length) for group in chosen for first, length in self._pieces[group]]
        )
        places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
        return items[places].tolist()

    def _lay_out(self, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(self._pieces))
        ends, size = [], 0
        for i, group in enumerate(order):
            if i and size + self._sizes[group] > self.window_bytes:
                ends.append(i)
                size = 0
            size += self._sizes[group]
        counts = np.cumsum(self._counts[order])
        self._window_ends = counts[np.array([*ends, len(order)]) - 1]
        pieces = np.concatenate([self._pieces[group] for group in order])
        self._first_items, self._piece_ends = pieces[:, 0], np.cumsum(pieces[:, 1])
        self._seed = seed


__all__ = ["FileWindows"]

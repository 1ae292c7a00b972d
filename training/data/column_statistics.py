"""Statistics of a state or action column, as the processor's normalisation needs them.

Everything here is mergeable: accumulators of parts of the data (shards, processes) become one with `merge`. Memory does
not depend on the number of frames.
"""

from collections.abc import Callable, Iterable

import numpy as np

QUANTILES = {"q01": 0.01, "q99": 0.99}
_BINS = 1 << 16


class ColumnMoments:
    """Count, mean, sum of squared deviations, smallest and largest value, and where the quantiles are.

    Mean and deviations of a block are joined with those before it as in Chan, Golub and LeVeque (1983). For the
    quantiles, floats are counted by the upper 16 of their 32 bits, an order-preserving code (as in radix selection):
    `QuantileValues` then finds their exact values in a second pass.

    Args:
        dim: D.

    Attributes:
        count: frames.
        mean, min, max: (D,) float64.
        squares: (D,) sum of squared deviations from the mean (M2).
        histogram: (D, 65536) frames by the upper half of the code.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean, self.squares = np.zeros((2, dim))
        self.min, self.max = np.full(dim, np.inf), np.full(dim, -np.inf)
        self.histogram = np.zeros((dim, _BINS), np.int64)

    def update(self, block: np.ndarray) -> None:
        """Add (frames, D) float32."""
        if not len(block):
            return
        part = ColumnMoments(0)
        values = block.astype(np.float64)  # float32 sums over millions of frames lose digits
        part.count, part.mean = len(block), values.mean(axis=0)
        part.squares = ((values - part.mean) ** 2).sum(axis=0)
        part.min, part.max = values.min(axis=0), values.max(axis=0)
        part.histogram = np.stack([np.bincount(code >> 16, minlength=_BINS) for code in _ordered_codes(block).T])
        self.merge(part)

    def merge(self, other: "ColumnMoments") -> None:
        """Add the frames that another one has seen."""
        count = self.count + other.count
        if not count:
            return
        step = other.mean - self.mean
        self.mean = self.mean + step * (other.count / count)
        self.squares = self.squares + other.squares + step**2 * (self.count * other.count / count)
        self.count = count
        self.min, self.max = np.minimum(self.min, other.min), np.maximum(self.max, other.max)
        self.histogram += other.histogram


class QuantileValues:
    """The second pass: the exact values at the ranks that the quantiles lie between.

    Args:
        moments: of all the data, merged.
    """

    def __init__(self, moments: ColumnMoments):
        positions = np.array(list(QUANTILES.values())) * (moments.count - 1)
        self._fractions = positions - np.floor(positions)
        self._ranks = np.stack([np.floor(positions), np.ceil(positions)]).astype(np.int64).ravel()  # low ..., high ...
        cumulative = moments.histogram.cumsum(axis=1)
        # (D, ranks) the bin that holds each rank, and the rank within that bin
        self._bins = np.stack([np.searchsorted(row, self._ranks, side="right") for row in cumulative])
        before = cumulative - moments.histogram
        self._inner_ranks = self._ranks - np.take_along_axis(before, self._bins, axis=1)
        self.histograms = [{int(b): np.zeros(_BINS, np.int64) for b in bins} for bins in self._bins]

    def update(self, block: np.ndarray) -> None:
        """Add (frames, D) float32, of the same data."""
        for code, histograms in zip(_ordered_codes(block).T, self.histograms, strict=True):
            upper = code >> 16
            for number, histogram in histograms.items():
                histogram += np.bincount(code[upper == number] & 0xFFFF, minlength=_BINS)

    def merge(self, other: "QuantileValues") -> None:
        """Add the frames that another one, made of the same merged moments, has seen."""
        for mine, others in zip(self.histograms, other.histograms, strict=True):
            for number, histogram in mine.items():
                histogram += others[number]

    def values(self) -> dict[str, np.ndarray]:
        """(D,) float64 of each of `QUANTILES`: those of all frames together, with linear interpolation."""
        codes = np.array(
            [
                [
                    (int(b) << 16) + np.searchsorted(histograms[int(b)].cumsum(), rank, side="right")
                    for b, rank in zip(bins, ranks, strict=True)
                ]
                for bins, ranks, histograms in zip(self._bins, self._inner_ranks, self.histograms, strict=True)
            ],
            np.uint32,
        )
        low, high = np.split(_from_codes(codes).astype(np.float64), 2, axis=1)  # (D, quantiles) each
        return dict(zip(QUANTILES, (low + (high - low) * self._fractions).T, strict=True))


def column_statistics(read: Callable[[], Iterable[np.ndarray]], dim: int) -> dict[str, np.ndarray]:
    """Exact statistics of a column that is read twice, in blocks.

    Args:
        read: gives the blocks anew, (frames, D) float32 each, at least one frame in all.
        dim: D.

    Returns:
        `mean`, `std` (of the population, as LeRobot and openpi have it), `min`, `max`, `q01`, `q99`, each a float64
        array of shape (D,). The quantiles are numpy's of all frames together, with linear interpolation.
    """
    moments = ColumnMoments(dim)
    for block in read():
        moments.update(block)
    quantiles = QuantileValues(moments)
    for block in read():
        quantiles.update(block)
    std = np.sqrt(moments.squares / moments.count)
    return {"mean": moments.mean, "std": std, "min": moments.min, "max": moments.max, **quantiles.values()}


def _ordered_codes(values: np.ndarray) -> np.ndarray:
    """float32 -> uint32 of the same order."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _from_codes(codes: np.ndarray) -> np.ndarray:
    """Inverse of `_ordered_codes`."""
    return np.where(codes >> 31, codes & np.uint32(0x7FFFFFFF), ~codes).astype(np.uint32).view(np.float32)


__all__ = ["QUANTILES", "ColumnMoments", "QuantileValues", "column_statistics"]

"""The frames of a dataset, read in blocks: what is looked for among all of them costs no memory for each."""

from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import pyarrow as pa

BLOCK_ROWS = 1 << 16


def episode_runs(table: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(R,) the `episode_index` of each run of rows that have the same, and (R,) its first row."""
    indices, first_rows, last = [], [], None
    for start in range(0, len(table), BLOCK_ROWS):
        column = table[start : start + BLOCK_ROWS]["episode_index"].to_numpy()
        begins = np.r_[last is None or column[0] != last, column[1:] != column[:-1]]
        indices.append(column[begins])
        first_rows.append(start + np.flatnonzero(begins))
        last = column[-1]
    if not indices:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(indices), np.concatenate(first_rows)


def blocks(
    table: datasets.Dataset, columns: Sequence[str], first_rows: np.ndarray, lengths: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """Columns of some episodes, in the order of the table.

    Args:
        first_rows, lengths: (E,) which rows an episode has; episodes do not overlap.

    Yields:
        (n,) numbers of rows; (n,) which of the E episodes each is of; and the columns: (n,) numbers, or (n, D) vectors.
        n is at most `BLOCK_ROWS`.
    """
    order = np.argsort(first_rows)
    starts = first_rows[order]
    ends = starts + lengths[order]
    for block_start in range(0, len(table), BLOCK_ROWS):
        block_end = min(block_start + BLOCK_ROWS, len(table))
        episodes = slice(np.searchsorted(ends, block_start, side="right"), np.searchsorted(starts, block_end))
        low, high = np.maximum(starts[episodes], block_start), np.minimum(ends[episodes], block_end)
        sizes = high - low
        if not sizes.sum():
            continue
        rows = np.arange(sizes.sum()) + np.repeat(low - np.cumsum(sizes) + sizes, sizes)
        slab = table[block_start:block_end]
        arrays = {name: _array(slab[name]) for name in columns}
        if len(rows) < block_end - block_start:
            arrays = {name: array[rows - block_start] for name, array in arrays.items()}
        yield rows, np.repeat(order[episodes], sizes), arrays


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of vectors, or of numbers, as (rows, D) floats; without a copy where Arrow allows it."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_nested(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)[:, None]


def _array(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy() if pa.types.is_integer(column.type) or pa.types.is_float64(column.type) else matrix(column)


__all__ = ["BLOCK_ROWS", "blocks", "episode_runs", "matrix"]

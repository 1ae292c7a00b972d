"""Statistics of a state or action column, as the processor's normalisation needs them."""

from collections.abc import Sequence

import numpy as np


def column_statistics(blocks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Exact statistics of a column that is stored in blocks.

    Only one dimension is in memory at a time, so memory-mapped blocks of any number of frames are fine.

    Args:
        blocks: arrays of shape (frames, D), all with the same D.

    Returns:
        `mean`, `std` (of the population, as LeRobot and openpi have it), `min`, `max`, `q01`, `q99`, each a float64
        array of shape (D,). The quantiles are those of all frames together, with linear interpolation.
    """
    dimensions = [
        _vector_statistics(np.concatenate([block[:, d] for block in blocks])) for d in range(blocks[0].shape[1])
    ]
    return {name: np.array([dimension[name] for dimension in dimensions]) for name in dimensions[0]}


def _vector_statistics(values: np.ndarray) -> dict[str, float]:
    values = values.astype(np.float64)  # float32 sums over millions of frames lose digits
    q01, q99 = np.quantile(values, [0.01, 0.99])
    return {
        "mean": values.mean(),
        "std": values.std(),
        "min": values.min(),
        "max": values.max(),
        "q01": q01,
        "q99": q99,
    }

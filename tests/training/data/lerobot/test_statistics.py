"""Statistics in blocks and shards: numpy's of all frames together."""

import numpy as np
import pytest

from kivla.training.data.column_statistics import ColumnMoments, QuantileValues, column_statistics

RNG = np.random.default_rng(0)
COLUMNS = {
    "normal": RNG.normal(size=(1000, 3)),
    "far from zero": 1e6 + RNG.normal(size=(1000, 2)),
    "large and small": RNG.normal(size=(1000, 2)) * 10.0 ** RNG.integers(-30, 30, (1000, 2)),
    "few values": RNG.integers(-2, 3, (1000, 2)),
    "constant": np.full((300, 2), -1.5),
    "both zeros": np.array([[0.0], [-0.0]] * 50),
    "one frame": np.array([[3.25, -7.0]]),
}


def numpys(values: np.ndarray) -> dict[str, np.ndarray]:
    values = values.astype(np.float64)
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    return {
        **{name: getattr(values, name)(axis=0) for name in ("mean", "std", "min", "max")},
        **{"q01": low, "q99": high},
    }


def assert_like_numpy(found: dict[str, np.ndarray], values: np.ndarray) -> None:
    for name, expected in numpys(values).items():
        scale = np.abs(values).max() if name in ("mean", "std") else 0.0
        np.testing.assert_allclose(found[name], expected, rtol=1e-9, atol=1e-12 * scale, err_msg=name)


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("block_rows", [1, 7, 10_000])
def test_blocks_of_any_size_give_numpys_statistics(name, block_rows):
    values = COLUMNS[name].astype(np.float32)
    blocks = [values[i : i + block_rows] for i in range(0, len(values), block_rows)]
    assert_like_numpy(column_statistics(lambda: iter(blocks), values.shape[1]), values)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_merge_in_any_order(order):
    values = COLUMNS["far from zero"].astype(np.float32)
    shards = np.split(values, [10, 600])
    moments = []
    for shard in shards:
        moments.append(ColumnMoments(2))
        moments[-1].update(shard)
    merged = ColumnMoments(2)
    for i in order:
        merged.merge(moments[i])
    whole = QuantileValues(merged)
    for i in order:
        part = QuantileValues(merged)
        part.update(shards[i])
        whole.merge(part)
    std = np.sqrt(merged.squares / merged.count)
    found = {"mean": merged.mean, "std": std, "min": merged.min, "max": merged.max, **whole.values()}
    assert merged.count == len(values)
    assert_like_numpy(found, values)


def test_nothing_changes_nothing():
    moments = ColumnMoments(2)
    moments.update(COLUMNS["normal"][:5, :2].astype(np.float32))
    before = moments.mean.copy(), moments.squares.copy(), moments.histogram.copy()
    moments.update(np.empty((0, 2), np.float32))
    moments.merge(ColumnMoments(2))
    assert moments.count == 5
    for was, now in zip(before, (moments.mean, moments.squares, moments.histogram), strict=True):
        np.testing.assert_array_equal(now, was)

"""Normalisation of states and actions, and the statistics behind it.

Statistics are a dictionary of float arrays `(D,)`: `mean`, `std`, `min`, `max`, `q01`, `q99`, in robot units. Where
these would blow up the noise of a joint at rest, it is normalised by `low`, `high` and `scale` (`with_ranges`).
Normalised values are about -1..1 ("quantile") or of unit variance ("mean_std"), and no value of the data that the
statistics are of is beyond `MOST`. They are not clipped here; actions to be learned are (`RobotSpec.chunk`), and what a
robot is told to do may be, to the range of its data (`clip_to_range`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

STATISTICS = ("mean", "std", "min", "max", "q01", "q99")
# What takes the place of q01, q99 and std in normalisation; absent where nothing does.
RANGES = ("low", "high", "scale")

# The statistics that each mode cannot do without.
NORMALIZATION_MODES = {"quantile": ("q01", "q99"), "mean_std": ("mean", "std"), "none": ()}

# openpi adds this to the spread of every dimension. A dimension with a smaller spread counts as constant here.
EPSILON = 1e-6

# A joint moves rarely if the middle 98 % of its values span less than this share of all. (Ordinary: 0.15 and more.)
RARE = 0.1
# The range of a dimension is at least this share of its largest absolute value: float32, in which policies compute, has
# no more than 64 steps in it. (A joint of many turns may move by 100 of a million ticks, 0.0001.)
STILL = 2.0**-18
# So no value of the data is larger than this when it is normalised.
MOST = 2 / RARE - 1

# Of the width of a range: what is outside by less is within it, but for the rounding of float32.
_ROUNDING = 1e-5


class Normalizer:
    """Maps robot units to what the model sees, and back.

    The formulas are openpi's, so its checkpoints and statistics can be used as they are:

    * `"quantile"`: `(x - q01) / (q99 - q01 + 1e-6) * 2 - 1`
    * `"mean_std"`: `(x - mean) / (std + 1e-6)`
    * `"none"`: `x`

    Two deviations. Where a dimension does not vary (its spread is below 1e-6), openpi's formula divides by 1e-6, and a
    jitter of one millimetre becomes 1000. Here such a dimension is always 0 for the model, and always the constant
    for the robot. And where the statistics have `low`, `high` and `scale` (`with_ranges`), these take the place of
    `q01`, `q99` and `std`. In statistics without them (older policies, converted ones) only quantiles that coincide do
    not count: a gripper that closes in less than 1 % of the frames has `min` and `max` in their place.

    Numpy arrays and lists are computed in float64, torch tensors in float32 on their own device; both return float32.

    Args:
        statistics: what the mode needs, and perhaps more. May be None for `"none"`.
        mode: `"quantile"`, `"mean_std"` or `"none"`.

    Raises:
        ValueError: unknown mode; a statistic is missing, not finite, of another length than the others, or
            contradicts another (`std < 0`, `q99 < q01`, `max < min`).
    """

    def __init__(self, statistics: dict[str, np.ndarray] | None, mode: str = "quantile"):
        if mode not in NORMALIZATION_MODES:
            raise ValueError(f"Unknown normalisation mode {mode!r}, expected one of {list(NORMALIZATION_MODES)}.")
        statistics = _checked(statistics or {})
        missing = [name for name in NORMALIZATION_MODES[mode] if name not in statistics]
        if missing:
            raise ValueError(f"Mode {mode!r} needs the statistics {missing}; given were {list(statistics)}.")
        self.mode = mode
        if mode == "none":
            self.dim = None
            return
        if mode == "quantile":
            low, high = statistics.get("low", statistics["q01"]), statistics.get("high", statistics["q99"])
            if "low" not in statistics and "min" in statistics and "max" in statistics:
                rare = high - low < EPSILON
                low, high = np.where(rare, statistics["min"], low), np.where(rare, statistics["max"], high)
            constant = high - low < EPSILON
            scale = (high - low + EPSILON) / 2
            offset = np.where(constant, low, low + scale)
        else:
            std = statistics.get("scale", statistics["std"])
            constant = std < EPSILON
            scale = std + EPSILON
            offset = statistics["mean"]
        self.dim = len(offset)
        # normalised = (x - offset) · inverse_scale;  x = normalised · scale + offset
        self._offset = offset
        self._scale = np.where(constant, 0.0, scale)
        self._inverse_scale = np.where(constant, 0.0, 1 / scale)

    def normalize(self, values):
        """Robot units `(..., D)` -> normalised float32 `(..., D)`, an array or a tensor as given.

        Raises:
            ValueError: D is not that of the statistics, or a value is NaN or infinite (the message names its index).
        """
        values = self._checked_values(values)
        if self.mode == "none":
            return _float32(values)
        return _float32((values - _like(values, self._offset)) * _like(values, self._inverse_scale))

    def unnormalize(self, values):
        """Normalised `(..., D)` -> robot units, float32 `(..., D)`. The inverse of `normalize`; raises as it does."""
        values = self._checked_values(values)
        if self.mode == "none":
            return _float32(values)
        return _float32(values * _like(values, self._scale) + _like(values, self._offset))

    def _checked_values(self, values):
        """Finite values of the right dimension: arrays and lists as float64, tensors as float32."""
        is_numpy = isinstance(values, np.ndarray | Sequence)
        values = as_numbers(values) if is_numpy else values.float()
        if self.dim is not None and (values.ndim == 0 or values.shape[-1] != self.dim):
            raise ValueError(
                f"The normalisation statistics are for {self.dim} dimensions, but the values have shape "
                f"{tuple(values.shape)}: are these the statistics of another robot?"
            )
        _check_finite(values if is_numpy else values.detach().cpu().numpy(), "Values to (un)normalise")
        return values


def with_ranges(statistics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add what is to be normalised by, where quantiles and deviation would blow up the noise of a joint at rest.

    * Where `q99 - q01` is less than a tenth of `max - min` (a joint that rests, and moves in a few frames), `low` and
      `high` are `min` and `max`; elsewhere `q01` and `q99`.
    * `high - low` is at least 2^-18 of the largest absolute value, around the same middle: what is less is the rounding
      of float32, and near 0 for the model. A dimension that is exactly constant stays so.
    * `scale` is `std`, but at least `(max - min) / 19`; of a joint that moves rarely at least `(max - min) / 2`, about
      what quantiles would be replaced by.

    So no value of the data is beyond 19 in either mode, and none of a joint that moves rarely beyond 2. A held joint's
    noise cannot be told from the motion of a joint with small units or a large offset, and is kept.

    Args:
        statistics: all of `STATISTICS`.

    Returns:
        The same statistics; with `low`, `high` and `scale` where any of them differs from the quantiles or `std`.
    """
    smallest, largest, std = (statistics[name] for name in ("min", "max", "std"))
    width = largest - smallest
    rare = statistics["q99"] - statistics["q01"] < RARE * width
    low = np.where(rare, smallest, statistics["q01"])
    high = np.where(rare, largest, statistics["q99"])
    least = np.where(width > 0, STILL * np.maximum(np.abs(smallest), np.abs(largest)), 0.0)
    missing = np.maximum(least - (high - low), 0.0) / 2
    low, high = low - missing, high + missing
    scale = np.maximum(std, np.maximum(width / np.where(rare, 2, MOST), least / 2))
    ranges = {"low": low, "high": high, "scale": scale}
    replaced = {"low": statistics["q01"], "high": statistics["q99"], "scale": std}
    is_same = all(np.array_equal(ranges[name], replaced[name]) for name in RANGES)
    return dict(statistics) if is_same else {**statistics, **ranges}


def plain_statistics(statistics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Statistics for programs that know no `low`, `high` and `scale`: these stand where quantiles and `std` did."""
    names = {"q01": "low", "q99": "high", "std": "scale"}
    return {name: statistics.get(names.get(name), values) for name, values in statistics.items() if name not in RANGES}


def clip_to_range(values, low: np.ndarray, high: np.ndarray) -> tuple:
    """Values of the nearest kind that the data had, and what was changed.

    Args:
        values: (..., D) array or tensor, robot units.
        low, high: (D,), e.g. the statistics `min` and `max`.

    Returns:
        The values within `low..high`, of the type that was given, and a dict for people: `values`, how many lay
        outside; `of`, how many there are; `share`; `largest`, how far out the worst was, in widths of its dimension's
        range; and `dimension`, the worst one's (None if there is none).
    """
    if isinstance(values, np.ndarray):
        clipped = np.clip(values, low.astype(values.dtype), high.astype(values.dtype))
        changes = values - clipped
    else:
        clipped = values.clamp(values.new_tensor(low), values.new_tensor(high))
        changes = (values - clipped).detach().cpu().numpy()
    excess = np.abs(changes) / np.maximum(high - low, EPSILON)  # (..., D)
    outside = excess > _ROUNDING
    count = int(outside.sum())
    worst = excess.reshape(-1, excess.shape[-1]).max(0) if count else None  # (D,)
    return clipped, {
        "values": count,
        "of": outside.size,
        "share": count / max(outside.size, 1),
        "largest": float(worst.max()) if count else 0.0,
        "dimension": int(worst.argmax()) if count else None,
    }


def compute_statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """True statistics of `(N, D)` values over N: population standard deviation, exact 1 % and 99 % quantiles.

    (openpi estimates quantiles from a running histogram; LeRobot's `stats.json` averages those of the episodes.)

    Returns:
        float64 arrays `(D,)` by name: `STATISTICS`, and `RANGES` where a dimension needs them (`with_ranges`).

    Raises:
        ValueError: another shape, no rows, or a value that is NaN or infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"Statistics need values of shape (N, D) with N > 0, got {values.shape}.")
    _check_finite(values, "Values for statistics")
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    return with_ranges(
        {
            "mean": values.mean(axis=0),
            "std": values.std(axis=0),
            "min": values.min(axis=0),
            "max": values.max(axis=0),
            "q01": q01,
            "q99": q99,
        }
    )


def statistics_to_json(statistics: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Statistics -> lists of Python floats, ready for `json.dump`. Exact: floats survive JSON bit by bit.

    Raises:
        ValueError: as `Normalizer`, for statistics that are not finite, of unequal lengths or contradictory.
    """
    return {name: array.tolist() for name, array in _checked(statistics).items()}


def statistics_from_json(values: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """Inverse of `statistics_to_json`: float64 arrays `(D,)`. Others than `STATISTICS` and `RANGES` are left out."""
    return _checked(values)


def discretize_state(state: np.ndarray, num_bins: int = 256) -> np.ndarray:
    """Normalised state `(..., D)` -> integer bins `0 .. num_bins - 1` of equal width over -1..1, for the prompt.

    As openpi and LeRobot have it: `np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1`, so that values below -1 get
    the bin -1, and values of 1 and more the last bin.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    state = np.asarray(state, dtype=np.float64)
    _check_finite(state, "State")
    return np.digitize(state, np.linspace(-1, 1, num_bins + 1)[:-1]) - 1


def _checked(statistics: dict[str, Any]) -> dict[str, np.ndarray]:
    """The known statistics as float64 `(D,)` arrays, after checking that they can be of one data set."""
    known = [name for name in (*STATISTICS, *RANGES) if name in statistics]
    try:
        arrays = {name: np.asarray(statistics[name], dtype=np.float64) for name in known}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"Statistics must be lists of numbers by name: {error}") from error
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"Statistics must all have the shape (D,) with the same D, got {shapes}.")
    for name, array in arrays.items():
        _check_finite(array, f"Statistic {name!r}")
    if 0 < sum(name in arrays for name in RANGES) < len(RANGES):
        raise ValueError(f"Statistics have either all of {list(RANGES)} or none, got {list(arrays)}.")
    for low, high in (("q01", "q99"), ("min", "max"), ("low", "high")):
        if low in arrays and high in arrays and (arrays[high] < arrays[low]).any():
            dimension = int(np.argmax(arrays[high] < arrays[low]))
            raise ValueError(
                f"Statistics contradict each other in dimension {dimension}: "
                f"{high} = {arrays[high][dimension]} is below {low} = {arrays[low][dimension]}."
            )
    for name in ("std", "scale"):
        if name in arrays and (arrays[name] < 0).any():
            dimension = int(np.argmax(arrays[name] < 0))
            raise ValueError(f"Statistic {name!r} is negative in dimension {dimension}: {arrays[name][dimension]}.")
    return arrays


def _check_finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        index = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        raise ValueError(f"{what} must be finite, but the one at index {index} is {values[index]}.")


def as_numbers(values) -> np.ndarray:
    """As float64: lists, arrays, and tensors of any device and type.

    Raises:
        ValueError: not numbers (text is none), or rows of unequal length.
    """
    try:
        array = np.asarray(_to_numpy(values))
        if array.dtype.kind not in "fiubO":
            raise ValueError(f"got {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"Numbers were expected: {error}") from error


def _to_numpy(values):
    if torch.is_tensor(values):
        return values.detach().cpu().double().numpy()
    return [_to_numpy(value) for value in values] if isinstance(values, list | tuple) else values


def _like(values, constants: np.ndarray):
    """Constants as an array, or as a tensor of the device and type of `values`."""
    return constants if isinstance(values, np.ndarray) else values.new_tensor(constants)


def _float32(values):
    """Round to float32.

    Raises:
        ValueError: a value is too large for float32, and would be infinite.
    """
    if not isinstance(values, np.ndarray):
        return values
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    _check_finite(rounded, "Values in float32")
    return rounded

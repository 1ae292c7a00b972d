"""What relative actions need of datasets: statistics over all chunks, and the states that these are relative to."""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from ...processing.action_units import ActionUnits
from ...processing.normalization import with_ranges
from ...processing.pi_aloha import actions_to_pi, state_to_pi
from ...processing.relative_actions import RelativeActions
from .column_statistics import column_statistics
from .robot_dataset import RobotDataset, evenly_spread, joint_statistics

# Steps of chunks that are looked at together; memory does not depend on the size of a dataset
BLOCK_STEPS = 1 << 16
# An action that goes with the state's next step, and not with the next state, is an offset already
_CORRELATED = 0.5
# How far beyond its range an angle may be recorded: sensors are not exact
_MARGIN = 0.02


def robot_statistics(
    datasets: Sequence[RobotDataset], relative: RelativeActions | None = None, adapt_to_pi: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """Compute the statistics that a processor needs of one robot's datasets.

    Args:
        relative: which dimensions are relative; None for none.
        adapt_to_pi: as of `KIVLAProcessor`.

    Returns:
        `{"state": {...}, "actions": {...}}` as `RobotDataset.statistics`, and `"relative_actions"` where there are any;
        in π0's units with `adapt_to_pi`.

    Raises:
        ValueError: datasets of different robots.
    """
    convert = {"actions": actions_to_pi, "state": state_to_pi} if adapt_to_pi else {}
    statistics = joint_statistics(datasets, convert, normalized=("state",) if relative else ("actions", "state"))
    if relative is None:
        return statistics
    check_angles(relative, statistics)
    return {**statistics, **relative_statistics(datasets, relative, adapt_to_pi)}


def check_angles(relative: RelativeActions, statistics: dict[str, dict[str, np.ndarray]]) -> None:
    """Refuse angles that are not in the units that were said: their differences would be nonsense.

    Args:
        statistics: those of state and absolute actions.

    Raises:
        ValueError: an angle that wraps was recorded outside of its range, or a rotation has values that its form cannot
            have.
    """
    for dimension, (low, high) in relative.wraps.items():
        least, most = _recorded(relative, statistics, dimension)
        margin = _MARGIN * (high - low)
        if least < low - margin or most > high + margin:
            raise ValueError(
                f"--wrapping_angles: {relative.name(dimension)} is said to wrap from {low:g} to {high:g}, and was "
                f"recorded from {least:g} to {most:g}. Give the range in the units of the data; an angle that goes on "
                "beyond a turn does not wrap."
            )
    for rotation in relative.rotations:
        limit = rotation.largest * (1 + _MARGIN)
        for dimension in rotation.dimensions:
            least, most = _recorded(relative, statistics, dimension)
            if max(-least, most) > limit:
                raise ValueError(
                    f"--rotations: {relative.name(dimension)} is part of a rotation as {rotation.form}, whose values "
                    f"are within ±{rotation.largest:.4g}, and was recorded from {least:g} to {most:g}: another form, "
                    "or degrees (euler_xyz_degrees)?"
                )


def in_radians(relative: RelativeActions, statistics: dict[str, dict[str, np.ndarray]]) -> list[int]:
    """Dimensions that are said to be in degrees, or to wrap by such a range, and whose data look like radians."""
    degrees = {d for rotation in relative.rotations if "degrees" in rotation.form for d in rotation.dimensions}
    degrees |= {d for d, (low, high) in relative.wraps.items() if high - low > 100}
    ends = {d: _recorded(relative, statistics, d) for d in sorted(degrees)}
    return [d for d, (least, most) in ends.items() if max(-least, most) < np.pi * 1.01 and most - least > np.pi / 2]


def _recorded(relative: RelativeActions, statistics: dict, dimension: int) -> tuple[float, float]:
    """The smallest and largest value of a dimension, in actions and state."""
    columns = (("actions", dimension), ("state", relative.state_dimensions[dimension]))
    least, most = ([float(statistics[name][end][d]) for name, d in columns] for end in ("min", "max"))
    return min(least), max(most)


def relative_statistics(
    datasets: Sequence[RobotDataset], relative: RelativeActions, adapt_to_pi: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """`{"relative_actions": ...}`: over all steps of the chunks of all frames, without those past an episode's end."""
    units = _units(datasets[0], relative, adapt_to_pi)

    def read() -> Iterator[np.ndarray]:
        return chain.from_iterable(relative_blocks(data, units) for data in datasets)

    return {"relative_actions": with_ranges(column_statistics(read, datasets[0].action_dim))}


def relative_blocks(data: RobotDataset, units: ActionUnits) -> Iterator[np.ndarray]:
    """The learned actions of all real steps of all chunks, in blocks (steps, D) float32; no image is read.

    Raises:
        ValueError: the data has no state.
    """
    if not data.state_dim:
        raise ValueError(f"{data.name} has no state, so that its actions cannot be relative to it.")
    at_once = max(1, BLOCK_STEPS // data.chunk_size)
    for episode in data.episodes:
        frames = data.episode_frames(episode)
        actions, state = frames["actions"], frames["state"]
        for first in range(0, len(actions), at_once):
            starts = np.arange(first, min(first + at_once, len(actions)))
            steps = starts[:, None] + np.arange(data.chunk_size)  # (n, H)
            chunks = units.learned(actions[np.minimum(steps, len(actions) - 1)], state[starts])
            yield chunks[steps < len(actions)].astype(np.float32)


def learned_chunks(data: RobotDataset, units: ActionUnits, max_chunks: int) -> np.ndarray:
    """Up to `max_chunks` chunks, spread evenly, as they are learned but not normalised, (n, H, D); reads no image."""
    states = chunk_states(data, max_chunks) if units.relative is not None else None
    return units.learned(data.action_chunks(max_chunks), states)


def chunk_states(data: RobotDataset, max_chunks: int) -> np.ndarray:
    """The states of the frames at which `data.action_chunks(max_chunks)` begin, (n, Ds) float32; no image is read."""
    items = evenly_spread(len(data), max_chunks)
    states = np.empty((len(items), data.state_dim), np.float32)
    for episode in data.episodes:
        frames = data.episode_range(episode)
        inside = (items >= frames.start) & (items < frames.stop)
        if inside.any():
            states[inside] = data.episode_frames(episode)["state"][items[inside] - frames.start]
    return states


def offsets_already(datasets: Sequence[RobotDataset], relative: RelativeActions) -> list[int]:
    """The relative dimensions whose actions look like offsets as they are, so that they would be relative twice.

    An absolute target goes with the next state; an offset goes with how the state changes. Both correlations are taken
    over all frames, and a dimension is named if the second is above 0.5 and the first below.
    """
    dimensions = [d for d in relative.dimensions if d not in relative.rotated]
    of_state = [relative.state_dimensions[d] for d in dimensions]
    sums = np.zeros((2, 6, len(dimensions)))  # of the next state and of the change: n, a, x, a², x², ax
    for data in datasets:
        for episode in data.episodes:
            frames = data.episode_frames(episode)
            actions = frames["actions"][:-1, dimensions].astype(np.float64)
            state = frames["state"][:, of_state].astype(np.float64)
            for i, others in enumerate((state[1:], np.diff(state, axis=0))):
                columns = (np.ones_like(actions), actions, others, actions**2, others**2, actions * others)
                sums[i] += [column.sum(axis=0) for column in columns]
    next_state, change = map(_correlation, sums)
    return [d for d, a, b in zip(dimensions, next_state, change, strict=True) if abs(a) < _CORRELATED < b]


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Of (6, D) sums; 0 where one of the two does not vary."""
    count, a, x, aa, xx, ax = sums
    count = np.maximum(count, 1)
    spread = np.sqrt(np.maximum(aa / count - (a / count) ** 2, 0) * np.maximum(xx / count - (x / count) ** 2, 0))
    return np.divide(ax / count - a * x / count**2, spread, out=np.zeros_like(spread), where=spread > 1e-12)


def _units(data: RobotDataset, relative: RelativeActions | None, adapt_to_pi: bool) -> ActionUnits:
    return ActionUnits({}, "none", data.action_dim, relative, adapt_to_pi)


__all__ = [
    "chunk_states",
    "learned_chunks",
    "offsets_already",
    "relative_blocks",
    "relative_statistics",
    "robot_statistics",
]

"""Whether data lies where a policy was normalised for: actions beyond it are clipped, states leave their bins."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ...processing.normalization import plain_statistics
from ...processing.pi_aloha import actions_to_pi, state_to_pi
from ...processing.robot_spec import RobotSpec
from .relative_chunks import learned_chunks
from .robot_dataset import RobotDataset

# A value is far outside if it lies beyond the policy's range by more than half the range's width, and absurdly far by
# more than three widths: action tokens and the clipping of actions cannot follow.
_FAR, _ABSURD = 0.5, 3.0
# Of the frames, in any one dimension: fewer are outliers; with many the data is of another robot, or in other units.
_FEW, _MANY = 0.01, 0.25
# Of all: relative actions are looked at in so many chunks, spread evenly
_CHUNKS = 2000
# Of the policy's range, in every dimension: data that moves over less of it probably has other units.
_NARROW = 0.05


@dataclass(frozen=True)
class RangeProblem:
    """Data that lies where the policy was not normalised for.

    Attributes:
        text: share, dimension and ranges, for people.
        is_other: whether it is so large that the data must be of another robot, or in other units.
        is_lost: whether the policy cannot do it at all: actions of a dimension that was constant in its own data.
    """

    text: str
    is_other: bool
    is_lost: bool = False


def size_differences(robot: RobotSpec, data: RobotDataset) -> list[str]:
    """Where actions or states of the data have another number of dimensions than this robot's."""
    differences = []
    if data.action_dim != robot.action_dim:
        differences.append(f"{data.name} has {data.action_dim}-dimensional actions, the policy {robot.action_dim}")
    dim = robot.units.state_dim if robot.needs_state else None
    if dim is not None and data.state_dim != dim:
        differences.append(f"{data.name} has a state of {data.state_dim} dimensions, the policy needs {dim}")
    return differences


def range_problems(robot: RobotSpec, data: RobotDataset) -> list[RangeProblem]:
    """What people should know before these data are normalised as this robot's; at most one of `actions`,
    `relative_actions` and `state`.

    The policy's range is from the 1 % to the 99 % quantile of its data (without quantiles three standard deviations);
    what lies between its smallest and largest value is never called far.
    """
    problems = []
    for name, statistics in (robot.statistics or {}).items() if robot.normalization != "none" else ():
        if name == "state" and (not robot.needs_state or not data.state_dim):
            continue
        if (problem := _problem(name, statistics, _blocks(name, robot, data), data.name)) is not None:
            problems.append(problem)
    return problems


def _blocks(name: str, robot: RobotSpec, data: RobotDataset) -> Iterator[np.ndarray]:
    """What of the data the statistics of this name are about, (frames, D), in their units."""
    units = robot.units
    if name == "relative_actions":
        return iter(learned_chunks(data, units, _CHUNKS))
    if not units.adapt_to_pi:
        return data.vectors(name)
    return map(state_to_pi if name == "state" else actions_to_pi, data.vectors(name))


def _problem(
    name: str, statistics: dict[str, np.ndarray], blocks: Iterable[np.ndarray], whose: str
) -> RangeProblem | None:
    what = name.replace("_", " ")
    low, high = _range(statistics)  # (D,) each
    rounding = 1e-5 * np.maximum(np.abs(low), np.abs(high)) + 1e-6
    margins = [share * (high - low) + rounding for share in (_FAR, _ABSURD)]
    lowest = [np.minimum(low - margin, statistics.get("min", np.inf)) for margin in margins]
    highest = [np.maximum(high + margin, statistics.get("max", -np.inf)) for margin in margins]
    count, outside = 0, np.zeros((2, len(low)))
    smallest, largest = np.full(len(low), np.inf), np.full(len(low), -np.inf)
    for block in blocks:  # (frames, D)
        count += len(block)
        for i in range(2):
            outside[i] += ((block < lowest[i]) | (block > highest[i])).sum(axis=0)
        smallest, largest = np.minimum(smallest, block.min(axis=0)), np.maximum(largest, block.max(axis=0))
    far, absurd = outside / count  # (D,) each: shares of the frames
    stays = (name != "state") & (highest[0] - lowest[0] <= 4 * rounding) & (far > _FEW)  # normalised, it is always 0
    if stays.any():
        still = int(stays.argmax())
        text = (
            f"dimension {still} of the {what} was constant in the policy's data, {low[still]:.4g}, and runs from "
            f"{smallest[still]:.4g} to {largest[still]:.4g} in {whose}: with its statistics none of that can be "
            f"learned, and the robot would always get {low[still]:.4g}"
        )
        return RangeProblem(text, is_other=True, is_lost=True)
    worst = int(far.argmax())
    if far[worst] > _FEW:
        text = (
            f"{100 * far[worst]:.0f} % of the {what} of {whose} lie far outside what the policy was normalised "
            f"for: dimension {worst} runs from {smallest[worst]:.4g} to {largest[worst]:.4g}, the policy's data from "
            f"{low[worst]:.4g} to {high[worst]:.4g} ({int((far > _FEW).sum())} of {len(low)} dimensions do)"
        )
        return RangeProblem(text, bool(far[worst] > _MANY or absurd.max() > _FEW))
    varies = high - low > rounding
    moves = (largest - smallest)[varies] / (high - low)[varies]
    if varies.any() and moves.max() < _NARROW:
        text = (
            f"the {what} of {whose} move over at most {100 * moves.max():.1f} % of the range that the policy was "
            "normalised for, in every dimension: are these other units, radians in place of degrees?"
        )
        return RangeProblem(text, is_other=True)
    return None


def _range(statistics: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    statistics = plain_statistics(statistics)
    if "q01" in statistics and "q99" in statistics:
        return statistics["q01"], statistics["q99"]
    return statistics["mean"] - 3 * statistics["std"], statistics["mean"] + 3 * statistics["std"]


__all__ = ["RangeProblem", "range_problems"]

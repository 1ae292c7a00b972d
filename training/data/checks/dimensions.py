"""Dimension by dimension: range, spread, and what is constant, rare, a switch, or piled up at its ends."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..column_statistics import column_statistics
from ..lerobot.frame_table import BLOCK_ROWS
from .findings import Finding, limit, some

# Of the whole range: nearer to an end than this is "at" it for a switch, and a step below the second is rest.
_SWITCH_END, _AT_REST = 0.05, 1e-3


@dataclass(frozen=True)
class Dimensions:
    """One entry for each dimension of the states or of the actions, (D,) each.

    Attributes:
        name: "state" or "actions".
        names: of the dimensions.
        min, max, mean, std, q01, q99: of all frames.
        at_min, at_max: share of frames exactly at the smallest and the largest value; 0 where fewer than three
            episodes get there: that is no limit.
        at_rest: share of steps that change it by less than a thousandth of its range.
        is_constant: the range is rounding.
        is_switch: nine of ten frames are at one of its two ends, and each end has one in a hundred or more.
        is_rare: the 1 - 99 % range is a small part of the whole.
    """

    name: str
    names: tuple[str, ...]
    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    at_min: np.ndarray
    at_max: np.ndarray
    at_rest: np.ndarray
    is_constant: np.ndarray
    is_switch: np.ndarray
    is_rare: np.ndarray

    @property
    def range(self) -> np.ndarray:
        return self.max - self.min

    def where(self, chosen: np.ndarray) -> tuple[str, ...]:
        """Names of the dimensions that a (D,) bool array chooses."""
        return tuple(self.names[i] for i in np.flatnonzero(chosen))


def names_of(name: str, names: Sequence[str] | None, dim: int) -> tuple[str, ...]:
    """Names of the dimensions of a vector: its own, or numbers."""
    return tuple(names) if names else tuple(f"{name.removesuffix('s')}_{i}" for i in range(dim))


def measure(name: str, names: Sequence[str] | None, dim: int, read: Callable[[], Iterable[np.ndarray]]) -> Dimensions:
    """Read the vectors three times, an episode at a time.

    Args:
        name: "state" or "actions".
        names: of the dimensions, or None.
        dim: D.
        read: gives the episodes anew, (T, D) float32 each.
    """
    statistics = column_statistics(lambda: _in_blocks(read()), dim)
    low, high = statistics["min"], statistics["max"]
    width = high - low
    frames, steps = 0, 0
    counts = np.zeros((5, dim))  # at min, at max, near min, near max, at rest
    reached = np.zeros((2, dim))  # episodes that get to min and to max
    for values in read():
        frames, steps = frames + len(values), steps + len(values) - 1
        near = _SWITCH_END * width
        parts = (values == low, values == high, values <= low + near, values >= high - near)
        counts[:4] += [part.sum(axis=0) for part in parts]
        reached += [part.any(axis=0) for part in parts[:2]]
        counts[4] += (np.abs(np.diff(values, axis=0)) <= _AT_REST * width).sum(axis=0)
    at_min, at_max, near_min, near_max = counts[:4] / frames
    at_min, at_max = np.where(reached > 2, (at_min, at_max), 0)
    is_constant = width <= limit("constant") * np.maximum(np.abs(low), np.abs(high))
    is_switch = ~is_constant & (near_min + near_max >= 0.9) & (np.minimum(near_min, near_max) >= 0.01)
    usual = (statistics["q99"] - statistics["q01"]) / np.where(is_constant, 1, width)
    return Dimensions(
        name,
        names_of(name, names, dim),
        **statistics,
        at_min=at_min,
        at_max=at_max,
        at_rest=counts[4] / max(steps, 1),
        is_constant=is_constant,
        is_switch=is_switch,
        is_rare=~is_constant & (usual < limit("rare")),
    )


def _in_blocks(episodes: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same rows in larger pieces: counting costs as much for a few as for many."""
    waiting: list[np.ndarray] = []
    for values in episodes:
        waiting.append(values)
        if sum(map(len, waiting)) >= BLOCK_ROWS:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def check_dimensions(table: Dimensions, are_positions: bool = False) -> list[Finding]:
    """What is constant, rare, or piled up at an end.

    Args:
        table: of the dimensions.
        are_positions: of actions, whether they are positions that the state follows: a speed has a largest value, and
            may keep it; a position that stays at its end has been cut off.
    """
    what, findings = table.name, []
    total = len(table.names)
    if (names := table.where(table.is_constant)) and what == "actions" and len(names) == total:
        text = "The actions never change: there is nothing to learn. Is this the right column?"
        return [Finding("all_constant", text, what, names)]
    if names:
        verb = "never changes" if len(names) == 1 else "never change"
        text = f"{len(names)} of {total} dimensions of the {what} {verb}: {some(names)}."
        findings.append(Finding("constant", text, what, names))
    for i in np.flatnonzero(table.is_rare):
        text = (
            f"{table.names[i]} of the {what} hardly ever moves: 98 % of the frames lie between {table.q01[i]:.4g} and "
            f"{table.q99[i]:.4g}, all between {table.min[i]:.4g} and {table.max[i]:.4g}. If that motion matters, "
            "record more of it."
        )
        findings.append(Finding("rare", text, what, (table.names[i],)))
    piled = np.maximum(table.at_min, table.at_max)
    ordinary = ~table.is_constant & ~table.is_switch & ~table.is_rare
    for i in np.flatnonzero(ordinary & (piled >= limit("at_limit"))):
        ends = [(table.at_min[i], table.min[i]), (table.at_max[i], table.max[i])]
        where = " and ".join(
            f"{100 * share:.0f} % at {value:.4g}" for share, value in ends if share >= limit("at_limit")
        )
        is_clipped = are_positions and piled[i] >= limit("clipped")
        text = f"{table.names[i]} of the {what} is at its limit in many frames: {where}."
        if is_clipped:
            text += " Was it clipped when it was recorded?"
        findings.append(Finding("clipped" if is_clipped else "at_limit", text, what, (table.names[i],)))
    return findings


__all__ = ["Dimensions", "check_dimensions", "measure", "names_of"]

"""Frames in which a whole vector is 0 for a moment: readings that were lost."""

from collections.abc import Sequence

import numpy as np

from .dimensions import Dimensions
from .findings import Finding, counted, limit
from .motion import TIMES_USUAL


def zero_frames(values: np.ndarray, width: np.ndarray, usual_step: np.ndarray) -> np.ndarray:
    """Frames of an episode in which all dimensions are exactly 0 and into or out of which it jumps, (T,) bool.

    A robot that rests where all is 0 gets there in ordinary steps.

    Args:
        values: (T, D) positions.
        width: (D,) the whole range; of dimensions without one nothing is told.
        usual_step: (D,) what 90 % of all steps do not exceed.
    """
    varies = width > 0
    is_zero = (values == 0).all(axis=1)
    if is_zero.all() or not is_zero.any() or not varies.any():
        return np.zeros(len(values), bool)
    steps = np.abs(np.diff(values, axis=0))  # (T - 1, D)
    jumps = ((steps > np.maximum(limit("zeros") * width, TIMES_USUAL * usual_step)) & varies).any(axis=1)
    padded = np.r_[False, is_zero, False]
    begins, ends = np.flatnonzero(padded[1:-1] & ~padded[:-2]), np.flatnonzero(padded[1:-1] & ~padded[2:]) + 1
    found = np.zeros(len(values), bool)
    for begin, end in zip(begins, ends, strict=True):
        borders = [step for step in (begin - 1, end - 1) if 0 <= step < len(jumps)]
        found[begin:end] = jumps[borders].all()
    return found


def check_zeros(places: Sequence[tuple[int, int]], table: Dimensions) -> list[Finding]:
    """`places`: episode and frame of each."""
    if not places:
        return []
    episodes = tuple(dict.fromkeys(episode for episode, _ in places))
    first = ", ".join(f"episode {episode} frame {frame}" for episode, frame in places[:3])
    text = (
        f"The whole {table.name} is 0 in {counted(len(places), 'frame')}, and elsewhere before and after: {first}"
        f"{' ...' if len(places) > 3 else ''}. Lost readings: mend these episodes, or leave them out."
    )
    return [Finding("zeros", text, table.name, episodes=episodes, places=tuple(places))]


__all__ = ["check_zeros", "zero_frames"]

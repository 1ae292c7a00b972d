"""Spikes: a dimension is elsewhere for a moment, and then back where it was."""

from collections import defaultdict

import numpy as np

from .dimensions import Dimensions
from .findings import Finding, counted, limit
from .motion import TIMES_AROUND, TIMES_USUAL, Places

_MOMENT = 0.15  # seconds that a spike takes at most; one frame at least


class Spikes:
    """Gathers the spikes of a vector, an episode at a time.

    Args:
        table: of its dimensions. Those that are constant or a switch have no spikes.
        usual_step: (D,) what 90 % of all steps do not exceed.
        fps: frames per second.

    Attributes:
        places: dimension → (episode, first frame, value there) of each spike.
        low, high: (D,) of all frames without spikes.
    """

    def __init__(self, table: Dimensions, usual_step: np.ndarray, fps: float):
        self.table, self.usual_step = table, usual_step
        room = np.where(table.is_constant | table.is_switch, np.inf, table.range)
        self._least = np.maximum(limit("jump") * room, TIMES_USUAL * usual_step)
        self._longest = max(int(_MOMENT * fps), 1)
        self.places: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
        self.low, self.high = np.full(len(room), np.inf), np.full(len(room), -np.inf)

    def add(self, episode: int, values: np.ndarray) -> None:
        """Look at an episode, (T, D)."""
        found = spikes(values, self._least, self._longest)
        self.low = np.minimum(self.low, np.where(found, np.inf, values).min(axis=0))
        self.high = np.maximum(self.high, np.where(found, -np.inf, values).max(axis=0))
        starts = found & ~np.pad(found, ((1, 0), (0, 0)))[:-1]
        for frame, dimension in np.argwhere(starts):
            self.places[int(dimension)].append((episode, int(frame), float(values[frame, dimension])))

    def judge(self, are_positions: bool, partner: np.ndarray) -> tuple[Places, Places]:
        """Tell faults from what may be a dimension's own motion.

        Positions do not go there and back in a moment. What else an action may be, a speed or a change, does: there a
        fault is what lies farther outside of all other values than these are apart. A dimension that hardly ever moves
        may be a button or a touch, which is over in a moment. It is not if the rest of it is motion, in steps that are
        small for its range; or if the state that follows it, or the action that moves it, is never so far away.

        Args:
            are_positions: of something that moves.
            partner: (D,) the whole range of that state or action; infinite where there is none.

        Returns:
            Faults, and others.
        """
        faults, others, table = {}, {}, self.table
        for dimension, places in self.places.items():
            width = self.high[dimension] - self.low[dimension]
            usual = table.q99[dimension] - table.q01[dimension]
            moves = usual >= limit("rare") * width and self.usual_step[dimension] < limit("jump") * width
            is_alone = partner[dimension] < limit("jump") * table.range[dimension]
            if table.is_rare[dimension] and not moves and not is_alone:
                others[dimension] = [place[:2] for place in places]
            elif not are_positions:
                least, most = self.low[dimension] - width, self.high[dimension] + width
                outside = [place[:2] for place in places if not least <= place[2] <= most]
                faults |= {dimension: outside} if outside else {}
            else:
                faults[dimension] = [place[:2] for place in places]
        return faults, others


def spikes(values: np.ndarray, least: np.ndarray, longest: int) -> np.ndarray:
    """Frames of spikes, (T, D) bool.

    Args:
        values: (T, D) of an episode.
        least: (D,) how far away a spike is at least; also far beside what moves around it.
        longest: frames that one takes at most.
    """
    found = np.zeros(values.shape, bool)
    steps = np.pad(np.abs(np.diff(values, axis=0)), ((1, 1), (0, 0)))  # into each frame, and past the last
    for length in range(1, min(longest, len(values) - 2) + 1):
        before, after = values[: -length - 1], values[length + 1 :]  # (n, D)
        inside = np.lib.stride_tricks.sliding_window_view(values[1:-1], length, axis=0)  # (n, D, length)
        away = np.abs(inside - before[..., None]).min(axis=-1)
        around = np.maximum(np.abs(after - before), np.maximum(steps[: len(before)], steps[-len(before) :]))
        for frame, dimension in np.argwhere((away > least) & (away > TIMES_AROUND * around)):
            found[frame + 1 : frame + 1 + length, dimension] = True
    return found


def describe_rare_jumps(found: Places, table: Dimensions) -> list[Finding]:
    """One note for each dimension with spikes that may be its own motion."""
    findings = []
    for dimension, places in sorted(found.items()):
        name, first = table.names[dimension], ", ".join(f"episode {e} frame {t}" for e, t in places[:3])
        text = (
            f"{name} of the {table.name}, which hardly ever moves, is elsewhere for a moment, "
            f"{counted(len(places), 'time')}: {first}. Its own motion, or a bad reading?"
        )
        episodes = tuple(dict.fromkeys(episode for episode, _ in places))
        findings.append(Finding("rare_jump", text, table.name, (name,), episodes, places=tuple(places)))
    return findings


__all__ = ["Spikes", "describe_rare_jumps", "spikes"]

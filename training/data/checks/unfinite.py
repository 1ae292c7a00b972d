"""NaN and infinity among states and actions: told by place, and filled in so that all else can be measured."""

from collections import defaultdict

import numpy as np

from ..robot_dataset import RobotDataset
from .dimensions import Dimensions
from .findings import Finding, counted, some


class FiniteFrames:
    """Reads the frames of episodes as `RobotDataset.episode_frames` does, without NaN and infinity.

    Args:
        data: the dataset.

    Attributes:
        places: vector → (episode, frame, dimension) of every number that is none.
    """

    def __init__(self, data: RobotDataset):
        self._data = data
        self.places: dict[str, set[tuple[int, int, int]]] = defaultdict(set)

    def __call__(self, episode: int) -> dict[str, np.ndarray]:
        """The frames of an episode, given by its number."""
        frames = self._data.episode_frames(episode)
        for name in frames.keys() & {"actions", "state"}:
            bad = ~np.isfinite(frames[name])
            if bad.any():
                self.places[name].update((episode, int(frame), int(dim)) for frame, dim in np.argwhere(bad))
                frames[name] = fill(frames[name], bad)
        return frames

    def check(self, table: Dimensions) -> list[Finding]:
        """What is no number in a vector that has been read."""
        places = sorted(self.places[table.name])
        if not places:
            return []
        frames = list(dict.fromkeys((episode, frame) for episode, frame, _ in places))
        episodes = tuple(dict.fromkeys(episode for episode, _ in frames))
        names = tuple(table.names[dimension] for dimension in sorted({dimension for *_, dimension in places}))
        where = some([f"episode {episode} frame {frame}" for episode, frame in frames], 3)
        text = (
            f"NaN or infinity in {counted(len(frames), 'frame')} of the {table.name}, in {some(names)}: {where}. "
            f"Repair them, or leave {'this episode' if len(episodes) == 1 else 'these episodes'} out, "
            f"--exclude_episodes: {some(episodes, 20)}."
        )
        return [Finding("not_finite", text, table.name, names, episodes, places=tuple(frames))]


def fill(values: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Put a straight line where numbers are missing, in each dimension; 0 where all are.

    Args:
        values: (T, D).
        bad: (T, D), which ones are missing.
    """
    values, frames = values.copy(), np.arange(len(values))
    for i in np.flatnonzero(bad.any(axis=0)):
        good = ~bad[:, i]
        values[bad[:, i], i] = np.interp(frames[bad[:, i]], frames[good], values[good, i]) if good.any() else 0
    return values


__all__ = ["FiniteFrames", "fill"]

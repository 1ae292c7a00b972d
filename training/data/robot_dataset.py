"""What training uses of a dataset of robot demonstrations, in whatever format, and readers by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import torch

from ...processing.normalization import STILL, with_ranges
from ...processing.observation_history import NO_HISTORY, ObservationHistory
from ...processing.plugins import check_has, find_class
from .column_statistics import column_statistics
from .file_windows import FileWindows

# Imported when asked for. Other packages name theirs in pyproject.toml: [project.entry-points."kivla.datasets"]
DATASET_FORMATS: dict[str, str | type] = {"lerobot": "kivla.training.data.lerobot.dataset:LeRobotDataset"}
ENTRY_POINTS = "kivla.datasets"
DATASET_FORMAT_HELP = "Format of the dataset: lerobot, one of another package, or pkg.module:Class of your own."


class RobotDataset(torch.utils.data.Dataset, ABC):
    """Demonstrations of one robot: one item for each frame, the observation and the action chunk that starts there.

    ```python
    data[i]  # {"images": [uint8 (height, width, 3) per camera], "cameras": [their names, data.cameras], "text": str,
             #  "state": float32 (Ds,), "actions": float32 (H, Da), "action_is_pad": bool (H,),
             #  "episode_index": int, "frame_index": int, "timestamp": float}
    ```

    Past the episode's end the last action is repeated and `action_is_pad` is True. `state` is absent where there is
    none; a dataset of a named robot has `"robot"` as well.

    With a history (`look_back`) each of the images is a list of frames, and `state` is (n, Ds), the newest last: the
    frames of this episode that a policy with this history sees, fewer at its beginning.

    `LeRobotDataset` is one. For a format of your own take `EpisodeDataset`, which asks for three methods and has the
    rest. A reader is made like `LeRobotDataset(name, chunk_size, episodes, cameras, robot)`.

    Attributes:
        name: folder or Hub id, for people.
        chunk_size: H, the number of actions per item.
        robot: the robot's name in a policy of several robots, or None.
        cameras: names of the cameras, in the order of an item's images.
        fps: frames, and therefore actions, per second.
        episodes: the dataset's numbers of the selected episodes.
        state_dim, action_dim: number of dimensions; `state_dim` is 0 without a state.
        state_names, action_names: names of the dimensions, or None.
        tasks: number → instruction.
        notes: what was assumed, derived or chosen when it was opened, one plain sentence each.
        action_key, state_key: the columns that actions and state are made of, in formats that have a choice of them.
        observation_history: what an item looks back on: see `look_back`.
        subtask_key: the column of the sub-tasks that examples have as `response`, or None.
        file_windows: the order to train in, where pictures are streamed; None where any order is as good.
        takes_unfinite: of a class, whether NaN and infinity among states and actions are read as they are. Readers
            refuse them; `kivla check-data` reports them beside all else.
    """

    name: str
    chunk_size: int
    robot: str | None
    cameras: list[str]
    fps: float
    state_dim: int
    action_dim: int
    state_names: list[str] | None
    action_names: list[str] | None
    tasks: dict[int, str]
    notes: Sequence[str] = ()
    action_key: Sequence[str] = ()
    state_key: Sequence[str] = ()
    subtask_key: str | None = None
    observation_history: ObservationHistory = NO_HISTORY
    file_windows: FileWindows | None = None
    takes_unfinite: bool = False

    @property
    @abstractmethod
    def episodes(self) -> list[int]:
        """Numbers of the selected episodes."""

    @abstractmethod
    def __len__(self) -> int:
        """Frames of the selected episodes."""

    @abstractmethod
    def __getitem__(self, index: int) -> dict:
        """The example of a frame."""

    @abstractmethod
    def size_of(self, index: int) -> tuple[int, int]:
        """How many images an item has and how many characters of text; no image is read."""

    @abstractmethod
    def action_chunks(self, max_chunks: int) -> np.ndarray:
        """The `actions` of up to `max_chunks` items, spread evenly, (n, H, Da); no image is read."""

    @abstractmethod
    def vectors(self, name: str) -> Iterator[np.ndarray]:
        """All "actions" or "state" of the selected episodes, in blocks (frames, D) float32; no image is read."""

    @abstractmethod
    def episode_range(self, episode: int) -> range:
        """The items of an episode, given by its number."""

    def look_back(self, history: ObservationHistory) -> Self:
        """Let items have the frames and states that a policy with this history sees; returns the dataset.

        Raises:
            ValueError: this reader has single frames only.
        """
        if history.frames > 1:
            raise ValueError(
                f"{type(self).__name__} reads single frames, and cannot look back ({history}). An EpisodeDataset can; "
                "or write its look_back(history)."
            )
        return self

    def episode_frames(self, episode: int) -> dict:
        """The numbers of all frames of an episode, given by its own.

        A reader that has them without reading pictures has its own way.

        Returns:
            `actions` (T, Da) and, where there is one, `state` (T, Ds), float32; `timestamp` (T,), seconds.
        """
        with present_alone(self):
            items = [self[item] for item in self.episode_range(episode)]
        frames = {
            "actions": np.stack([item["actions"][0] for item in items]),
            "timestamp": np.array([item["timestamp"] for item in items]),
        }
        return frames | ({"state": np.stack([item["state"] for item in items])} if self.state_dim else {})

    def episode_texts(self, episode: int) -> list[str]:
        """The instructions of an episode, each once, in order; as `episode_frames`."""
        return list(dict.fromkeys(self[item]["text"] for item in self.episode_range(episode)))

    @property
    @abstractmethod
    def content_digest(self) -> str:
        """A short digest of the selected episodes; other data has another one. A run goes on with the same only."""

    @property
    def num_episodes(self) -> int:
        """How many episodes are selected."""
        return len(self.episodes)

    @cached_property
    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """`{"state": {...}, "actions": {...}}`, each with mean, std, min, max, q01 and q99 as float64 (D,).

        Computed from the frames of the *selected* episodes, so nothing leaks from episodes that were held out, and
        with true quantiles. Without a state there is no "state" entry. Where a joint moves rarely, there are also low,
        high and scale, by which it is normalised (`kivla.processing.with_ranges`); `notes` then names it.
        """
        return joint_statistics([self])

    @classmethod
    def camera_names(cls, name: str | Path) -> list[str]:
        """All cameras of a dataset, given by its folder or Hub id."""
        return list(cls(name, chunk_size=1).cameras)

    @classmethod
    def episode_numbers(cls, name: str | Path) -> list[int]:
        """Numbers of all episodes of a dataset, given by its folder or Hub id."""
        return list(cls(name, chunk_size=1, cameras=[]).episodes)


@contextmanager
def present_alone(data: RobotDataset) -> Iterator[None]:
    """Let items have the present frame and state alone for a while: for those who look at the data, not a policy."""
    history = data.observation_history
    data.look_back(NO_HISTORY)
    try:
        yield
    finally:
        data.look_back(history)


def joint_statistics(
    datasets: Sequence[RobotDataset],
    convert: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    normalized: Collection[str] = ("actions", "state"),
) -> dict[str, dict[str, np.ndarray]]:
    """Compute `statistics` of several datasets of one robot, as if their frames were in one.

    Args:
        convert: "actions", "state" → what turns blocks of them, (frames, D), into other units.
        normalized: which of the two are normalised by them. What of these moves rarely, and how it is normalised, is
            added to the first dataset's `notes`.

    Raises:
        ValueError: actions or states of different sizes, or named differently.
    """
    first = datasets[0]
    for other in datasets[1:]:
        for what in ("action_dim", "state_dim", "action_names", "state_names"):
            if getattr(first, what) != getattr(other, what):
                raise ValueError(
                    f"{first.name} and {other.name} cannot be the same robot: {what} is {getattr(first, what)} in one "
                    f"and {getattr(other, what)} in the other. Give each robot a name of its own."
                )
    dims = {"actions": first.action_dim}
    if first.state_dim:
        dims["state"] = first.state_dim

    def read(name: str) -> Iterator[np.ndarray]:
        blocks = chain.from_iterable(data.vectors(name) for data in datasets)
        return map(convert[name], blocks) if convert else blocks

    statistics = {name: with_ranges(column_statistics(partial(read, name), dim)) for name, dim in dims.items()}
    for name, names in (("actions", first.action_names), ("state", first.state_names)):
        notes = range_notes(name, statistics[name], names) if name in {*normalized} & {*statistics} else []
        first.notes = [*first.notes, *(note for note in notes if note not in first.notes)]
    return statistics


def range_notes(what: str, statistics: dict[str, np.ndarray], names: Sequence[str] | None) -> list[str]:
    """Say which dimensions are not normalised by their quantiles, and why; empty where all are.

    Args:
        what: "actions" or "state".
        statistics: of `with_ranges`.
        names: of the dimensions.
    """
    if "low" not in statistics:
        return []
    rare = (statistics["low"] == statistics["min"]) & (statistics["low"] != statistics["q01"])
    rare |= (statistics["high"] == statistics["max"]) & (statistics["high"] != statistics["q99"])
    still = ((statistics["low"] != statistics["q01"]) | (statistics["high"] != statistics["q99"])) & ~rare
    notes = []
    for dimension in np.flatnonzero(rare | still):
        name = names[dimension] if names else f"dimension {dimension}"
        q01, q99, low, high = (statistics[key][dimension] for key in ("q01", "q99", "min", "max"))
        if rare[dimension]:
            share = 100 * (q99 - q01) / (high - low)
            notes.append(
                f"{what}: {name} moves rarely (98 % of its values span {share:.2g} % of its range, {low:.4g} to "
                f"{high:.4g}): it is normalised by its smallest and largest value."
            )
        else:
            notes.append(
                f"{what}: {name} hardly moves ({low:.9g} to {high:.9g}), over few steps of float32: it is normalised "
                f"as if it moved over {100 * STILL:.2g} % of its value."
            )
    return notes


def evenly_spread(length: int, count: int) -> np.ndarray:
    """Choose at most `count` of `length` places, from the first to the last."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def dataset_reader(dataset_format: str) -> type[RobotDataset]:
    """Find the reader of a format by its name, or by its place, `pkg.module:Class`.

    Raises:
        ValueError: there is none.
        TypeError: it cannot be used as one; the message names what it lacks.
    """
    reader = find_class(dataset_format, DATASET_FORMATS, ENTRY_POINTS, "dataset format")
    advice = "Make it a subclass of kivla.training.data.episode_dataset.EpisodeDataset, and write these."
    check_has(reader, (name for name in vars(RobotDataset) if not name.startswith("_")), "a robot dataset", advice)
    if not issubclass(reader, RobotDataset):
        raise TypeError(f"{reader.__module__}.{reader.__qualname__} is no robot dataset. {advice}")
    return reader


__all__ = [
    "DATASET_FORMATS",
    "DATASET_FORMAT_HELP",
    "ENTRY_POINTS",
    "RobotDataset",
    "dataset_reader",
    "evenly_spread",
    "joint_statistics",
    "present_alone",
    "range_notes",
]

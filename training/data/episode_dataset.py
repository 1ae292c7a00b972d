"""The base of a reader for a format of your own: it reads episodes, and everything else is here."""

import hashlib
import json
import operator
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from ...processing.observation_history import ObservationHistory
from .camera_choice import choose_cameras
from .robot_dataset import RobotDataset, evenly_spread


class EpisodeDataset(RobotDataset):
    """A `RobotDataset` of episodes that a subclass reads, one at a time.

    ```python
    class NpzDataset(EpisodeDataset):
        def __init__(self, folder, chunk_size=50, episodes=None, cameras=None, robot=None):
            self.files = dict(enumerate(sorted(Path(folder).glob("*.npz"))))
            lengths = {number: len(np.load(file)["actions"]) for number, file in self.files.items()}
            super().__init__(
                folder, chunk_size, episodes, cameras, robot, lengths=lengths, all_cameras=["front"], fps=10
            )

        def read_vectors(self, episode):  # float (frames, D) each; "state" may be absent
            file = np.load(self.files[episode])
            return {"actions": file["actions"], "state": file["state"]}

        def read_images(self, episode, frame):  # uint8 (height, width, 3) for each of self.cameras
            return [np.load(self.files[episode])[camera][frame] for camera in self.cameras]

        def read_text(self, episode, frame):
            return str(np.load(self.files[episode])["instruction"])
    ```

    Where several frames of a camera are read at once faster than one by one, write `read_clips` as well, for policies
    with a history (`look_back`).

    `kivla train --dataset FOLDER --dataset_format my_package.my_module:NpzDataset` trains on it. Actions and states of
    the selected episodes are kept in memory, pictures are read when asked for.

    Args:
        name, chunk_size, episodes, cameras, robot: as in `LeRobotDataset`. A subclass takes them in this order, and
            passes them on.
        lengths: number of every episode → its frames.
        all_cameras: names of all cameras.
        fps: frames per second.
        action_names, state_names: names of the dimensions, where there are any.

    Raises:
        ValueError: an unknown camera or episode; vectors of other sizes than announced, or not finite.
    """

    def __init__(
        self,
        name: str | Path,
        chunk_size: int,
        episodes: Sequence[int] | None,
        cameras: Sequence[str] | None,
        robot: str | None,
        *,
        lengths: Mapping[int, int],
        all_cameras: Sequence[str],
        fps: float,
        action_names: Sequence[str] | None = None,
        state_names: Sequence[str] | None = None,
    ):
        if chunk_size < 1:
            raise ValueError(f"chunk_size is the number of actions per item and must be at least 1, got {chunk_size}.")
        self.name = str(name)
        self.chunk_size = chunk_size
        self.robot = robot
        self.fps = fps
        self._episodes = self._selected(episodes, list(lengths))
        self.cameras = choose_cameras(self.name, all_cameras, cameras)
        self.action_names = None if action_names is None else list(action_names)
        self.state_names = None if state_names is None else list(state_names)
        self._ends = np.cumsum([lengths[episode] for episode in self._episodes])  # one past each episode's last item
        self._vectors = [self._checked(episode, lengths[episode]) for episode in self._episodes]
        first = self._vectors[0]
        self.action_dim = first["actions"].shape[1]
        self.state_dim = first["state"].shape[1] if "state" in first else 0
        texts = dict.fromkeys(self.read_text(episode, 0) for episode in self._episodes)
        self.tasks = dict(enumerate(texts))

    # --------------------------------------------------------------------------------------- what a subclass must have
    @abstractmethod
    def read_vectors(self, episode: int) -> dict[str, np.ndarray]:
        """`actions` (frames, Da) and, where there is one, `state` (frames, Ds) of an episode, in robot units."""

    @abstractmethod
    def read_images(self, episode: int, frame: int) -> list[np.ndarray]:
        """The pictures of a frame, uint8 (height, width, 3), one for each of `self.cameras`."""

    @abstractmethod
    def read_text(self, episode: int, frame: int) -> str:
        """The instruction that holds at a frame."""

    def read_clips(self, episode: int, frames: Sequence[int]) -> list[list[np.ndarray]]:
        """The pictures of several frames, in their order, for each of `self.cameras`; by `read_images`."""
        moments = [self.read_images(episode, frame) for frame in frames]
        return [list(clip) for clip in zip(*moments, strict=True)]

    # ------------------------------------------------------------------------------------------ what is made of it
    def look_back(self, history: ObservationHistory) -> Self:
        self.observation_history = history
        return self

    @property
    def episodes(self) -> list[int]:
        return list(self._episodes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict:
        number, frame = self._locate(index)
        episode, vectors = self._episodes[number], self._vectors[number]
        frames = self.observation_history.steps(frame)
        clips = self._clips(episode, frames)
        has_history = self.observation_history.frames > 1
        example = {
            "images": clips if has_history else [clip[0] for clip in clips],
            "cameras": list(self.cameras),
            "text": self.read_text(episode, frame),
            "actions": self._chunk(number, frame),
            "action_is_pad": np.arange(self.chunk_size) >= len(vectors["actions"]) - frame,
            "episode_index": episode,
            "frame_index": frame,
            "timestamp": frame / self.fps,
        }
        if self.state_dim:
            example["state"] = vectors["state"][frames if has_history else frame].copy()
        if self.robot is not None:
            example["robot"] = self.robot
        return example

    def size_of(self, index: int) -> tuple[int, int]:
        number, frame = self._locate(index)
        images = len(self.cameras) * len(self.observation_history.steps(frame))
        return images, len(self.read_text(self._episodes[number], frame))

    def action_chunks(self, max_chunks: int) -> np.ndarray:
        items = evenly_spread(len(self), max_chunks)
        return np.stack([self._chunk(*self._locate(item)) for item in items])

    def vectors(self, name: str) -> Iterator[np.ndarray]:
        return (vectors[name] for vectors in self._vectors)

    def episode_range(self, episode: int) -> range:
        if episode not in self._episodes:
            raise ValueError(f"{self.name}: episode {episode} is not among the selected ones, {self._episodes}.")
        number = self._episodes.index(episode)
        end = int(self._ends[number])
        return range(end - len(self._vectors[number]["actions"]), end)

    def episode_frames(self, episode: int) -> dict:
        vectors = self._vectors[self._episodes.index(episode)]
        return {**vectors, "timestamp": np.arange(len(vectors["actions"])) / self.fps}

    def episode_texts(self, episode: int) -> list[str]:
        return list(dict.fromkeys(self.read_text(episode, i) for i in range(len(self.episode_range(episode)))))

    @cached_property
    def content_digest(self) -> str:
        """Of all actions, states and instructions, and of the first pictures of every episode."""
        digest = hashlib.sha256(
            json.dumps([self.fps, self._episodes, self.cameras, list(self.tasks.values())]).encode()
        )
        for episode, vectors in zip(self._episodes, self._vectors, strict=True):
            pictures = [clip[0] for clip in self._clips(episode, [0])]
            for values in [*vectors.values(), *pictures]:
                digest.update(np.ascontiguousarray(values))
        return digest.hexdigest()[:16]

    def _locate(self, index: int) -> tuple[int, int]:
        """Item → which of the selected episodes, and the frame in it."""
        item = operator.index(index)
        if not -len(self) <= item < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} frames")
        item %= len(self)
        number = int(np.searchsorted(self._ends, item, side="right"))
        return number, item - int(self._ends[number]) + len(self._vectors[number]["actions"])

    def _chunk(self, number: int, frame: int) -> np.ndarray:
        """(H, Da), the last action of the episode repeated past its end."""
        actions = self._vectors[number]["actions"]
        return actions[np.minimum(frame + np.arange(self.chunk_size), len(actions) - 1)]

    def _selected(self, wanted: Sequence[int] | None, there: list[int]) -> list[int]:
        selected = there if wanted is None else list(wanted)
        unknown = [episode for episode in selected if episode not in there]
        if unknown or len(set(selected)) != len(selected) or not selected:
            problem = f"has no episode {unknown[0]!r}" if unknown else f"needs each episode once, got {selected}"
            raise ValueError(f"{self.name} {problem}. It has: {there}.")
        return selected

    def _checked(self, episode: int, length: int) -> dict[str, np.ndarray]:
        vectors = {name: np.asarray(values, dtype=np.float32) for name, values in self.read_vectors(episode).items()}
        if "actions" not in vectors or vectors.keys() - {"actions", "state"}:
            raise ValueError(
                f"{self.name}: read_vectors({episode}) must return actions and perhaps state, got {sorted(vectors)}."
            )
        for name, values in vectors.items():
            if values.ndim != 2 or len(values) != length:
                raise ValueError(
                    f"{self.name}: the {name} of episode {episode} must be ({length}, D), got shape {values.shape}."
                )
            if not self.takes_unfinite and not np.isfinite(values).all():
                frame = int(np.argwhere(~np.isfinite(values))[0][0])
                raise ValueError(f"{self.name}: the {name} of episode {episode} are NaN or infinite at frame {frame}.")
        return vectors

    def _clips(self, episode: int, frames: Sequence[int]) -> list[list[np.ndarray]]:
        """What was read of several frames, for each camera; checked."""
        clips = [[np.asarray(image) for image in clip] for clip in self.read_clips(episode, frames)]
        if len(clips) != len(self.cameras) or any(len(clip) != len(frames) for clip in clips):
            raise ValueError(
                f"{self.name}: of episode {episode}, frames {list(frames)}, {[len(clip) for clip in clips]} pictures "
                f"were read for the cameras {self.cameras}."
            )
        for camera, clip in zip(self.cameras, clips, strict=True):
            for frame, image in zip(frames, clip, strict=True):
                if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                    raise ValueError(
                        f"{self.name}: the picture of camera {camera!r} at episode {episode}, frame {frame} must be "
                        f"uint8 (height, width, 3), got {image.dtype} {image.shape}."
                    )
        return clips


__all__ = ["EpisodeDataset"]

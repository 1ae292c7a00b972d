"""Robot demonstrations in LeRobot's format (v2.0, v2.1 and v3.0) as a PyTorch dataset.

Its own small reader: the `lerobot` package cannot be installed beside current torch, datasets and huggingface-hub.
"""

import hashlib
import json
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ..file_windows import FileWindows
from ..robot_dataset import RobotDataset, evenly_spread
from .dimension_names import dimension_names, make_unique
from .frame_cache import FrameCache
from .frame_checks import FrameChecks
from .frame_questions import FrameQuestions
from .frame_table import (
    INDEX_COLUMNS,
    ROW_NUMBER,
    DataFiles,
    blocks,
    check_lengths,
    episode_runs,
    first_without_picture,
    is_picture,
    is_vector,
    load_table,
    matrix,
    numbered_runs,
    scalars,
    vectors,
)
from .hub_files import HubFolder
from .language import read_language
from .metadata import LeRobotMetadata
from .stored_image import read_image
from .streamed_videos import StreamedVideos
from .vector_keys import VectorPart, choose_keys
from .video_placement import PlacementError, VideoTimes, frames_of_episodes, place_rows

T = TypeVar("T")
STREAM_GB = 20.0
_MANY_FILES = 50  # to be looked at, from where on there is a progress bar


class LeRobotDataset(RobotDataset):
    """One item per frame of a LeRobot dataset: the frame's observation and the action chunk that starts there.

    ```python
    data = LeRobotDataset("lerobot/pusht", chunk_size=16, episodes=range(180))
    data[0]  # {"images": [uint8 (height, width, 3) per camera], "cameras": [their names, data.cameras], "text": str,
             #  "state": float32 (Ds,), "actions": float32 (H, Da), "action_is_pad": bool (H,),
             #  "episode_index": int, "frame_index": int, "timestamp": float}
    ```

    The chunk holds the actions of the frames t, t+1, ..., t+H-1. Past the episode's end the last action is repeated
    and `action_is_pad` is True (LeRobot's convention). `state` is absent where the dataset has none. `frame_index`
    counts an episode's rows from 0; `timestamp` is in seconds, as the dataset has it.

    What a folder lacks and can be derived is derived: frame and task numbers, times, names, the place of a file.
    `notes` says what. Features that are not used do not matter, and sizes are those of the data.

    An episode's rows have the frames of its video one by one if there are as many of both. If not, they have the
    nearest ones in time, where the two begin and end together. What cannot be told is refused.

    The tabular columns, and images that are stored in them, are copied once into the `datasets` cache and memory-mapped
    from there. In memory are numbers for every episode, not for every frame: 48 bytes, and 32 for each camera that is
    stored as video (and 4 for each row that is placed by its time); and the words of language columns, a sub-task once
    for as long as it holds. Video frames are decoded when asked for; every
    data-loader worker opens its own files.

    Args:
        folder_or_hub_id: a folder with `meta/info.json`, or the id of a dataset on the Hub, which is downloaded.
        chunk_size: H, the number of actions per item.
        episodes: the dataset's episode numbers to use, in this order; all by default.
        cameras: the cameras to use, in this order, as feature names (`"observation.images.wrist"`) or their last part
            (`"wrist"`); by default all that have files, in the order of `info.json`. Depth maps are not cameras.
        robot: the robot's name in a policy of several robots (`KIVLAProcessor(robots=...)`); every item then has it as
            `"robot"`.
        frame_cache_mb: keep decoded frames in memory, the most recently used ones, up to so many megabytes in every
            process that reads: for datasets that fit, and are read more than once.
        action_key, state_key: the columns of actions and state: a name, or several that are put after each other; each
            perhaps with a range of dimensions, `"action[0:7]"`. `state_key="none"` for no state. By default `action`
            and `observation.state`, or what is plainly meant in their place.
        keys: whose names of columns the dataset has: `"openpi"` (`actions`, `state`, `image`, `wrist_image`) or
            `"gr00t"` (groups and names of `meta/modality.json`).
        subtask_key: the column with the sub-task of every frame, which becomes the `response` of its item: LeRobot's
            `"language_persistent"`, a column of strings, or of numbers with a table in `meta/` (`"subtask_index"` and
            `meta/subtasks.parquet`). By default items have no response.
        tolerance_s: how many seconds a row may be from its video frame where times decide; half a frame by default.
        revision: branch, tag or commit of a dataset on the Hub; `"lerobot/pusht@v2.1"` says the same.
        streaming: of a dataset on the Hub fetch each video when a frame of it is first asked for, and keep only the
            last ones. Data files are downloaded whole. What is wrong with a video is then raised when it is fetched.
        stream_gb: how many gigabytes of videos are kept; 20.

    Attributes:
        cameras: feature names of the cameras.
        episodes: the dataset's numbers of the selected episodes; `num_episodes` of them.
        version: of LeRobot's format, "v2.0", "v2.1" or "v3.0".
        fps: frames, and therefore actions, per second.
        state_dim, action_dim: number of dimensions; `state_dim` is 0 without a state.
        state_names, action_names: names of the dimensions, or None.
        action_key, state_key: the columns that these are made of, in order.
        tolerance_s, subtask_key: as above.
        questions: what is asked about frames (`language_events`), as VLM data.
        robot_type: as in `info.json`, or None.
        tasks: task index → instruction.
        features: `info.json`'s description of every feature.
        notes: what was assumed, derived or chosen, a sentence each.

    Raises:
        FileNotFoundError: not a LeRobot dataset, or data or video files of the selection are missing; all are named.
        ValueError: an unsupported format version; an unknown camera, column or episode; damaged files; metadata that
            contradicts the data; rows whose video frames cannot be told; NaN or infinity among the selected states and
            actions. Damage inside a video stream is raised when the frame is read.
    """

    notes: list[str]

    def __init__(
        self,
        folder_or_hub_id: str | Path,
        chunk_size: int = 50,
        episodes: Sequence[int] | None = None,
        cameras: Sequence[str] | None = None,
        robot: str | None = None,
        frame_cache_mb: float = 0,
        action_key: str | Sequence[str] | None = None,
        state_key: str | Sequence[str] | None = None,
        keys: str | None = None,
        tolerance_s: float | None = None,
        subtask_key: str | None = None,
        revision: str | None = None,
        streaming: bool = False,
        stream_gb: float | None = None,
    ):
        if chunk_size < 1:
            raise ValueError(f"chunk_size is the number of actions per item and must be at least 1, got {chunk_size}.")
        if tolerance_s is not None and not tolerance_s > 0:
            raise ValueError(f"tolerance_s is a number of seconds above 0, got {tolerance_s}.")
        self.chunk_size = chunk_size
        self.robot = robot
        self._frame_cache = FrameCache(int(frame_cache_mb * 1e6))
        self._hub = _on_hub(folder_or_hub_id, revision)
        self._stream = _stream_of(folder_or_hub_id, self._hub, streaming, stream_gb)
        self.name = str(folder_or_hub_id) if self._hub is None else self._hub.repo
        self._metadata = _metadata_of(folder_or_hub_id, self._hub, streaming)
        if self._hub is not None and self._hub.revision:
            self._metadata.notes.append(f"The dataset's revision {self._hub.revision} is read, not the newest one.")
        self.notes = self._metadata.notes  # and what comes while files are looked for

        info = self._metadata.info
        self.version = info["codebase_version"]
        self.fps = info["fps"]
        self.tolerance_s = 0.5 / self.fps if tolerance_s is None else float(tolerance_s)
        self.robot_type = info.get("robot_type")
        self.features = info["features"]
        if self._stream is not None:
            if not any(_is_camera(feature) and feature["dtype"] == "video" for feature in self.features.values()):
                raise ValueError(
                    f"{self.name} has no videos that could be streamed: pictures are in its data files, which are "
                    "downloaded whole. Leave out streaming."
                )
            self.notes.append(
                f"Videos are streamed, and at most {self._stream.max_bytes / 1e9:g} GB of them kept, in "
                f"{self._stream.folder}. They are checked when they are fetched, not now."
            )
        # Positions in the metadata's episode arrays.
        self._positions = self._select_episodes(episodes)
        self._item_ends = np.cumsum(self._lengths)  # one past each selected episode's last item

        files, placed = self._look_at_files()
        modality = self._metadata.modality() if keys == "gr00t" else None
        columns = [name for name, types in files.types.items() if all(map(is_vector, types))]
        try:
            chosen = choose_keys(columns, self.features, keys, modality, action_key, state_key)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.notes += chosen.notes
        self._parts = {"actions": chosen.actions} | ({"state": chosen.state} if chosen.state else {})
        self._stored_images = [name for name, types in files.types.items() if all(map(is_picture, types))]
        self.cameras = self._select_cameras(cameras, chosen.cameras)
        stored = [camera for camera in self.cameras if camera in self._stored_images]
        if self._stream is not None and stored:
            self.notes.append(f"Pictures of {_some(stored)} are in the data files, which are downloaded whole.")
        self._index_columns = [name for name in INDEX_COLUMNS if name in files.types]
        vector_columns = list(dict.fromkeys(part.column for parts in self._parts.values() for part in parts))
        try:
            # Which rows are whose is said by their episode's number, or else by their own
            is_numbered = "episode_index" not in files.types and ROW_NUMBER in files.types
            numbers = [*self._index_columns, ROW_NUMBER] if is_numbered else self._index_columns
            self._table = load_table(files, numbers, vector_columns, stored)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self._first_rows = self._find_episodes(placed, files.num_rows)  # each selected episode's first row of the table
        self._widths: dict[str, int] = {}  # of the columns
        self.action_dim, self.action_names = self._measure("actions", chosen.names)
        self.state_dim, self.state_names = self._measure("state", chosen.names) if chosen.state else (0, None)
        self.tasks, self._episode_tasks = self._derive_tasks()
        self._check_frames()
        self._check_stored_images(stored)
        self.subtask_key = subtask_key
        where = self._metadata.root, files.paths, files.types, self._first_rows, self._lengths
        try:
            self._language = read_language(*where, self._times, subtask_key)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.notes += self._language.notes
        self._videos = self._place_videos()

    def __len__(self) -> int:
        return int(self._item_ends[-1])

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}: LeRobot {self.version}, robot {self.robot_type}, {len(self)} frames "
            f"in {self.num_episodes} of {len(self._metadata.episode_indices)} episodes at {self.fps} fps, "
            f"{len(self.tasks)} tasks, chunk_size {self.chunk_size}, state_dim {self.state_dim}, "
            f"action_dim {self.action_dim}, cameras {self.cameras})"
        )

    def __getitem__(self, index: int) -> dict:
        item = operator.index(index)
        if not -len(self) <= item < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} frames")
        item %= len(self)
        selected = int(np.searchsorted(self._item_ends, item, side="right"))
        rows, frame, steps_left = self._rows(item, selected)
        example = {
            "images": [
                self._frame_cache.get((camera, item), lambda c=camera: self._image(c, selected, rows, frame))
                for camera in self.cameras
            ],
            "cameras": list(self.cameras),
            "text": self._text(rows, selected, frame),
            "actions": self._chunk(rows, steps_left),
            "action_is_pad": np.arange(self.chunk_size) >= steps_left,
            "episode_index": int(self._metadata.episode_indices[self._positions[selected]]),
            "frame_index": frame,
            "timestamp": self._time(rows, frame),
        }
        if self.state_dim:
            example["state"] = vectors(rows[:1], self._parts["state"])[0].copy()
        if self.robot is not None:
            example["robot"] = self.robot
        if (subtask := self._language.subtask(selected, frame)) is not None:
            example["response"] = subtask
        return example

    @classmethod
    def camera_names(cls, name: str | Path) -> list[str]:
        """Feature names of the cameras that have files, from a dataset's metadata alone."""
        hub = _on_hub(name)
        metadata = _metadata_of(name, None) if hub is None else LeRobotMetadata.load(hub.root)

        def has_videos(camera: str) -> bool:
            if hub is not None:  # by the first episode's: nothing is fetched
                return metadata.has_videos(camera) and all(map(hub.has, metadata.video_files(camera, np.array([0]))))
            everything = np.arange(len(metadata.episode_indices))
            return any(not gone for gone in _videos_gone(metadata, camera, everything).values())

        return [
            camera
            for camera, feature in metadata.info["features"].items()
            if _is_camera(feature) and (feature["dtype"] == "image" or has_videos(camera))
        ]

    def size_of(self, index: int) -> tuple[int, int]:
        """How many images an item has and how many characters of text; no image is decoded."""
        selected = int(np.searchsorted(self._item_ends, index, side="right"))
        rows, frame, _ = self._rows(index, selected)
        response = self._language.subtask(selected, frame) or ""
        return len(self.cameras), len(self._text(rows, selected, frame)) + len(response)

    def action_chunks(self, max_chunks: int) -> np.ndarray:
        """The `actions` of up to `max_chunks` items, spread evenly, (n, H, Da), without decoding any image."""
        items = evenly_spread(len(self), max_chunks)
        selected = np.searchsorted(self._item_ends, items, side="right")
        chunks = []
        for item, episode in zip(items.tolist(), selected.tolist(), strict=True):
            rows, _, steps_left = self._rows(item, episode)
            chunks.append(self._chunk(rows, steps_left))
        return np.stack(chunks)

    def vectors(self, name: str) -> Iterator[np.ndarray]:
        """All "actions" or "state" of the selected episodes, in blocks (frames, D) float32; no image is decoded."""
        parts = self._parts[name]
        return (vectors(rows, parts) for _, _, rows in self._blocks([part.column for part in parts]))

    def _rows(self, item: int, selected: int, count: int | None = None) -> tuple[pa.Table, int, int]:
        """The table's rows of an item's chunk (or `count` of them), its place in the episode, and the steps left."""
        steps_left = int(self._item_ends[selected]) - item
        frame = int(self._metadata.episode_lengths[self._positions[selected]]) - steps_left
        row = int(self._first_rows[selected]) + frame
        return self._table[row : row + min(count or self.chunk_size, steps_left)], frame, steps_left

    def _chunk(self, rows: pa.Table, steps_left: int) -> np.ndarray:
        """(H, Da), the last action of the episode repeated past its end."""
        return vectors(rows, self._parts["actions"])[np.minimum(np.arange(self.chunk_size), steps_left - 1)]

    def _task(self, rows: pa.Table, selected: int) -> int:
        if self._episode_tasks is not None:
            return int(self._episode_tasks[selected])
        return int(scalars(rows["task_index"][:1])[0])

    def _text(self, rows: pa.Table, selected: int, frame: int) -> str:
        episode = int(self._metadata.episode_indices[self._positions[selected]])
        return self._language.wording(self.tasks[self._task(rows, selected)], selected, frame, episode)

    def _time(self, rows: pa.Table, frame: int) -> float:
        time = float(scalars(rows["timestamp"][:1])[0]) if "timestamp" in self._index_columns else np.nan
        return frame / self.fps if np.isnan(time) else time

    @property
    def episodes(self) -> list[int]:
        return self._metadata.episode_indices[self._positions].tolist()

    @cached_property
    def questions(self) -> FrameQuestions:
        """What is asked about frames of the selected cameras (`language_events`), as VLM data; perhaps none."""
        starts = self._item_ends - self._lengths
        return FrameQuestions(
            self,
            [
                (int(starts[asked.selected]) + asked.frame, asked.camera, asked.question, asked.answer)
                for asked in self._language.questions
                if asked.camera is None or asked.camera in self.cameras
            ],
        )

    @property
    def action_key(self) -> list[str]:
        return [str(part) for part in self._parts["actions"]]

    @property
    def state_key(self) -> list[str]:
        return [str(part) for part in self._parts.get("state", ())]

    @property
    def index_bytes(self) -> int:
        """Memory of the arrays with a number for every episode: what grows with the dataset."""
        metadata = self._metadata
        arrays = [metadata.episode_indices, metadata.episode_lengths, *metadata.placement.values()]
        arrays += [self._positions, self._item_ends, self._first_rows, *self._first_frames.values()]
        arrays += [numbers for by_episode in self._frame_numbers.values() for numbers in by_episode.values()]
        return sum(array.nbytes for array in arrays)

    def episode_range(self, episode: int) -> range:
        """The items of an episode, given by the dataset's own number for it."""
        found = np.flatnonzero(self._metadata.episode_indices[self._positions] == episode)
        if not len(found):
            raise ValueError(f"{self.name}: episode {episode} is not among the selected ones, {_some(self.episodes)}.")
        selected = int(found[0])
        end = int(self._item_ends[selected])
        return range(end - int(self._metadata.episode_lengths[self._positions[selected]]), end)

    def episode_frames(self, episode: int) -> dict:
        items = self.episode_range(episode)
        selected = int(np.searchsorted(self._item_ends, items.start, side="right"))
        rows, _, _ = self._rows(items.start, selected, len(items))
        return {name: vectors(rows, parts) for name, parts in self._parts.items()} | {
            "timestamp": self._times(selected)
        }

    def episode_texts(self, episode: int) -> list[str]:
        items = self.episode_range(episode)
        selected = int(np.searchsorted(self._item_ends, items.start, side="right"))
        if self._episode_tasks is not None:
            return [self.tasks[int(self._episode_tasks[selected])]]
        rows, _, _ = self._rows(items.start, selected, len(items))
        return [self.tasks[index] for index in dict.fromkeys(scalars(rows["task_index"]).tolist())]

    def video_files(self) -> dict[str, list[Path]]:
        """The video files of the selected episodes, by camera; cameras that are stored as pictures have none.

        They are read by `read_video`.
        """
        cameras = [camera for camera in self.cameras if camera not in self._stored_images]
        return {camera: list(self._metadata.video_files(camera, self._positions)) for camera in cameras}

    def read_video(self, path: Path, read: Callable[[Path], T]) -> T:
        """Read a video file, which is fetched first if it is streamed."""
        return read(path) if self._stream is None else self._stream.use(path, read)

    @cached_property
    def meta_statistics(self) -> dict[str, dict[str, np.ndarray]] | None:
        """What LeRobot wrote into `meta/stats.json`, over all episodes; None when there is no such file.

        What a policy trained with LeRobot was normalised with. Its q01 and q99 are averages of every episode's
        quantiles; `statistics` has true ones. Old datasets have no quantiles, v2.1 has no file.
        """
        return self._metadata.statistics()

    @cached_property
    def content_digest(self) -> str:
        """A short digest of the selected episodes: the same wherever the dataset lies, another if it is recorded anew.

        Of actions, states, tasks and times of all frames; and of the files with the pictures, size, beginning and end:
        video and parquet files say there what they hold.
        """
        digests = {name: hashlib.sha256() for name in (*INDEX_COLUMNS, *self._parts)}
        columns = [*self._index_columns, *(part.column for parts in self._parts.values() for part in parts)]
        for rows, episodes, block in self._blocks(columns):
            frames = rows - self._first_rows[episodes]
            arrays = {name: scalars(block[name]) for name in self._index_columns}
            arrays = {"timestamp": frames / self.fps, "frame_index": frames} | arrays
            arrays.setdefault("episode_index", self._metadata.episode_indices[self._positions[episodes]])
            if self._episode_tasks is not None:
                arrays["task_index"] = self._episode_tasks[episodes]
            arrays |= {name: vectors(block, parts) for name, parts in self._parts.items()}
            for name, digest in digests.items():
                digest.update(np.ascontiguousarray(arrays[name]).data)
        pictures = {}
        for camera in self.cameras:
            is_stored = camera in self._stored_images
            paths = self._data_paths if is_stored else self._metadata.video_files(camera, self._positions)
            if self._stream is not None and not is_stored:  # not here, and placed as they come
                pictures[camera] = [self._stream.digest(path) for path in paths]
                continue
            pictures[camera] = [_digest_of_ends(path) for path in paths]
            if numbers := self._frame_numbers.get(camera):  # which were placed by their times
                pictures[camera] += [hashlib.sha256(frames.tobytes()).hexdigest() for frames in numbers.values()]
        whole = [self.fps, self.episodes, sorted(self.tasks.items()), pictures]
        whole += [digest.hexdigest() for digest in digests.values()] + self._language.facts()
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]

    # ------------------------------------------------------------------------------------------------------- opening
    @property
    def _lengths(self) -> np.ndarray:
        return self._metadata.episode_lengths[self._positions]

    def _select_episodes(self, episodes: Sequence[int] | None) -> np.ndarray:
        indices = self._metadata.episode_indices
        if not len(indices):
            raise ValueError(f"{self.name} has no episodes.")
        if episodes is None:
            return np.arange(len(indices))
        selected = np.array([operator.index(episode) for episode in episodes])
        if not len(selected):
            raise ValueError(f"{self.name}: `episodes` is empty. Leave it out to use all episodes.")
        if not (known := np.isin(selected, indices)).all():
            raise ValueError(f"{self.name} has no episode {_some(selected[~known])}. Its episodes: {_some(indices)}.")
        if len(np.unique(selected)) != len(selected):
            raise ValueError(f"{self.name}: an episode is selected twice in {_some(selected)}.")
        order = np.argsort(indices)
        return order[np.searchsorted(indices, selected, sorter=order)]

    def _look_at_files(self) -> tuple[DataFiles, dict[Path, np.ndarray]]:
        """The data files of all episodes, or if some are missing those of the selection; and the episodes in each."""
        placed = {}
        if self._hub is None:
            placed = self._metadata.data_files(np.arange(len(self._metadata.episode_indices)))
        if not placed or not all(path.is_file() for path in placed):
            placed = self._metadata.data_files(np.sort(self._positions))
            self._refuse_missing([path for path in placed if not path.is_file()], "data file")
        self._data_paths = list(placed)
        return DataFiles.look_at(self._data_paths), placed

    def _select_cameras(self, cameras: Sequence[str] | None, preset: list[str] | None) -> list[str]:
        announced = [key for key, feature in self.features.items() if _is_camera(feature)]
        wanted = cameras if cameras is not None else preset
        selected = []
        for name in announced if wanted is None else wanted:
            matches = [key for key in announced if key == name or (wanted is not None and key.endswith(f".{name}"))]
            matches = [name] if name in matches else matches
            if len(matches) != 1:
                problem = "names more than one camera" if matches else "is not a camera"
                raise ValueError(f"{self.name}: {name!r} {problem} of this dataset. Its cameras: {_some(announced)}.")
            selected += matches
        if len(set(selected)) != len(selected):
            raise ValueError(f"{self.name}: a camera is selected twice in {selected}.")
        gone = {
            camera: _videos_gone(self._metadata, camera, self._positions)
            for camera in selected
            if camera not in self._stored_images
        }
        absent = [camera for camera, paths in gone.items() if all(paths.values())]
        if absent and (wanted is not None or len(absent) == len(selected)):
            raise FileNotFoundError(
                f"{self.name}: info.json announces {_some(absent)}, but the folder holds no picture of "
                f"{'them' if len(absent) > 1 else 'it'}. Download or copy the dataset again, or leave the cameras out "
                "(cameras=[] for none)."
            )
        for camera in absent:
            self.notes.append(
                f"info.json announces the camera {camera}, but the folder holds no picture of it: left out."
            )
        selected = [camera for camera in selected if camera not in absent]
        missing = [path for camera in selected for path, is_gone in gone.get(camera, {}).items() if is_gone]
        self._refuse_missing(missing, f"video of the cameras {_some(selected)}")
        return selected

    def _refuse_missing(self, paths: list[Path], what: str) -> None:
        if paths:
            raise FileNotFoundError(
                f"{self.name}: {len(paths)} {what}{'' if len(paths) == 1 else ', each'} missing: {_some(paths)}. "
                "Download or copy the dataset again, or leave the episodes or the camera out."
            )

    def _find_episodes(self, placed: dict[Path, np.ndarray], num_rows: list[int]) -> np.ndarray:
        """Compare the episodes' lengths with the metadata; returns the first row of each selected one."""
        all_lengths = self._metadata.episode_lengths
        if "episode_index" in self._index_columns:
            indices, first_rows = episode_runs(self._table)
            lengths = np.diff(first_rows, append=len(self._table))
        else:
            for (path, held), rows in zip(placed.items(), num_rows, strict=True):
                if rows != all_lengths[held].sum():
                    raise ValueError(
                        f"{path} has {rows} rows and its episodes {all_lengths[held].sum()}: without episode_index "
                        "nobody can tell which are whose."
                    )
            indices, first_rows, lengths = self._find_without_numbers(list(placed.values()))
        order = np.argsort(indices)
        indices, first_rows, lengths = indices[order], first_rows[order], lengths[order]
        if (np.diff(indices) == 0).any():
            raise ValueError(f"{self.name}: the frames of an episode are not in one piece in the data files.")
        selected = self._metadata.episode_indices[self._positions]
        places = np.minimum(np.searchsorted(indices, selected), len(indices) - 1)
        found = np.where(indices[places] == selected, lengths[places], 0)
        expected = self._lengths
        if (wrong := np.flatnonzero(found != expected)).size:
            first = wrong[0]
            raise ValueError(
                f"{self.name}: episode {selected[first]} has {expected[first]} frames by its metadata, but "
                f"{found[first]} in the data."
            )
        unknown = ~np.isin(indices, self._metadata.episode_indices)
        if unknown.any():
            self.notes.append(
                f"The data files hold {int(lengths[unknown].sum())} rows of episodes that the episode table does not "
                f"list ({_some(indices[unknown])}): they are not used."
            )
        return first_rows[places]

    def _find_without_numbers(self, files: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number, first row and length of each episode, where rows do not say of which episode they are.

        Args:
            files: positions of the episodes that each data file has, as many rows as theirs.
        """
        metadata, lengths = self._metadata, self._metadata.episode_lengths
        shared = [held for held in files if len(held) > 1]
        if shared and ROW_NUMBER in self._table.column_names:
            starts = metadata.first_indices()
            order = np.argsort(starts, kind="stable")
            runs, first_rows, firsts = numbered_runs(self._table, starts[order])
            positions = order[runs]
            if (runs < 0).any() or (firsts != starts[positions]).any():
                raise ValueError(
                    f"{self.name}: episode_index is missing, and the numbers in the column {ROW_NUMBER!r} are not "
                    "those of the episode table: nobody can tell which rows are whose. Export the dataset again."
                )
            self.notes.append(f"episode_index is missing: the column {ROW_NUMBER!r} says which rows are whose.")
            return metadata.episode_indices[positions], first_rows, np.diff(first_rows, append=len(self._table))
        # Numbers of frames begin anew with each episode, and are checked: they tell episodes of different lengths apart
        is_told = "frame_index" in self._index_columns
        if any(not is_told or len(np.unique(lengths[held])) < len(held) for held in shared):
            raise ValueError(
                f"{self.name}: episode_index and {ROW_NUMBER} are missing, and a data file holds several episodes, "
                f"{'of equal lengths' if is_told else 'without frame_index'}: nobody can tell in which order. Export "
                "the dataset again with these columns."
            )
        self.notes.append("episode_index is missing: the rows of a data file are its episodes, in their order.")
        held = np.concatenate(files)
        return metadata.episode_indices[held], np.cumsum(lengths[held]) - lengths[held], lengths[held]

    def _measure(self, kind: str, preset_names: dict[str, list[str]]) -> tuple[int, list[str] | None]:
        """Size and names of the actions or the state; the size is that of the first selected row."""
        first, label_of_all = int(self._first_rows[0]), kind.removesuffix("s")
        row = self._table[first : first + 1]
        names, measured, parts = [], [], self._parts[kind]  # names: (part's label, name) of every dimension
        has_names = len(parts) > 1
        for part in parts:
            if check_lengths(row[part.column]) is not None:
                raise ValueError(f"{self.name}: {part.column!r} is empty in the first row.")
            width = self._widths[part.column] = matrix(row[part.column]).shape[1]
            if part.end is not None and part.end > width:
                raise ValueError(f"{self.name}: {part} asks for more than the {width} dimensions of the column.")
            measured.append(VectorPart(part.column) if (part.start, part.end) == (0, width) else part)
            label = label_of_all if len(parts) == 1 else part.column.rpartition(".")[2]
            feature = self.features.get(part.column, {})
            own, note = dimension_names(feature.get("names"), width, label)
            has_names = has_names or own is not None
            own = own or ([label] if width == 1 else [f"{label}_{i}" for i in range(width)])
            names += [(label, name) for name in own[part.start : part.end]]
            shape = feature.get("shape")
            if isinstance(shape, list) and shape not in ([width], []) and not (width == 1 and shape == [1]):
                self.notes.append(f"info.json gives {part.column} the shape {shape}; the data has {width} dimensions.")
            self.notes += [note] if note else []
        self._parts[kind] = tuple(measured)
        plain = [name for _, name in names]
        if len(set(plain)) < len(plain):
            plain = make_unique([name if name == label else f"{label}.{name}" for label, name in names])
        return len(names), preset_names.get(kind) or (plain if has_names else None)

    def _derive_tasks(self) -> tuple[dict[int, str], np.ndarray | None]:
        """Task number → instruction; and the task of each selected episode, where rows do not have one themselves."""
        tasks = self._metadata.tasks
        if tasks and "task_index" in self._index_columns:
            return tasks, None
        what = "task_index is missing" if tasks else "There is no table of tasks"
        if len(tasks) == 1:
            self.notes.append(f"{what}: there is only one task.")
            return tasks, np.full(len(self._positions), next(iter(tasks)))
        try:
            listed = self._metadata.episode_tasks(self._positions)
        except ValueError as error:
            raise ValueError(f"{self.name}: {what}, and the episode table lists no tasks. ({error})") from error
        for episode, its_tasks in zip(self.episodes, listed, strict=True):
            if len(its_tasks) != 1 or not isinstance(its_tasks[0], str):
                raise ValueError(f"{self.name}: {what}, and episode {episode} has not one task, but {its_tasks}.")
        numbers = {text: number for number, text in tasks.items()}
        for (text,) in listed:
            numbers.setdefault(text, max(numbers.values(), default=-1) + 1)
        self.notes.append(f"{what}: tasks are those that the episode table lists for each episode.")
        tasks = {number: text for text, number in numbers.items()} | tasks
        return tasks, np.array([numbers[text] for (text,) in listed])

    def _check_frames(self) -> None:
        """Look at every row of the selected episodes once, a block of them at a time."""
        numbers, tasks = self._metadata.episode_indices[self._positions], None
        if self._episode_tasks is None:
            tasks = list(self.tasks)
        checks = FrameChecks(self.name, self.fps, numbers, self._first_rows, self._lengths, tasks)
        for rows, episodes, block in self._blocks([*self._index_columns, *self._widths]):
            for column, width in self._widths.items():
                if (other := check_lengths(block[column])) is None and matrix(block[column]).shape[1] != width:
                    other = 0
                if other is not None:
                    frame = rows[other] - self._first_rows[episodes[other]]
                    raise ValueError(
                        f"{self.name}: {column!r} of episode {numbers[episodes[other]]}, frame {frame}, is empty or "
                        f"has not the {width} dimensions of the first row."
                    )
            columns = {name: scalars(block[name]) for name in self._index_columns}
            for kind, parts in self._parts.items():
                arrays = [matrix(block[part.column])[:, part.start : part.end] for part in parts]
                columns[kind] = np.concatenate(arrays, axis=1) if len(arrays) > 1 else arrays[0]
            checks.add(rows, episodes, columns)
        keys = {"actions": self.action_key, "state": self.state_key}
        checks.refuse_unfinite({kind: " + ".join(columns) for kind, columns in keys.items()})
        for name, how in (("frame_index", "frames are numbered in the order of the rows"),
                          ("timestamp", f"times are those of {self.fps} fps")):  # fmt: skip
            if name not in self._index_columns:
                self.notes.append(f"{name} is missing: {how}.")
        self.notes += checks.check_times()
        sizes = {"actions": (self.action_names, self.action_dim), "state": (self.state_names, self.state_dim)}
        labels = {kind: names or [f"{kind} {i}" for i in range(size)] for kind, (names, size) in sizes.items()}
        self.notes += checks.rounding(labels)

    def _check_stored_images(self, cameras: Sequence[str]) -> None:
        """Refuse rows without a picture, which would end a run when they are reached."""
        for first, length, episode in zip(
            self._first_rows.tolist(), self._lengths.tolist(), self.episodes, strict=True
        ):
            for camera in cameras:
                frame = first_without_picture(self._table[first : first + length][camera])
                if frame is not None:
                    raise ValueError(
                        f"{self.name}, camera {camera!r}, episode {episode}, frame {frame}: the data file holds no "
                        "image here. Leave the camera or the episode out."
                    )

    def _blocks(self, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, pa.Table]]:
        """Columns of the selected episodes; see `blocks`."""
        return blocks(self._table, list(dict.fromkeys(columns)), self._first_rows, self._lengths)

    def _place_videos(self) -> Any:  # `VideoReaders` of an optional dependency
        """Find the frames of every selected episode in its videos. None when no camera is stored as video.

        Of streamed videos, which are not here yet, a file's are found when it is fetched: see `_place_streamed`.
        """
        self._first_frames: dict[str, np.ndarray] = {}  # camera → of each selected episode; -1 is not found yet
        self._frame_numbers: dict[str, dict[int, np.ndarray]] = {}  # camera → selected episode → frames of its rows
        self._other_rates: dict[str, dict[str, int]] = {}  # camera → "by row", "by time" → an episode of such videos
        cameras = [camera for camera in self.cameras if camera not in self._stored_images]
        if not cameras:
            return None
        from .video import VideoReaders  # PyAV is an optional dependency

        files = {camera: self._metadata.video_files(camera, self._positions) for camera in cameras}
        for camera in cameras:
            self._first_frames[camera] = np.full(len(self._positions), -1, np.int64)
            self._frame_numbers[camera], self._other_rates[camera] = {}, {}
        if self._stream is not None:
            self._streamed_files = files
            self.file_windows = self._make_windows(files, self._stream)
            return VideoReaders(open_file=self._open_video)
        count = sum(map(len, files.values()))
        progress = tqdm(total=count, desc="Looking at videos", unit="file", disable=count < _MANY_FILES)
        for camera in cameras:
            self._place_videos_of(camera, files[camera], progress)
        progress.close()
        return VideoReaders()

    def _place_videos_of(self, camera: str, files: dict[Path, np.ndarray], progress: tqdm) -> None:
        selected = self._selected_numbers()
        beside = self._metadata.episodes_beside(camera, [int(held[0]) for held in files.values()])
        drifts, offs = [], []  # in seconds
        for i, (path, held) in enumerate(files.items()):
            drift, off = self._place_video(camera, path, held, None if beside is None else beside[i], selected)
            drifts += [drift] if drift else []
            offs += off
            progress.update()
        if drifts:
            self.notes.append(
                f"{camera}: the episode table's times are up to {max(drifts):.4g} s off those of {len(drifts)} videos, "
                "which have as many frames as rows: the frames are counted."
            )
        if offs:
            off = np.concatenate(offs)
            self.notes.append(
                f"{camera}: {len(offs)} of {len(self._positions)} episodes have more or fewer frames than rows. Each "
                f"row has the frame nearest in time: {int((off < 1e-3).sum())} of {len(off)} within 1 ms, the furthest "
                f"{off.max():.4g} s off (tolerance {self.tolerance_s:.4g} s)."
            )

    def _place_streamed(self, camera: str, position: int) -> None:
        """Find the frames of all selected episodes that are in the same video of a camera as this one."""
        path = self._metadata.video(camera, position)
        beside = self._metadata.episodes_beside(camera, [position])
        held = self._streamed_files[camera][path]
        self._place_video(camera, path, held, None if beside is None else beside[0], self._selected_numbers())

    def _place_video(
        self, camera: str, path: Path, held: np.ndarray, beside: np.ndarray | None, selected: np.ndarray
    ) -> tuple[float, list[np.ndarray]]:
        """Find the frames of the selected episodes in a video.

        Args:
            held, beside: see `_spans`.
            selected: see `_selected_numbers`.

        Returns:
            How far the episode table's times are off, if by more than half a frame; and of each episode that is placed
            by time, how far its rows are from their frames. In seconds.
        """
        from .video import VideoReadError, check_video_file, frame_times

        def read_times(file: Path) -> np.ndarray:
            check_video_file(file)
            return frame_times(file)

        try:
            video = VideoTimes.of(self.read_video(path, read_times), self.fps)
        except VideoReadError as error:
            raise ValueError(f"{self.name}: camera {camera!r}: {error}") from error
        episode, rows, other_rate = None, {}, self._other_rates[camera]
        try:
            spans, drift = self._spans(camera, held, video, beside)
            for position, first, end in spans:
                episode, number = self._metadata.episode_indices[position], int(selected[position])
                placed = rows[number] = place_rows(self._times(number), video, first, end, self.fps, self.tolerance_s)
                if not video.has_rate(self.fps) and len(video.seconds) > 1:
                    other_rate["by row" if placed.numbers is None else "by time"] = episode
                if self._stream is not None and "by row" in other_rate:
                    raise PlacementError(
                        f"the video does not run at {self.fps} fps, but has a frame for each row. If that is right, "
                        "the other videos tell, which are not here: leave out streaming."
                    )
                if len(other_rate) > 1:
                    raise PlacementError(
                        f"the videos do not run at {self.fps} fps, but episode {other_rate['by row']} has a frame "
                        f"for each row and episode {other_rate['by time']} has not: their times mean nothing."
                    )
        except PlacementError as error:
            episode = episode if error.episode is None else error.episode
            raise ValueError(
                f"{self.name}: camera {camera!r}, episode {episode} in {path}: {error} Leave the episode or the "
                "camera out, allow more with tolerance_s, or export the dataset again."
            ) from error
        for number, placed in rows.items():  # all of the file, or none
            self._first_frames[camera][number] = placed.first
            if placed.numbers is not None:
                self._frame_numbers[camera][number] = placed.numbers
        offs = [placed.off for placed in rows.values() if placed.off is not None]
        return drift if drift > video.duration / 2 else 0.0, offs

    def _selected_numbers(self) -> np.ndarray:
        """Position of an episode → which of the selected ones it is, or -1."""
        selected = np.full(len(self._metadata.episode_indices), -1)
        selected[self._positions] = np.arange(len(self._positions))
        return selected

    def _make_windows(self, files: dict[str, dict[Path, np.ndarray]], stream: StreamedVideos) -> FileWindows:
        """Group the episodes by the files of the camera that has the fewest.

        A file of another camera with episodes of two groups is counted, and perhaps fetched, for both.
        """
        selected = self._selected_numbers()
        groups = [selected[held] for held in min(files.values(), key=len).values()]
        group_of = np.empty(len(self._positions), np.int64)
        for number, episodes in enumerate(groups):
            group_of[episodes] = number
        sizes = np.zeros(len(groups), np.int64)
        for by_path in files.values():
            for path, held in by_path.items():
                sizes[np.unique(group_of[selected[held]])] += stream.size(path)
        # Half of the space is for the window that is trained on, and half for what is loaded ahead, the next one.
        window_bytes = stream.max_bytes // 2
        if sizes.max() > window_bytes:
            raise ValueError(
                f"{self.name}: stream_gb must be twice as large as the videos that belong together, "
                f"{2 * sizes.max() / 1e9:.3g} GB, got {stream.max_bytes / 1e9:.3g}."
            )
        starts = self._item_ends - self._lengths
        pieces = [np.stack([starts[episodes], self._lengths[episodes]], axis=1) for episodes in groups]
        return FileWindows(pieces, sizes, window_bytes)

    def _open_video(self, path: Path) -> Any:
        from .video import VideoReader

        return self.read_video(path, VideoReader)

    def _spans(
        self, camera: str, held: np.ndarray, video: VideoTimes, beside: np.ndarray | None
    ) -> tuple[list[tuple[int, int, int]], float]:
        """(position, first frame, one past the last) of the selected episodes in a video; and the table's drift.

        Args:
            held: positions of the selected episodes in it.
            beside: positions of all episodes in it, or None if every episode has a video of its own.
        """
        indices = self._metadata.episode_indices
        if beside is None:
            if len(held) > 1:
                raise PlacementError("the file is that of another episode as well.", int(indices[held[1]]))
            return [(int(held[0]), 0, len(video.seconds))], 0.0
        group = beside[np.argsort(indices[beside])]
        is_used = np.isin(group, held)
        starts, ends = self._metadata.video_spans(camera, group)
        first, end, drift = frames_of_episodes(
            video,
            indices[group],
            self._metadata.episode_lengths[group],
            starts,
            ends,
            is_used,
            indices,
            self.fps,
            self.tolerance_s,
        )
        chosen = zip(group[is_used].tolist(), first[is_used].tolist(), end[is_used].tolist(), strict=True)
        return list(chosen), drift

    def _times(self, selected: int) -> np.ndarray:
        """The times of an episode's rows."""
        first, length = int(self._first_rows[selected]), int(self._lengths[selected])
        if "timestamp" not in self._index_columns:
            return np.arange(length) / self.fps
        return scalars(self._table[first : first + length]["timestamp"])

    def _image(self, camera: str, selected: int, rows: pa.Table, frame: int) -> np.ndarray:
        """The RGB frame of a camera, uint8 (height, width, 3)."""
        position = self._positions[selected]
        where = f"{self.name}, camera {camera!r}, episode {self._metadata.episode_indices[position]}, frame {frame}"
        if camera in self._stored_images:
            try:
                return read_image(rows[camera][0].as_py(), self._metadata.root)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        from .video import VideoReadError

        if self._first_frames[camera][selected] < 0:
            self._place_streamed(camera, int(position))
        numbers = self._frame_numbers[camera].get(selected)
        number = int(self._first_frames[camera][selected]) + frame if numbers is None else int(numbers[frame])
        try:
            return self._videos.read(self._metadata.video(camera, position), number)
        except VideoReadError as error:
            raise ValueError(f"{where}: {error}") from error


def _on_hub(folder_or_hub_id: str | Path, revision: str | None = None) -> HubFolder | None:
    """The dataset on the Hub; None if it is a folder of this machine."""
    if not Path(folder_or_hub_id).expanduser().is_dir():
        return HubFolder(str(folder_or_hub_id), revision)
    if revision is not None:
        raise ValueError(f"{folder_or_hub_id} is a folder, which has no revision {revision!r}.")
    return None


def _stream_of(
    name: str | Path, hub: HubFolder | None, streaming: bool, stream_gb: float | None
) -> StreamedVideos | None:
    if stream_gb is not None and not (streaming and stream_gb > 0):
        raise ValueError(f"stream_gb is a number above 0, and for streaming=True, got {stream_gb}.")
    if not streaming:
        return None
    if hub is None:
        raise ValueError(f"{name} is a folder of this machine. Leave out streaming.")
    return StreamedVideos(hub, int((STREAM_GB if stream_gb is None else stream_gb) * 1e9))


def _metadata_of(folder_or_hub_id: str | Path, hub: HubFolder | None, streaming: bool = False) -> LeRobotMetadata:
    if hub is not None and streaming:
        return LeRobotMetadata.load(hub.root, fetch=hub.fetch, has=hub.lists)
    if hub is not None:
        return LeRobotMetadata.load(hub.root, fetch=hub.fetch, fetch_videos=hub.fetch)
    return LeRobotMetadata.load(Path(folder_or_hub_id).expanduser())


def _digest_of_ends(path: Path, length: int = 1 << 14) -> str:
    size = path.stat().st_size
    with path.open("rb") as stream:
        digest = hashlib.sha256(f"{size} ".encode() + stream.read(length))
        stream.seek(max(size - length, 0))
        digest.update(stream.read(length))
    return digest.hexdigest()


def _is_camera(feature: dict) -> bool:
    if feature.get("dtype") not in ("video", "image"):
        return False
    details = [feature.get(name) for name in ("info", "video_info")]
    details = [part for part in details if isinstance(part, dict)]
    return not any(part.get("video.is_depth_map") or part.get("is_depth_map") for part in details)


def _videos_gone(metadata: LeRobotMetadata, camera: str, positions: np.ndarray) -> dict[Path, bool]:
    """The video files of a camera → whether they are missing; none where the metadata does not say where they are."""
    if not metadata.has_videos(camera):
        return {}
    return {path: not metadata.has(path) for path in metadata.video_files(camera, positions)}


def _some(values) -> str:
    """A few of many values, for a message."""
    return f"{', '.join(map(str, islice(values, 20)))}{', ...' if len(values) > 20 else ''}"

"""Robot demonstrations in LeRobot's format (v2.0, v2.1 and v3.0) as a PyTorch dataset.

Its own small reader: the `lerobot` package cannot be installed beside current torch, datasets and huggingface-hub.
"""

import hashlib
import json
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import pyarrow as pa

from ....processing.observation_history import ObservationHistory
from ..robot_dataset import RobotDataset, evenly_spread
from .camera_selection import cameras_with_files, is_camera, select_cameras, unnamed_cameras
from .dimension_names import dimension_names, make_unique
from .episode_rows import compare_tasks, derive_tasks, find_episodes
from .episode_videos import EpisodeVideos, digest_of_ends
from .frame_cache import FrameCache
from .frame_checks import FrameChecks
from .frame_questions import FrameQuestions
from .frame_table import (
    INDEX_COLUMNS,
    ROW_NUMBER,
    DataFiles,
    blocks,
    check_lengths,
    first_without_picture,
    is_picture,
    is_picture_file,
    is_vector,
    load_table,
    matrix,
    picture_paths,
    scalars,
    vectors,
)
from .hub_files import HubFolder, on_hub
from .language import read_language
from .messages import refuse_missing, some
from .metadata import LeRobotMetadata
from .stored_image import ImageFiles, read_image
from .streamed_videos import StreamedVideos
from .vector_keys import VectorPart, choose_keys
from .video_file import VideoReadError

T = TypeVar("T")
STREAM_GB = 20.0


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
        history, history_stride: how many frames (and states) an item has, and how many rows lie between them; see
            `RobotDataset.look_back`.

    Attributes:
        cameras: feature names of the cameras.
        unnamed_cameras: what there are pictures of, and `info.json` does not name as a camera; not used.
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
        history: int = 1,
        history_stride: int = 1,
    ):
        if chunk_size < 1:
            raise ValueError(f"chunk_size is the number of actions per item and must be at least 1, got {chunk_size}.")
        if tolerance_s is not None and not 0 < tolerance_s < float("inf"):
            raise ValueError(f"tolerance_s is a finite number of seconds above 0, got {tolerance_s}.")
        self.chunk_size = chunk_size
        self.robot = robot
        self.look_back(ObservationHistory(history, history_stride))
        self._frame_cache = FrameCache(int(frame_cache_mb * 1e6))
        self._hub = on_hub(folder_or_hub_id, revision)
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
            if not any(is_camera(feature) and feature["dtype"] == "video" for feature in self.features.values()):
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
        self._refuse_empty_episodes()
        self._item_ends = np.cumsum(self._lengths)  # one past each selected episode's last item

        files, placed = self._look_at_files()
        modality = self._metadata.modality() if keys == "gr00t" else None
        columns = [name for name, types in files.types.items() if all(map(is_vector, types))]
        others = {name: some(types) for name, types in files.types.items() if name not in columns}
        lacking = {
            name: f"is missing in {len(without)} of {len(files.paths)} data files, such as {without[0]}"
            for name, without in files.lacking.items()
        }
        self.notes += [f"The column {name!r} {where}: it is not used." for name, where in lacking.items()]
        try:
            chosen = choose_keys(columns, self.features, keys, modality, action_key, state_key, others, lacking)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.notes += chosen.notes
        self._parts = {"actions": chosen.actions} | ({"state": chosen.state} if chosen.state else {})
        self._stored_images = [name for name, types in files.types.items() if all(map(is_picture, types))]
        embedded = [name for name in self._stored_images if all(map(is_picture_file, files.types[name]))]
        self.unnamed_cameras = unnamed_cameras(self._metadata, embedded)
        wanted = cameras if cameras is not None else chosen.cameras
        no_pictures = {name: some(types) for name, types in files.types.items() if name not in self._stored_images}
        self.cameras, notes = select_cameras(
            self.name,
            self._metadata,
            self._positions,
            self._stored_images,
            self.unnamed_cameras,
            no_pictures,
            lacking,
            wanted,
        )
        self.notes += notes
        stored = [camera for camera in self.cameras if camera in self._stored_images]
        if self._stream is not None and stored:
            self.notes.append(f"Pictures of {some(stored)} are in the data files, which are downloaded whole.")
        self._index_columns = [name for name in INDEX_COLUMNS if name in files.types]
        vector_columns = list(dict.fromkeys(part.column for parts in self._parts.values() for part in parts))
        try:
            # Which rows are whose, and in which order, is said by numbers of episodes and frames, or else by their own
            is_needed = not {"episode_index", "frame_index"} <= files.types.keys()
            is_there = all(map(is_vector, files.types.get(ROW_NUMBER, [pa.null()])))
            numbers = [*self._index_columns, ROW_NUMBER] if is_needed and is_there else self._index_columns
            self._table = load_table(files, numbers, vector_columns, stored)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self._first_rows, notes = find_episodes(  # each selected episode's first row of the table
            self.name, self._metadata, self._table, self._positions, placed, files.num_rows
        )
        self.notes += notes
        self._widths: dict[str, int] = {}  # of the columns
        self.action_dim, self.action_names = self._measure("actions", chosen.names)
        self.state_dim, self.state_names = self._measure("state", chosen.names) if chosen.state else (0, None)
        has_numbers = "task_index" in self._index_columns
        self.tasks, self._episode_tasks, notes = derive_tasks(self.name, self._metadata, self._positions, has_numbers)
        self.notes += notes
        self._check_frames()
        self._check_stored_images(stored)
        self.subtask_key = subtask_key
        where = self._metadata.root, files.paths, files.types, self._first_rows, self._lengths
        try:
            self._language = read_language(*where, self._times, subtask_key)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.notes += self._language.notes
        filmed = [camera for camera in self.cameras if camera not in stored]
        if tolerance_s is not None and not filmed:
            self.notes.append("tolerance_s has no effect: no camera that is read is a video")
        self._videos = EpisodeVideos(
            self.name, self._metadata, filmed, self._positions, self._times, self.tolerance_s, self._stream
        )
        self.notes += self._videos.notes
        self.file_windows = self._videos.windows(self._item_ends)

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
        frames = self.observation_history.steps(frame)
        has_history = self.observation_history.frames > 1
        clips = [self._clip(camera, selected, frames, item - frame) for camera in self.cameras]
        example = {
            "images": clips if has_history else [clip[0] for clip in clips],
            "cameras": list(self.cameras),
            "text": self._text(rows, selected, frame),
            "actions": self._chunk(rows, steps_left),
            "action_is_pad": np.arange(self.chunk_size) >= steps_left,
            "episode_index": int(self._metadata.episode_indices[self._positions[selected]]),
            "frame_index": frame,
            "timestamp": self._time(rows, frame),
        }
        if self.state_dim:
            first = int(self._first_rows[selected])
            states = [vectors(self._table[first + f : first + f + 1], self._parts["state"])[0] for f in frames]
            example["state"] = np.stack(states) if has_history else states[0].copy()
        if self.robot is not None:
            example["robot"] = self.robot
        if (subtask := self._language.subtask(selected, frame)) is not None:
            example["response"] = subtask
        return example

    def look_back(self, history: ObservationHistory) -> Self:
        self.observation_history = history
        return self

    @classmethod
    def camera_names(cls, name: str | Path) -> list[str]:
        """Feature names of the cameras that have files, from a dataset's metadata alone."""
        hub = on_hub(name)
        return cameras_with_files(_metadata_alone(name, hub), hub)

    @classmethod
    def episode_numbers(cls, name: str | Path) -> list[int]:
        """Numbers of all episodes, from a dataset's metadata alone."""
        return _metadata_alone(name, on_hub(name)).episode_indices.tolist()

    def size_of(self, index: int) -> tuple[int, int]:
        """How many images an item has and how many characters of text; no image is decoded."""
        selected = int(np.searchsorted(self._item_ends, index, side="right"))
        rows, frame, _ = self._rows(index, selected)
        response = self._language.subtask(selected, frame) or ""
        images = len(self.cameras) * len(self.observation_history.steps(frame))
        return images, len(self._text(rows, selected, frame)) + len(response)

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
        arrays += [self._positions, self._item_ends, self._first_rows]
        return sum(array.nbytes for array in arrays) + self._videos.index_bytes

    def episode_range(self, episode: int) -> range:
        """The items of an episode, given by the dataset's own number for it."""
        found = np.flatnonzero(self._metadata.episode_indices[self._positions] == episode)
        if not len(found):
            raise ValueError(f"{self.name}: episode {episode} is not among the selected ones, {some(self.episodes)}.")
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
        return self._videos.files()

    def read_video(self, path: Path, read: Callable[[Path], T]) -> T:
        """Read a video file, which is fetched first if it is streamed."""
        return self._videos.read_file(path, read)

    @property
    def other_rates(self) -> dict[str, list[float]]:
        """Camera → frames per second of videos that are read row by row and run at another rate than the rows."""
        return self._videos.other_rates

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
        is_stored = not set(self.cameras).isdisjoint(self._stored_images)
        stored = [digest_of_ends(path) for path in self._data_paths] if is_stored else []
        pictures = {
            camera: stored if camera in self._stored_images else self._videos.digests(camera) for camera in self.cameras
        }
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
            raise ValueError(f"{self.name} has no episode {some(selected[~known])}. Its episodes: {some(indices)}.")
        if len(np.unique(selected)) != len(selected):
            raise ValueError(f"{self.name}: an episode is selected twice in {some(selected)}.")
        order = np.argsort(indices)
        return order[np.searchsorted(indices, selected, sorter=order)]

    def _refuse_empty_episodes(self) -> None:
        if (empty := self._lengths < 1).any():
            numbers = self._metadata.episode_indices[self._positions[empty]]
            raise ValueError(f"{self.name}: episode {some(numbers)} has no frames. Leave it out with `episodes=[...]`.")

    def _look_at_files(self) -> tuple[DataFiles, dict[Path, np.ndarray]]:
        """The data files of all episodes, or if some are missing those of the selection; and the episodes in each."""
        placed = {}
        if self._hub is None:
            placed = self._metadata.data_files(self._metadata.recorded)
        if not placed or not all(path.is_file() for path in placed):
            placed = self._metadata.data_files(np.sort(self._positions))
            refuse_missing(self.name, [path for path in placed if not path.is_file()], "data file")
        files = DataFiles.look_at(list(placed))
        if files.lacking and len(self._positions) < len(self._metadata.recorded):
            # What files of other episodes lack does not matter
            placed = self._metadata.data_files(np.sort(self._positions))
            files = DataFiles.look_at(list(placed))
        self._data_paths = files.paths
        return files, placed

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

    def _check_frames(self) -> None:
        """Look at every row of the selected episodes once, a block of them at a time."""
        numbers, tasks = self._metadata.episode_indices[self._positions], None
        if self._episode_tasks is None:
            tasks = list(self.tasks)
        checks = FrameChecks(self.name, self.fps, numbers, self._first_rows, self._lengths, tasks)
        numbered = [name for name in (*self._index_columns, ROW_NUMBER) if name in self._table.column_names]
        for rows, episodes, block in self._blocks([*numbered, *self._widths]):
            for column, width in self._widths.items():
                if (other := check_lengths(block[column])) is None and matrix(block[column]).shape[1] != width:
                    other = 0
                if other is not None:
                    frame = rows[other] - self._first_rows[episodes[other]]
                    raise ValueError(
                        f"{self.name}: {column!r} of episode {numbers[episodes[other]]}, frame {frame}, is empty or "
                        f"has not the {width} dimensions of the first row."
                    )
            columns = {name: scalars(block[name]) for name in numbered}
            for kind, parts in self._parts.items():
                arrays = [matrix(block[part.column])[:, part.start : part.end] for part in parts]
                columns[kind] = np.concatenate(arrays, axis=1) if len(arrays) > 1 else arrays[0]
            checks.add(rows, episodes, columns)
        keys = {"actions": self.action_key, "state": self.state_key}
        if not self.takes_unfinite:
            checks.refuse_unfinite({kind: " + ".join(columns) for kind, columns in keys.items()})
        for name, how in (("frame_index", "frames are numbered in the order of the rows"),
                          ("timestamp", f"times are those of {self.fps} fps")):  # fmt: skip
            if name not in self._index_columns:
                self.notes.append(f"{name} is missing: {how}.")
        self.notes += checks.check_times()
        if tasks is not None:
            self.notes += compare_tasks(self._metadata, self._positions, self.tasks, checks.first_tasks)
        sizes = {"actions": (self.action_names, self.action_dim), "state": (self.state_names, self.state_dim)}
        labels = {kind: names or [f"{kind} {i}" for i in range(size)] for kind, (names, size) in sizes.items()}
        self.notes += checks.rounding(labels)

    def _check_stored_images(self, cameras: Sequence[str]) -> None:
        """Refuse rows without a picture, which would end a run when they are reached."""
        files, missing, first_place = ImageFiles(self._metadata.root), [], ""
        for first, length, episode in zip(
            self._first_rows.tolist(), self._lengths.tolist(), self.episodes, strict=True
        ):
            for camera in cameras:
                where = f"{self.name}, camera {camera!r}, episode {episode}"
                column = self._table[first : first + length][camera]
                frame = first_without_picture(column)
                if frame is not None:
                    raise ValueError(
                        f"{where}, frame {frame}: the data file holds no image here. Leave the camera or the episode "
                        "out."
                    )
                try:
                    gone = files.missing(picture_paths(column))
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error
                missing, first_place = missing + gone, first_place or (where if gone else "")
        refuse_missing(first_place, missing, "picture")

    def _blocks(self, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, pa.Table]]:
        """Columns of the selected episodes; see `blocks`."""
        return blocks(self._table, list(dict.fromkeys(columns)), self._first_rows, self._lengths)

    def _times(self, selected: int) -> np.ndarray:
        """The times of an episode's rows."""
        first, length = int(self._first_rows[selected]), int(self._lengths[selected])
        if "timestamp" not in self._index_columns:
            return np.arange(length) / self.fps
        return scalars(self._table[first : first + length]["timestamp"])

    def _clip(self, camera: str, selected: int, frames: Sequence[int], first_item: int) -> list[np.ndarray]:
        """Some RGB frames of a camera in an episode, each uint8 (height, width, 3), from the cache or decoded at once.

        Args:
            first_item: the episode's.
        """
        keys = [(camera, first_item + frame) for frame in frames]

        def decode(places: list[int]) -> list[np.ndarray]:
            return self._decoded(camera, selected, [frames[i] for i in places])

        return self._frame_cache.get(keys, decode)

    def _decoded(self, camera: str, selected: int, frames: Sequence[int]) -> list[np.ndarray]:
        episode = self._metadata.episode_indices[self._positions[selected]]
        where = f"{self.name}, camera {camera!r}, episode {episode}, frame {', '.join(map(str, frames))}"
        if camera in self._stored_images:
            first = int(self._first_rows[selected])
            cells = [self._table[first + frame : first + frame + 1][camera][0].as_py() for frame in frames]
            try:
                return [read_image(cell, self._metadata.root) for cell in cells]
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        try:
            return self._videos.read(camera, selected, frames)
        except VideoReadError as error:
            raise ValueError(f"{where}: {error}") from error


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


def _metadata_of(folder_or_hub_id: str | Path, hub: HubFolder | None, streaming: bool) -> LeRobotMetadata:
    if hub is None:
        return _metadata_alone(folder_or_hub_id, None)
    if streaming:
        return LeRobotMetadata.load(hub.root, fetch=hub.fetch, has=hub.lists)
    return LeRobotMetadata.load(hub.root, fetch=hub.fetch, fetch_videos=hub.fetch)


def _metadata_alone(folder_or_hub_id: str | Path, hub: HubFolder | None) -> LeRobotMetadata:
    """The metadata, by which nothing else is downloaded."""
    return LeRobotMetadata.load(Path(folder_or_hub_id).expanduser() if hub is None else hub.root)

"""Writes robot demonstrations as a LeRobot v3.0 dataset, in LeRobot's own layout, without the `lerobot` package."""

import contextlib
import io
import json
import shutil
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .image_statistics import QUANTILES, channel_histogram, image_statistics, vector_statistics
from .language import PERSISTENT_COLUMN, PERSISTENT_FEATURE, persistent_column, persistent_features

STATE_KEY = "observation.state"
ACTION_KEY = "action"
CAMERA_PREFIX = "observation.images."
INDEX_FEATURES = {  # written for every frame, after the features of the robot
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
STATISTIC_NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)
IMAGE_FORMATS = ("lossless_video", "video", "image")
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PER_ROW_GROUP = 100  # of the episode table, whose rows are some kilobytes each


class LeRobotWriter:
    """Writes a new LeRobot v3.0 dataset, one episode at a time.

    ```python
    with LeRobotWriter("demos", fps=10, cameras={"front": (64, 64)}, state_names=["x", "y"],
                       action_names=["dx", "dy"], robot_type="point") as writer:
        writer.add_episode({"front": images}, states, actions, task="touch the red star")
    ```

    The dataset appears under its name all at once, when the writer is closed: until then everything is in a hidden
    folder beside it, which an error in the `with` block or the interpreter's end removes. If the process is killed,
    the hidden folder stays; having no `meta/info.json`, it is not a dataset for any reader, and may be deleted.

    In memory are the current episode, one row of metadata for each of the last hundred, and while closing one column
    of numbers (states, say) of the whole dataset.

    Args:
        folder: where the dataset will be; must not exist, or be an empty folder.
        fps: frames, and therefore actions, per second; a whole number as LeRobot demands.
        cameras: camera name → (height, width). The feature of a camera is `observation.images.<name>`.
        state_names, action_names: one name for each dimension.
        robot_type: written into `info.json`.
        image_format: how frames are stored.
            `"lossless_video"`: H.264 in RGB. Every pixel is read back exactly, and small rendered frames are encoded
            two to ten times faster than as AV1. Web browsers do not play it.
            `"video"`: AV1 in YUV 4:2:0, as LeRobot does by default. Lossy, at about a third to a half of the size:
            halving the resolution of the colours costs most where pictures are small and coloured edges sharp (a peak
            signal-to-noise ratio of 28 dB for rendered shapes at 48 pixels, 34 dB at 96).
            `"image"`: PNG in the data files. Exact, and needs no PyAV.
        subtasks: whether every episode brings the sub-task of each frame. They are written as LeRobot's column
            `language_persistent`, which LeRobot reads since mid-2026.
        data_file_size_in_mb, video_file_size_in_mb: a file that has reached this size takes no further episode, so
            files exceed it by less than an episode.
        chunks_size: files per folder.

    Attributes:
        num_episodes, num_frames: what was added so far.

    Raises:
        FileExistsError: `folder` exists and is not an empty folder, or is a mount point.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        folder: str | Path,
        fps: int,
        cameras: Mapping[str, tuple[int, int]],
        state_names: Sequence[str],
        action_names: Sequence[str],
        robot_type: str,
        image_format: str = "lossless_video",
        data_file_size_in_mb: float = 100,
        video_file_size_in_mb: float = 200,
        chunks_size: int = 1000,
        subtasks: bool = False,
    ):
        self._folder = Path(folder).expanduser().resolve()
        self._fps = fps
        self._cameras = {name: tuple(size) for name, size in cameras.items()}
        self._names = {STATE_KEY: list(state_names), ACTION_KEY: list(action_names)}
        self._robot_type = robot_type
        self._image_format = image_format
        self._has_subtasks = subtasks
        self._sizes_in_mb = {"data": data_file_size_in_mb, "video": video_file_size_in_mb}
        self._chunks_size = chunks_size
        self._check_arguments()
        _check_free(self._folder)

        # What is known of the dataset so far.
        self._features = self._describe_features()
        self._schema = self._data_schema()
        self._tasks: dict[str, int] = {}
        self._histograms = {CAMERA_PREFIX + name: np.zeros((3, 256), np.int64) for name in self._cameras}
        self._episode_rows: list[dict] = []
        self.num_episodes = 0
        self.num_frames = 0

        # Written beside the folder and moved there when it is whole: nobody reads half a dataset.
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._root = self._folder.with_name(f".{self._folder.name}.incomplete-{uuid.uuid4().hex[:8]}")
        self._root.mkdir()
        self._remove_root = weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)
        self._closed = False
        self._video_files = self._numbered_video_files()
        self._episodes_schema = self._episode_table_schema()
        self._data_files = self._numbered_files(DATA_PATH, "data", lambda path: _ParquetFile(path, self._schema))
        self._episode_files = self._numbered_files(
            EPISODES_PATH, "data", lambda path: _ParquetFile(path, self._episodes_schema)
        )

    def __enter__(self) -> "LeRobotWriter":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is None:
            self.close()
        else:
            self.discard()

    def add_episode(
        self,
        images: Mapping[str, np.ndarray],
        states: np.ndarray,
        actions: np.ndarray,
        task: str,
        subtasks: Sequence[str | None] | None = None,
    ) -> None:
        """Append an episode of T frames; frame t holds what was observed and the action that was then taken.

        Args:
            images: camera name → uint8 (T, H, W, 3), RGB.
            states: float32 (T, Ds).
            actions: float32 (T, Da).
            task: the instruction.
            subtasks: of each of the T frames, None where there is none; if the writer was made with `subtasks`.

        Raises:
            ValueError: the episode is not like that, is empty, or holds NaN or infinity. Nothing of it was written,
                and the writer can go on. After any other error the dataset is discarded.
        """
        self._check_open()
        vectors = {STATE_KEY: states, ACTION_KEY: actions}
        self._check_episode(images, vectors, task)
        self._check_subtasks(subtasks, len(actions))
        with self._discarded_on_error():
            columns = vectors | self._index_columns(len(actions), task)
            frames = {CAMERA_PREFIX + name: frames for name, frames in images.items()}
            self._write_episode(frames, columns, task, subtasks)

    def close(self) -> None:
        """Complete the dataset and move it to its place. Closing it again does nothing.

        Raises:
            ValueError: no episode was added; nothing is left behind.
            FileExistsError: meanwhile something else was written to the folder; the dataset is discarded.
        """
        if self._closed:
            return
        self._check_open()
        with self._discarded_on_error():
            if not self.num_episodes:
                raise ValueError(f"No episode was added, so no dataset was written to {self._folder}.")
            self._write_episode_rows()
            for files in (self._data_files, self._episode_files, *self._video_files.values()):
                files.close()
            self._write_meta()
            _check_free(self._folder)
            if self._folder.exists():
                self._folder.rmdir()  # it is empty
            self._root.rename(self._folder)
            self._remove_root.detach()
            self._closed = True

    def discard(self) -> None:
        """Give up: remove everything that was written. The writer cannot be used any more."""
        try:
            for files in (self._data_files, self._episode_files, *self._video_files.values()):
                files.discard()
        finally:
            self._remove_root()

    def _check_open(self) -> None:
        if not self._remove_root.alive:
            raise ValueError(f"The writer of {self._folder} is closed, or an error ended it. Open a new one.")

    @contextlib.contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # an interrupt in the middle of an episode, too
            self.discard()
            raise

    # What is written

    def _check_arguments(self) -> None:
        if not isinstance(self._fps, int) or self._fps < 1:
            raise ValueError(f"fps must be a whole number of at least 1, got {self._fps!r}.")
        if self._image_format not in IMAGE_FORMATS:
            raise ValueError(f"image_format must be one of {', '.join(IMAGE_FORMATS)}, got {self._image_format!r}.")
        for name, size in self._cameras.items():
            if not name or "/" in name:  # "/" separates the columns of the episode table
                raise ValueError(f"A camera's name must not be empty nor contain '/', got {name!r}.")
            if len(size) != 2 or min(size) < 8:  # encoders refuse very small frames
                raise ValueError(f"Camera {name!r} needs (height, width), each of at least 8 pixels, got {size}.")
        for key, names in self._names.items():
            if not names or len(set(names)) != len(names):
                raise ValueError(f"{key} needs one name for each dimension, all different, got {names}.")
        if self._chunks_size < 1 or min(self._sizes_in_mb.values()) <= 0:
            raise ValueError(
                f"chunks_size and the file sizes must be positive, got {self._chunks_size} and {self._sizes_in_mb}."
            )

    def _describe_features(self) -> dict[str, dict]:
        """`features` of info.json."""
        # Cameras first, then state and action, then the columns that every dataset has.
        features = {}
        for name, (height, width) in self._cameras.items():
            feature = {
                "dtype": "image" if self._image_format == "image" else "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
            }
            if self._image_format != "image":
                codec = self._codec()
                feature["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": codec.name,
                    "video.pix_fmt": codec.pixel_format,
                    "video.is_depth_map": False,
                    "video.fps": self._fps,
                    "video.channels": 3,
                    "has_audio": False,
                }
            features[CAMERA_PREFIX + name] = feature
        for key, names in self._names.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
        for key, dtype in INDEX_FEATURES.items():
            features[key] = {"dtype": dtype, "shape": [1], "names": None}
        return features | ({PERSISTENT_COLUMN: PERSISTENT_FEATURE} if self._has_subtasks else {})

    def _data_schema(self) -> pa.Schema:
        """The columns of the data files, with the metadata by which `datasets` knows their features."""
        columns = {}
        for key, feature in self._features.items():
            if feature["dtype"] == "image":
                columns[key] = datasets.Image()
            elif key == PERSISTENT_COLUMN:
                columns[key] = persistent_features()
            elif feature["dtype"] != "video":
                value, shape = datasets.Value(feature["dtype"]), feature["shape"]
                # LeRobot writes vectors of length 1 as plain numbers.
                columns[key] = value if shape == [1] else datasets.List(value, length=shape[0])
        return datasets.Features(columns).arrow_schema

    def _episode_table_schema(self) -> pa.Schema:
        columns = {"episode_index": pa.int64(), "tasks": pa.list_(pa.string()), "length": pa.int64()}
        columns |= dict.fromkeys(("data/chunk_index", "data/file_index"), pa.int64())
        columns |= dict.fromkeys(("dataset_from_index", "dataset_to_index"), pa.int64())
        for key in self._video_files:
            columns |= dict.fromkeys((f"videos/{key}/chunk_index", f"videos/{key}/file_index"), pa.int64())
            columns |= dict.fromkeys((f"videos/{key}/from_timestamp", f"videos/{key}/to_timestamp"), pa.float64())
        for key, feature in self._features.items():
            if key == PERSISTENT_COLUMN:
                continue  # words have no statistics
            for name in STATISTIC_NAMES:
                whole = name == "count" or (name in ("min", "max") and feature["dtype"] == "int64")
                column = pa.list_(pa.int64() if whole else pa.float64())
                if key in self._histograms and name != "count":
                    column = pa.list_(pa.list_(column))  # (3, 1, 1)
                columns[f"stats/{key}/{name}"] = column
        columns |= dict.fromkeys(("meta/episodes/chunk_index", "meta/episodes/file_index"), pa.int64())
        return pa.schema(columns)

    # An episode

    def _check_episode(self, images: Mapping[str, np.ndarray], vectors: dict[str, np.ndarray], task: str) -> None:
        where = f"Episode {self.num_episodes}"
        if not isinstance(task, str) or not task.strip():
            raise ValueError(f"{where} needs a task, the instruction as text, got {task!r}.")
        if images.keys() != self._cameras.keys():
            raise ValueError(f"{where} must have images of {sorted(self._cameras)}, got {sorted(images)}.")
        length = len(vectors[ACTION_KEY])
        if length == 0:
            raise ValueError(f"{where} has no frames.")
        for key, values in vectors.items():
            _check_array(f"{where}, {key}", values, np.float32, (length, len(self._names[key])))
            bad = ~np.isfinite(values)
            if bad.any():
                frame, dimension = np.argwhere(bad)[0].tolist()
                raise ValueError(
                    f"{where}, {key} holds NaN or infinity; the first is at frame {frame}, "
                    f"dimension {self._names[key][dimension]!r}."
                )
        for name, size in self._cameras.items():
            _check_array(f"{where}, camera {name!r}", images[name], np.uint8, (length, *size, 3))

    def _check_subtasks(self, subtasks: Sequence[str | None] | None, length: int) -> None:
        if self._has_subtasks != (subtasks is not None):
            wanted = "needs the sub-task of each frame" if self._has_subtasks else "cannot have sub-tasks"
            raise ValueError(
                f"Episode {self.num_episodes} {wanted}: the writer was made with subtasks={self._has_subtasks}."
            )
        if subtasks is not None and len(subtasks) != length:
            raise ValueError(f"Episode {self.num_episodes} has {len(subtasks)} sub-tasks for {length} frames.")

    def _index_columns(self, length: int, task: str) -> dict[str, np.ndarray]:
        frames = np.arange(length)
        task_index = self._tasks.setdefault(task, len(self._tasks))
        columns = {
            "timestamp": frames / self._fps,
            "frame_index": frames,
            "episode_index": np.full(length, self.num_episodes),
            "index": self.num_frames + frames,
            "task_index": np.full(length, task_index),
        }
        return {key: columns[key].astype(dtype)[:, None] for key, dtype in INDEX_FEATURES.items()}  # (T, 1)

    def _write_episode(
        self,
        images: dict[str, np.ndarray],
        columns: dict[str, np.ndarray],
        task: str,
        subtasks: Sequence[str | None] | None,
    ) -> None:
        # The episode's row of meta/episodes: where its frames will be.
        length = len(columns[ACTION_KEY])
        row = {
            "episode_index": self.num_episodes,
            "tasks": [task],
            "length": length,
            **self._data_files.place("data"),
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
        }
        # Its frames, in the order of the schema.
        arrays = []
        for field in self._schema:
            if field.name in images:
                arrays.append(_png_array(images[field.name], field.type))
            elif field.name == PERSISTENT_COLUMN:
                arrays.append(persistent_column(subtasks, columns["timestamp"][:, 0], field.type))
            else:
                arrays.append(_vector_array(columns[field.name], field.type))
        self._data_files.append(pa.Table.from_arrays(arrays, schema=self._schema))
        # Its videos, at the end of files that hold several episodes.
        for key, files in self._video_files.items():
            row |= files.place(f"videos/{key}")
            first_frame = files.current.num_frames if files.current else 0
            row[f"videos/{key}/from_timestamp"] = first_frame / self._fps
            row[f"videos/{key}/to_timestamp"] = (first_frame + length) / self._fps
            files.append(images[key])

        # Its statistics: LeRobot merges those of episodes into those of the dataset.
        statistics = {}
        for key, frames in images.items():
            histogram = channel_histogram(frames)
            self._histograms[key] += histogram
            statistics[key] = image_statistics(histogram, length)
        statistics |= {key: vector_statistics(values) for key, values in columns.items()}
        for key, values in statistics.items():
            row |= {f"stats/{key}/{name}": values[name].tolist() for name in STATISTIC_NAMES}
        self._episode_rows.append(row)
        self.num_episodes += 1
        self.num_frames += length
        if len(self._episode_rows) == EPISODES_PER_ROW_GROUP:
            self._write_episode_rows()

    def _write_episode_rows(self) -> None:
        if self._episode_rows:
            place = self._episode_files.place("meta/episodes")
            rows = [row | place for row in self._episode_rows]
            self._episode_files.append(pa.Table.from_pylist(rows, schema=self._episodes_schema))
            self._episode_rows = []

    # The dataset

    def _write_meta(self) -> None:
        meta = self._root / "meta"
        # The instruction is the table's index, without a name: LeRobot's layout.
        pd.DataFrame({"task_index": list(self._tasks.values())}, index=list(self._tasks)).to_parquet(
            meta / "tasks.parquet"
        )
        statistics = {
            key: image_statistics(self._histograms[key], self.num_frames)
            if key in self._histograms
            else vector_statistics(self._written_column(key))
            for key in self._features
            if key != PERSISTENT_COLUMN
        }
        _write_json(
            meta / "stats.json",
            {key: {name: values[name].tolist() for name in STATISTIC_NAMES} for key, values in statistics.items()},
        )
        _write_json(  # last: without it no reader takes the folder for a dataset
            meta / "info.json",
            {
                "codebase_version": "v3.0",
                "robot_type": self._robot_type,
                "total_episodes": self.num_episodes,
                "total_frames": self.num_frames,
                "total_tasks": len(self._tasks),
                "chunks_size": self._chunks_size,
                "data_files_size_in_mb": self._sizes_in_mb["data"],
                "video_files_size_in_mb": self._sizes_in_mb["video"],
                "fps": self._fps,
                "splits": {"train": f"0:{self.num_episodes}"},
                "data_path": DATA_PATH,
                "video_path": VIDEO_PATH if self._video_files else None,
                "features": self._features,
            },
        )

    def _written_column(self, key: str) -> np.ndarray:
        """(frames, D), of all episodes, read back so that it need not be kept while recording."""
        blocks = []
        for path in self._data_files.paths:
            column = pq.read_table(path, columns=[key])[key].combine_chunks()
            flat = column.flatten() if pa.types.is_nested(column.type) else column
            blocks.append(flat.to_numpy(zero_copy_only=False).reshape(len(column), -1))
        return np.concatenate(blocks)

    # Files

    def _codec(self):
        from .video_writer import AV1, LOSSLESS_H264  # PyAV is an optional dependency

        return AV1 if self._image_format == "video" else LOSSLESS_H264

    def _numbered_video_files(self) -> dict[str, "_NumberedFiles"]:
        if self._image_format == "image":
            return {}
        from .video_writer import VideoFile

        def files(key: str, height: int, width: int) -> _NumberedFiles:
            codec = self._codec()
            return self._numbered_files(
                VIDEO_PATH, "video", lambda path: VideoFile(path, self._fps, height, width, codec), video_key=key
            )

        return {CAMERA_PREFIX + name: files(CAMERA_PREFIX + name, *size) for name, size in self._cameras.items()}

    def _numbered_files(
        self, template: str, kind: str, open_file: Callable[[Path], Any], **fields: str
    ) -> "_NumberedFiles":
        def path_of(chunk: int, file: int) -> Path:
            return self._root / template.format(chunk_index=chunk, file_index=file, **fields)

        return _NumberedFiles(path_of, open_file, self._sizes_in_mb[kind] * 1024**2, self._chunks_size)


class _NumberedFiles:
    """chunk-000/file-000, chunk-000/file-001, ...: the next one is begun when the current one has its size.

    Attributes:
        current: the file that is open, or None before the first episode of a file.
        paths: the files so far.
    """

    def __init__(
        self,
        path_of: Callable[[int, int], Path],
        open_file: Callable[[Path], Any],
        max_bytes: float,
        files_per_chunk: int,
    ):
        self.current = None
        self.paths: list[Path] = []
        self._path_of = path_of
        self._open_file = open_file
        self._max_bytes = max_bytes
        self._files_per_chunk = files_per_chunk
        self._number = 0  # of the file that takes the next episode

    def place(self, prefix: str) -> dict[str, int]:
        """Where the next episode goes, as columns of the episode table."""
        chunk, file = self._chunk_and_file()
        return {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": file}

    def append(self, episode: pa.Table | np.ndarray) -> None:
        if self.current is None:
            path = self._path_of(*self._chunk_and_file())
            path.parent.mkdir(parents=True, exist_ok=True)
            self.current = self._open_file(path)
            self.paths.append(path)
        self.current.append(episode)
        if self.current.num_bytes >= self._max_bytes:
            self.close()

    def close(self) -> None:
        if self.current is not None:
            self.current.close()
            self.current = None
            self._number += 1

    def discard(self) -> None:
        if self.current is not None:
            self.current.discard()
            self.current = None

    def _chunk_and_file(self) -> tuple[int, int]:
        return divmod(self._number, self._files_per_chunk)


class _ParquetFile:
    """A parquet file that grows by row groups, one for each table."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(self._file, schema)

    @property
    def num_bytes(self) -> int:
        return self._file.tell()

    def append(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=len(table))

    def close(self) -> None:
        self._writer.close()
        self._file.close()

    discard = close


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder. Remove it, or write to another one.")
    if folder.is_mount():  # it could not be replaced, which would show only at the end
        raise FileExistsError(f"{folder} is a mount point. Write to a folder inside it.")


def _check_array(what: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{what} must be a NumPy array, got {type(array).__name__}.")
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"{what} must be {np.dtype(dtype)} of shape {shape}, got {array.dtype} of shape {array.shape}."
        )


def _vector_array(values: np.ndarray, dtype: pa.DataType) -> pa.Array:
    """(T, D) as a column."""
    flat = pa.array(values.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, type=dtype) if pa.types.is_nested(dtype) else flat


def _png_array(images: np.ndarray, dtype: pa.DataType) -> pa.Array:
    """uint8 (T, H, W, 3) as a column of embedded files."""
    stored = []
    for number, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG")
        stored.append({"bytes": file.getvalue(), "path": f"frame-{number:06d}.png"})
    return pa.array(stored, dtype)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")

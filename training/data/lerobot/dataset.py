"""Robot demonstrations in LeRobot's format (v2.1 and v3.0) as a PyTorch dataset.

Its own small reader: the `lerobot` package cannot be installed beside current torch, datasets and huggingface-hub.
"""

import glob
import hashlib
import json
import operator
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from ....processing.image_input import open_image
from ..robot_dataset import RobotDataset, evenly_spread
from .frame_cache import FrameCache
from .frame_table import blocks, episode_runs, matrix
from .metadata import ACTION_KEY, STATE_KEY, LeRobotMetadata, feature_names, open_parquet

INDEX_COLUMNS = {"timestamp": "float64", "frame_index": "int64", "episode_index": "int64", "task_index": "int64"}


class LeRobotDataset(RobotDataset):
    """One item per frame of a LeRobot dataset: the frame's observation and the action chunk that starts there.

    ```python
    data = LeRobotDataset("lerobot/pusht", chunk_size=16, episodes=range(180))
    data[0]  # {"images": [uint8 (height, width, 3) per camera], "cameras": [their names, data.cameras], "text": str,
             #  "state": float32 (Ds,), "actions": float32 (H, Da), "action_is_pad": bool (H,),
             #  "episode_index": int, "frame_index": int, "timestamp": float}
    ```

    The chunk holds the actions of the frames t, t+1, ..., t+H-1. Past the episode's end the last action is repeated
    and `action_is_pad` is True (LeRobot's convention). `state` is absent where the dataset has no `observation.state`.
    `timestamp` is in seconds since the episode's start.

    The tabular columns, and images that are stored in them, are copied once into the `datasets` cache and memory-mapped
    from there. In memory are numbers for every episode, not for every frame: 48 bytes, and 16 for each camera that is
    stored as video. Video frames are decoded when asked for; every data-loader worker opens its own files.

    Args:
        folder_or_hub_id: a folder with `meta/info.json`, or the id of a dataset on the Hub, which is downloaded.
        chunk_size: H, the number of actions per item.
        episodes: the dataset's episode numbers to use, in this order; all by default.
        cameras: the cameras to use, in this order, as feature names (`"observation.images.wrist"`) or their last part
            (`"wrist"`); by default all, in the order of `info.json`. Depth maps are not cameras.
        robot: the robot's name in a policy of several robots (`KIVLAProcessor(robots=...)`); every item then has it as
            `"robot"`.
        frame_cache_mb: keep decoded frames in memory, the most recently used ones, up to so many megabytes in every
            process that reads: for datasets that fit, and are read more than once.

    Attributes:
        cameras: feature names of the cameras.
        episodes: the dataset's numbers of the selected episodes; `num_episodes` of them.
        version: of LeRobot's format, "v2.1" or "v3.0".
        fps: frames, and therefore actions, per second.
        state_dim, action_dim: number of dimensions; `state_dim` is 0 without a state.
        state_names, action_names: names of the dimensions, or None.
        robot_type: as in `info.json`, or None.
        tasks: task index → instruction.
        features: `info.json`'s description of every feature.

    Raises:
        FileNotFoundError: not a LeRobot dataset, or a data or video file of the selection is missing.
        ValueError: an unsupported format version; an unknown camera or episode; damaged files; metadata that disagrees
            with the data; NaN or infinity among the selected states and actions. Damage inside a video stream is
            raised when the frame is read.
    """

    def __init__(
        self,
        folder_or_hub_id: str | Path,
        chunk_size: int = 50,
        episodes: Sequence[int] | None = None,
        cameras: Sequence[str] | None = None,
        robot: str | None = None,
        frame_cache_mb: float = 0,
    ):
        if chunk_size < 1:
            raise ValueError(f"chunk_size is the number of actions per item and must be at least 1, got {chunk_size}.")
        self.name = str(folder_or_hub_id)
        self.chunk_size = chunk_size
        self.robot = robot
        self._frame_cache = FrameCache(int(frame_cache_mb * 1e6))
        self._metadata = LeRobotMetadata.load(_local_folder(folder_or_hub_id))

        info = self._metadata.info
        self.version = info["codebase_version"]
        self.fps = info["fps"]
        self.robot_type = info.get("robot_type")
        self.features = info["features"]
        self.tasks = self._metadata.tasks
        self.action_dim = self._dimension(ACTION_KEY)
        self.action_names = feature_names(self.features[ACTION_KEY])
        has_state = STATE_KEY in self.features
        self.state_dim = self._dimension(STATE_KEY) if has_state else 0
        self.state_names = feature_names(self.features[STATE_KEY]) if has_state else None
        self.cameras = self._select_cameras(cameras)
        # Positions in the metadata's episode arrays.
        self._positions = self._select_episodes(episodes)
        lengths = self._metadata.episode_lengths[self._positions]
        self._item_ends = np.cumsum(lengths)  # one past each selected episode's last item
        self._table = self._load_table()
        self._first_rows = self._check_episodes()  # each selected episode's first row of the table
        self._check_frames()
        self._videos = self._open_videos()

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
        rows, steps_left = self._rows(item, selected)
        frame = {name: rows[name][0].as_py() for name in INDEX_COLUMNS}
        example = {
            "images": [
                self._frame_cache.get((camera, item), lambda c=camera: self._image(c, selected, rows, frame))
                for camera in self.cameras
            ],
            "cameras": list(self.cameras),
            "text": self.tasks[frame["task_index"]],
            "actions": self._chunk(rows, steps_left),
            "action_is_pad": np.arange(self.chunk_size) >= steps_left,
            "episode_index": frame["episode_index"],
            "frame_index": frame["frame_index"],
            "timestamp": frame["timestamp"],
        }
        if self.state_dim:
            example["state"] = matrix(rows[STATE_KEY][:1])[0].copy()
        if self.robot is not None:
            example["robot"] = self.robot
        return example

    @classmethod
    def camera_names(cls, name: str | Path) -> list[str]:
        """Feature names of a dataset's cameras, from its metadata alone."""
        features = LeRobotMetadata.load(_local_folder(name)).info["features"]
        return [key for key, feature in features.items() if _is_camera(feature)]

    def size_of(self, index: int) -> tuple[int, int]:
        """How many images an item has and how many characters of text; no image is decoded."""
        selected = int(np.searchsorted(self._item_ends, index, side="right"))
        rows, _ = self._rows(index, selected)
        return len(self.cameras), len(self.tasks[rows["task_index"][0].as_py()])

    def action_chunks(self, max_chunks: int) -> np.ndarray:
        """The `actions` of up to `max_chunks` items, spread evenly, (n, H, Da), without decoding any image."""
        items = evenly_spread(len(self), max_chunks)
        selected = np.searchsorted(self._item_ends, items, side="right")
        pairs = zip(items.tolist(), selected.tolist(), strict=True)
        return np.stack([self._chunk(*self._rows(item, episode)) for item, episode in pairs])

    def vectors(self, name: str) -> Iterator[np.ndarray]:
        """All "actions" or "state" of the selected episodes, in blocks (frames, D) float32; no image is decoded."""
        key = {"actions": ACTION_KEY, "state": STATE_KEY}[name]
        return (column[key] for _, _, column in self._blocks([key]))

    def _rows(self, item: int, selected: int) -> tuple[pa.Table, int]:
        """The table's rows of an item's chunk, and how many steps its episode has left."""
        steps_left = int(self._item_ends[selected]) - item
        length = int(self._metadata.episode_lengths[self._positions[selected]])
        row = int(self._first_rows[selected]) + length - steps_left
        return self._table[row : row + min(self.chunk_size, steps_left)], steps_left

    def _chunk(self, rows: pa.Table, steps_left: int) -> np.ndarray:
        """(H, Da), the last action of the episode repeated past its end."""
        return matrix(rows[ACTION_KEY])[np.minimum(np.arange(self.chunk_size), steps_left - 1)]

    @property
    def episodes(self) -> list[int]:
        return self._metadata.episode_indices[self._positions].tolist()

    @property
    def index_bytes(self) -> int:
        """Memory of the arrays with a number for every episode: what grows with the dataset."""
        metadata = self._metadata
        arrays = [metadata.episode_indices, metadata.episode_lengths, *metadata.placement.values()]
        return sum(array.nbytes for array in [*arrays, self._positions, self._item_ends, self._first_rows])

    def episode_range(self, episode: int) -> range:
        """The items of an episode, given by the dataset's own number for it."""
        found = np.flatnonzero(self._metadata.episode_indices[self._positions] == episode)
        if not len(found):
            raise ValueError(f"{self.name}: episode {episode} is not among the selected ones, {_some(self.episodes)}.")
        selected = int(found[0])
        end = int(self._item_ends[selected])
        return range(end - int(self._metadata.episode_lengths[self._positions[selected]]), end)

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
        columns = {name: hashlib.sha256() for name in (*INDEX_COLUMNS, *self._vector_keys())}
        for _, _, block in self._blocks(list(columns)):
            for name, digest in columns.items():
                digest.update(np.ascontiguousarray(block[name]).data)
        files = {
            camera: self._metadata.video_files(camera, self._positions)
            if self.features[camera]["dtype"] == "video"
            else self._metadata.data_files()
            for camera in self.cameras
        }
        pictures = {camera: [_digest_of_ends(path) for path in paths] for camera, paths in files.items()}
        whole = [self.fps, self.episodes, sorted(self.tasks.items()), pictures]
        whole += [digest.hexdigest() for digest in columns.values()]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]

    def _dimension(self, key: str) -> int:
        if key not in self.features:
            raise ValueError(
                f"{self.name} has no feature {key!r}, only {_some(self.features)}. A robot dataset needs actions."
            )
        shape = self.features[key]["shape"]
        if len(shape) != 1:
            raise ValueError(f"{self.name}: {key!r} must be a vector, but info.json gives it the shape {shape}.")
        return shape[0]

    def _select_cameras(self, cameras: Sequence[str] | None) -> list[str]:
        available = [key for key, feature in self.features.items() if _is_camera(feature)]
        if cameras is None:
            return available
        selected = []
        for name in cameras:
            matches = [key for key in available if key == name or key.endswith(f".{name}")]
            if len(matches) != 1:
                problem = "names more than one camera" if matches else "is not a camera"
                raise ValueError(f"{self.name}: {name!r} {problem} of this dataset. Its cameras: {_some(available)}.")
            selected += matches
        if len(set(selected)) != len(selected):
            raise ValueError(f"{self.name}: a camera is selected twice in {list(cameras)}.")
        return selected

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

    def _load_table(self) -> datasets.Dataset:
        """All rows, of the columns that are used, memory-mapped; slices of it are `pyarrow.Table`s."""
        files = self._metadata.data_files()
        num_rows, schema = 0, pa.schema([])
        for path in files:
            with open_parquet(path) as file:
                num_rows += file.metadata.num_rows
                schema = schema if len(schema) else file.schema_arrow
        if num_rows != self._metadata.info["total_frames"]:  # before anything of that size is read
            raise ValueError(
                f"{self.name}: meta/info.json says total_frames = {self._metadata.info['total_frames']}, but the data "
                f"files hold {num_rows}. The copy is probably incomplete: download or export it again."
            )
        features = datasets.Features({name: datasets.Value(dtype) for name, dtype in INDEX_COLUMNS.items()})
        for key in self._vector_keys():
            features[key] = datasets.List(datasets.Value("float32"), length=self._dimension(key))
            # LeRobot writes vectors of length 1 as plain numbers.
            if key in schema.names and not pa.types.is_nested(schema.field(key).type):
                features[key] = datasets.Value("float32")
        for camera in self.cameras:
            if self.features[camera]["dtype"] == "image":
                features[camera] = datasets.Image(decode=False)
        if missing := sorted(features.keys() - set(schema.names)):
            raise ValueError(f"{files[0]} lacks {missing}, which info.json or the format announces.")
        paths: list = [glob.escape(str(file)) for file in files]  # `datasets` takes paths for patterns
        try:
            table = datasets.Dataset.from_parquet(paths, columns=list(features), features=features)
        except (DatasetGenerationError, FileNotFoundError) as error:
            for path in files:  # the file that is missing or damaged says so itself
                with open_parquet(path) as file:
                    file.read(columns=list(features))
            raise ValueError(
                f"{self.name}: the data files do not have the types and shapes of info.json. ({error.__cause__})"
            ) from error
        return table.with_format("arrow")

    def _check_episodes(self) -> np.ndarray:
        """Compare the episodes' lengths with the metadata; returns the first row of each selected one."""
        indices, first_rows = episode_runs(self._table)
        lengths = np.diff(first_rows, append=len(self._table))
        order = np.argsort(indices)
        indices, first_rows, lengths = indices[order], first_rows[order], lengths[order]
        if (np.diff(indices) == 0).any():
            raise ValueError(f"{self.name}: the frames of an episode are not in one piece in the data files.")
        selected = self._metadata.episode_indices[self._positions]
        places = np.minimum(np.searchsorted(indices, selected), len(indices) - 1)
        found = np.where(indices[places] == selected, lengths[places], 0)
        expected = self._metadata.episode_lengths[self._positions]
        if (wrong := np.flatnonzero(found != expected)).size:
            first = wrong[0]
            raise ValueError(
                f"{self.name}: episode {selected[first]} has {expected[first]} frames by its metadata, but "
                f"{found[first]} in the data."
            )
        return first_rows[places]

    def _check_frames(self) -> None:
        """Look at every frame of the selected episodes once, a block of them at a time."""
        known_tasks = np.array(list(self.tasks), np.int64)
        bad = dict.fromkeys(self._vector_keys(), 0)  # frames with NaN or infinity
        first_bad = {}
        last_time = np.nan
        for rows, episodes, column in self._blocks([*INDEX_COLUMNS, *self._vector_keys()]):
            expected = rows - self._first_rows[episodes]
            steps = np.diff(column["timestamp"], prepend=last_time)
            last_time = column["timestamp"][-1]
            # NaN fails both
            is_even = np.where(expected == 0, np.abs(column["timestamp"]) < 1e9, np.abs(steps * self.fps - 1.0) <= 0.5)
            wrong_number = column["frame_index"] != expected
            unknown_task = ~np.isin(column["task_index"], known_tasks)
            if (wrong := wrong_number | ~is_even | unknown_task).any():
                first = int(np.argmax(wrong))
                episode = int(column["episode_index"][first])
                if wrong_number[first]:
                    length = self._metadata.episode_lengths[self._positions[episodes[first]]]
                    raise ValueError(
                        f"{self.name}: the frames of episode {episode} are not numbered 0 to {length - 1}."
                    )
                if not is_even[first]:
                    raise ValueError(
                        f"{self.name}: at {self.fps} fps frames are {1 / self.fps:.4f} s apart, but the timestamps of "
                        f"episode {episode} jump after frame {max(expected[first] - 1, 0)}."
                    )
                raise ValueError(
                    f"{self.name}: episode {episode} has the task {column['task_index'][first]}, but the task table "
                    f"has only {_some(self.tasks)}."
                )
            for key in bad:
                not_finite = ~np.isfinite(column[key]).all(axis=1)
                if not_finite.any():
                    first_bad.setdefault(key, int(rows[np.argmax(not_finite)]))
                    bad[key] += int(not_finite.sum())
        for key, row in first_bad.items():
            first = self._table[row]
            raise ValueError(
                f"{self.name}: {key!r} holds NaN or infinity in {bad[key]} frames; the first is episode "
                f"{first['episode_index'][0]}, frame {first['frame_index'][0]}. Repair these frames, or leave the "
                "episodes out with `episodes=[...]`."
            )

    def _vector_keys(self) -> tuple[str, ...]:
        return (ACTION_KEY, STATE_KEY) if self.state_dim else (ACTION_KEY,)

    def _blocks(self, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """Columns of the selected episodes; see `blocks`."""
        return blocks(self._table, columns, self._first_rows, self._metadata.episode_lengths[self._positions])

    def _open_videos(self) -> Any:  # `VideoReaders` of an optional dependency
        """Check that the selected video files are there and whole. None when no camera is stored as video."""
        cameras = [camera for camera in self.cameras if self.features[camera]["dtype"] == "video"]
        if not cameras:
            return None
        from .video import VideoReadError, VideoReaders, check_video_file  # PyAV is an optional dependency

        for camera in cameras:
            for path in self._metadata.video_files(camera, self._positions):
                if not path.is_file():
                    raise FileNotFoundError(
                        f"{self.name}: the video {path} of camera {camera!r} is missing. Download or copy it "
                        "again, or leave the camera or the episode out."
                    )
                try:
                    check_video_file(path)
                except VideoReadError as error:
                    raise ValueError(f"{self.name}: camera {camera!r}: {error}") from error
        return VideoReaders()

    def _image(self, camera: str, selected: int, rows: pa.Table, frame: dict) -> np.ndarray:
        """The RGB frame of a camera, uint8 (height, width, 3)."""
        where = f"{self.name}, camera {camera!r}, episode {frame['episode_index']}, frame {frame['frame_index']}"
        if self.features[camera]["dtype"] == "image":
            return _decode_image(rows[camera][0].as_py(), where)
        from .video import VideoReadError

        path, start = self._metadata.video(camera, self._positions[selected])
        try:
            return self._videos.read(path, start + frame["timestamp"], self.fps)
        except VideoReadError as error:
            raise ValueError(f"{where}: {error}") from error


def _local_folder(folder_or_hub_id: str | Path) -> Path:
    folder = Path(folder_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(folder_or_hub_id), repo_type="dataset"))
    except (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{str(folder_or_hub_id)!r} is neither a folder here nor a dataset that can be had from the Hugging Face "
            f"Hub. Check the spelling, and for a private dataset log in with `hf auth login`. ({error})"
        ) from error


def _digest_of_ends(path: Path, length: int = 1 << 14) -> str:
    size = path.stat().st_size
    with path.open("rb") as stream:
        digest = hashlib.sha256(f"{size} ".encode() + stream.read(length))
        stream.seek(max(size - length, 0))
        digest.update(stream.read(length))
    return digest.hexdigest()


def _is_camera(feature: dict) -> bool:
    if feature["dtype"] not in ("video", "image"):
        return False
    details = feature.get("info") or {}
    return not (details.get("video.is_depth_map") or details.get("is_depth_map"))


def _decode_image(stored: dict | None, where: str) -> np.ndarray:
    if stored is None or stored["bytes"] is None:
        raise ValueError(f"{where}: the data file holds no image here. Export the dataset again with embedded images.")
    try:
        image = open_image(stored["bytes"])
    except ValueError as error:
        raise ValueError(f"{where}: the stored image cannot be decoded: {error}") from error
    if image.mode.startswith(("I", "F")):  # 16-bit and float pictures would be clipped without a word
        raise ValueError(f"{where}: the image has mode {image.mode!r}; 8 bits per channel are expected.")
    return np.array(image.convert("RGB"))


def _some(values) -> str:
    """A few of many values, for a message."""
    return f"{', '.join(map(str, islice(values, 20)))}{', ...' if len(values) > 20 else ''}"

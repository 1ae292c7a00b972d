"""The `meta/` folder of a LeRobot dataset, in one form for the formats v2.1 and v3.0.

v2.1 has one data file and one video per episode and camera, and its tables are JSON lines. v3.0 puts many episodes in
one file, says in `meta/episodes/` where each one is, and its tables are parquet.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Formatter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SUPPORTED_VERSIONS = ("v2.1", "v3.0")
STATE_KEY = "observation.state"
ACTION_KEY = "action"
STATISTIC_NAMES = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True)
class LeRobotMetadata:
    """What `meta/` says about a dataset. Episodes are addressed by their *position* in these arrays.

    Attributes:
        root: the dataset's folder.
        info: the content of `meta/info.json`.
        tasks: task index → instruction.
        episode_indices: (E,) the dataset's own episode numbers.
        episode_lengths: (E,) frames of each episode.
        placement: v3.0's columns that say which file holds an episode, each (E,); empty for v2.1.
    """

    root: Path
    info: dict
    tasks: dict[int, str]
    episode_indices: np.ndarray
    episode_lengths: np.ndarray
    placement: dict[str, np.ndarray]

    @classmethod
    def load(cls, root: Path) -> "LeRobotMetadata":
        """Read and check `root/meta`.

        Raises:
            FileNotFoundError: `root` is not a LeRobot dataset, or a metadata file is missing.
            ValueError: unsupported format version, or metadata that is damaged or disagrees with itself.
        """
        info = _read_info(root)
        read_tables = _read_tables_v21 if info["codebase_version"] == "v2.1" else _read_tables_v30
        metadata = cls(root, info, *read_tables(root, info))
        for key, found, what in (
            ("total_episodes", len(metadata.episode_indices), "episodes"),
            ("total_frames", int(metadata.episode_lengths.sum()), "frames"),
        ):
            if info[key] != found:
                raise ValueError(
                    f"{root}: meta/info.json says {key} = {info[key]}, but the episode table lists {found} {what}. "
                    "The copy is probably incomplete: download or export the dataset again."
                )
        if len(np.unique(metadata.episode_indices)) != len(metadata.episode_indices):
            raise ValueError(f"{root}: the episode table lists an episode more than once.")
        if (metadata.episode_lengths < 1).any():
            empty = metadata.episode_indices[np.argmin(metadata.episode_lengths)]
            raise ValueError(f"{root}: episode {empty} has no frames. Remove it from the dataset.")
        return metadata

    def data_path(self, position: int) -> Path:
        """The parquet file that holds an episode's rows."""
        return self._path("data_path", **self._file_of("data", position))

    def video(self, camera: str, position: int) -> tuple[Path, float]:
        """The video file that holds an episode's frames of a camera, and where in it they start, in seconds."""
        path = self._path("video_path", video_key=camera, **self._file_of(f"videos/{camera}", position))
        if self.info["codebase_version"] == "v2.1":
            return path, 0.0
        return path, float(self._placed(f"videos/{camera}/from_timestamp")[position])

    def statistics(self) -> dict[str, dict[str, np.ndarray]] | None:
        """`meta/stats.json` for state and actions, as float64 (D,); None without that file (v2.1 has none)."""
        path = self.root / "meta" / "stats.json"
        if not path.is_file():
            return None
        stored = _read_json(path)
        return {
            name: {
                statistic: np.atleast_1d(np.asarray(stored[key][statistic], np.float64))
                for statistic in STATISTIC_NAMES
                if statistic in stored[key]
            }
            for name, key in (("state", STATE_KEY), ("actions", ACTION_KEY))
            if key in stored
        }

    def _file_of(self, kind: str, position: int) -> dict[str, int]:
        """The fields of the path templates that depend on the episode."""
        if self.info["codebase_version"] == "v2.1":
            episode = int(self.episode_indices[position])
            return {"episode_chunk": episode // self.info["chunks_size"], "episode_index": episode}
        return {name: int(self._placed(f"{kind}/{name}")[position]) for name in ("chunk_index", "file_index")}

    def _placed(self, column: str) -> np.ndarray:
        if column not in self.placement:
            raise ValueError(f"{self.root}: meta/episodes has no column {column!r}, which info.json's features need.")
        return self.placement[column]

    def _path(self, key: str, **fields) -> Path:
        """Fill a path template of info.json, which may come from a stranger: it must stay inside the folder."""
        template = self.info.get(key)
        if not isinstance(template, str):
            raise ValueError(f"{self.root}: meta/info.json needs {key!r}, a path template, but has {template!r}.")
        wanted = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        if not wanted <= fields.keys():
            raise ValueError(f"{self.root}: {key} = {template!r} may only use the fields {sorted(fields)}.")
        relative = PurePosixPath(template.format(**fields))
        # Not `resolve()`: the Hub's cache is made of links that lead out of the folder.
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"{self.root}: {key} = {template!r} leads out of the dataset's folder ({relative}).")
        return self.root / relative


def feature_names(feature: dict) -> list[str] | None:
    """The names of a feature's dimensions, or None when it has none.

    LeRobot has written them as a list, as `{"motors": list}` and as `{name: position}`.
    """
    names = feature.get("names")
    if isinstance(names, dict):
        values = list(names.values())
        if len(values) == 1 and isinstance(values[0], list):
            return values[0]
        return sorted(names, key=names.get)
    return names


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file; what is wrong with it, now or while it is read, is said with its name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Download or copy the dataset again.")
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet; download or copy it again. ({error})") from error


def _read_info(root: Path) -> dict:
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{root} is not a LeRobot dataset: it has no meta/info.json.")
    info = _read_json(path)
    version = info.get("codebase_version")
    if version not in SUPPORTED_VERSIONS:
        raise ValueError(
            f"{root} has LeRobot format {version!r}; supported are {' and '.join(SUPPORTED_VERSIONS)}. "
            "Convert an older dataset with LeRobot's own scripts: from v1.x `convert_dataset_v1_to_v2.py`, then from "
            "v2.0 `convert_dataset_v20_to_v21.py`. For a newer format, update kivla."
        )
    needed = {"fps", "features", "total_episodes", "total_frames"} | ({"chunks_size"} if version == "v2.1" else set())
    if missing := sorted(needed - info.keys()):
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    if not info["fps"] > 0:
        raise ValueError(f"{path}: fps must be positive, got {info['fps']}.")
    return info


def _read_tables_v30(root: Path, info: dict) -> tuple[dict, np.ndarray, np.ndarray, dict]:
    with open_parquet(root / "meta" / "tasks.parquet") as file:
        tasks = file.read()
    # The instruction is the table's pandas index, which older writers left without a name.
    text_column = "task" if "task" in tasks.column_names else "__index_level_0__"
    _need_columns(tasks, ("task_index", text_column), root / "meta" / "tasks.parquet")
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{root} has no meta/episodes/*/*.parquet. Download or copy the dataset again.")
    episodes = pa.concat_tables([_read_episodes(file) for file in files], promote_options="permissive")
    if incomplete := [name for name in episodes.column_names if episodes[name].null_count]:
        raise ValueError(
            f"{root}: meta/episodes has empty fields in {', '.join(incomplete)}. Export the dataset again."
        )
    arrays = {name: episodes[name].to_numpy() for name in episodes.column_names}
    return (
        dict(zip(tasks["task_index"].to_pylist(), tasks[text_column].to_pylist(), strict=True)),
        arrays.pop("episode_index"),
        arrays.pop("length"),
        arrays,
    )


def _read_episodes(path: Path) -> pa.Table:
    """The columns of an episode table that are needed; statistics are by far most of the others."""
    with open_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if name.startswith(("data/", "videos/"))]
        table = file.read(columns=["episode_index", "length", *names])
    _need_columns(table, ("episode_index", "length"), path)
    return table


def _need_columns(table: pa.Table, columns: tuple[str, ...], where: Path) -> None:
    if missing := sorted(set(columns) - set(table.column_names)):
        raise ValueError(f"{where} lacks the column {', '.join(missing)}; it has {', '.join(table.column_names)}.")


def _read_tables_v21(root: Path, info: dict) -> tuple[dict, np.ndarray, np.ndarray, dict]:
    tasks = _read_json_lines(root / "meta" / "tasks.jsonl", ("task_index", "task"))
    episodes = list(_read_json_lines(root / "meta" / "episodes.jsonl", ("episode_index", "length")))
    return (
        {row["task_index"]: row["task"] for row in tasks},
        np.array([row["episode_index"] for row in episodes], np.int64),
        np.array([row["length"] for row in episodes], np.int64),
        {},
    )


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _read_json_lines(path: Path, keys: tuple[str, ...]) -> Iterator[dict]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Download or copy the dataset again.")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, is not valid JSON: {error}") from error
            if missing := [key for key in keys if key not in row]:
                raise ValueError(f"{path}, line {number}, lacks {', '.join(missing)}.")
            yield row

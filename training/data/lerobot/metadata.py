"""The `meta/` folder of a LeRobot dataset, in one form for the formats v2.1 and v3.0.

v2.1 has one data file and one video per episode and camera, and its tables are JSON lines. v3.0 puts many episodes in
one file, says in `meta/episodes/` where each one is, and its tables are parquet.
"""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from string import Formatter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SUPPORTED_VERSIONS = ("v2.1", "v3.0")
STATE_KEY = "observation.state"
ACTION_KEY = "action"
STATISTIC_NAMES = ("mean", "std", "min", "max", "q01", "q99")
_FILE_FIELDS = ("chunk_index", "file_index")

# A dataset may come from a stranger. These are far beyond any dataset, and keep what is read bounded.
_MAX_JSON_BYTES = 64_000_000
_MAX_TABLE_BYTES = 2_000_000_000
_MAX_TABLE_ROWS = 100_000_000
_BATCH_ROWS = 4096
_MAX_RANK, _MAX_SIDE = 8, 65_536
_MAX_TEMPLATE = 1024
_WIDTH = re.compile(r"0?\d{0,2}d?")


@dataclass(frozen=True)
class LeRobotMetadata:
    """What `meta/` says about a dataset. Episodes are addressed by their *position* in these arrays.

    Attributes:
        root: the dataset's folder.
        info: the content of `meta/info.json`.
        tasks: task index → instruction.
        episode_indices: (E,) the dataset's own episode numbers.
        episode_lengths: (E,) frames of each episode.
        placement: v3.0's columns that say which file holds an episode and where in it, each (E,); empty for v2.1.
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

    def data_files(self) -> list[Path]:
        """The parquet files that hold the rows, in the order of the episodes."""
        positions = self._first_in_each_file("data", np.arange(len(self.episode_indices)))
        return [self._path("data_path", **self._file_of("data", position)) for position in positions]

    def video_files(self, camera: str, positions: np.ndarray) -> list[Path]:
        """The video files of a camera that hold the episodes at these positions."""
        return [self.video(camera, position)[0] for position in self._first_in_each_file(f"videos/{camera}", positions)]

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
        try:
            return {
                name: {
                    statistic: np.atleast_1d(np.asarray(stored[key][statistic], np.float64))
                    for statistic in STATISTIC_NAMES
                    if statistic in stored[key]
                }
                for name, key in (("state", STATE_KEY), ("actions", ACTION_KEY))
                if key in stored
            }
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} does not hold lists of numbers by feature and statistic: {error}") from error

    def _first_in_each_file(self, kind: str, positions: np.ndarray) -> list[int]:
        """Of the episodes at these positions, the first one of every file; v2.1 has a file for each."""
        if self.info["codebase_version"] == "v2.1":
            return positions.tolist()
        chunk, file = (self._placed(f"{kind}/{name}")[positions].astype(np.int64) for name in _FILE_FIELDS)
        _, first = np.unique((chunk << 32) + file, return_index=True)
        return positions[np.sort(first)].tolist()

    def _file_of(self, kind: str, position: int) -> dict[str, int]:
        """The fields of the path templates that depend on the episode."""
        if self.info["codebase_version"] == "v2.1":
            episode = int(self.episode_indices[position])
            return {"episode_chunk": episode // self.info["chunks_size"], "episode_index": episode}
        return {name: int(self._placed(f"{kind}/{name}")[position]) for name in _FILE_FIELDS}

    def _placed(self, column: str) -> np.ndarray:
        if column not in self.placement:
            raise ValueError(f"{self.root}: meta/episodes has no column {column!r}, which info.json's features need.")
        return self.placement[column]

    def _path(self, key: str, **fields) -> Path:
        """Fill a path template of info.json, which may come from a stranger: it must stay inside the folder."""
        template = self.info.get(key)
        if not isinstance(template, str):
            raise ValueError(f"{self.root}: meta/info.json needs {key!r}, a path template, but has {template!r}.")
        try:
            _check_template(template, tuple(sorted(fields)))
            relative = PurePosixPath(template.format(**fields))
        except ValueError as error:
            raise ValueError(f"{self.root}: {key} = {template[:200]!r}: it {error}") from error
        # Not `resolve()`: the Hub's cache is made of links that lead out of the folder.
        if relative.is_absolute() or ".." in relative.parts or "\0" in str(relative):
            raise ValueError(f"{self.root}: {key} = {template!r} leads out of the dataset's folder ({relative}).")
        return self.root / relative


@lru_cache(maxsize=64)
def _check_template(template: str, fields: tuple[str, ...]) -> None:
    """A template is filled with `str.format`, which can read attributes and write any number of zeros: neither here."""
    if len(template) > _MAX_TEMPLATE:
        raise ValueError(f"is {len(template)} characters long; at most {_MAX_TEMPLATE} are taken.")
    for _, name, spec, conversion in Formatter().parse(template):
        if name is None:
            continue
        if name not in fields:
            raise ValueError(f"may only use the fields {list(fields)}.")
        if conversion or not _WIDTH.fullmatch(spec):
            raise ValueError(f"writes {name} in a form other than a plain number such as {{{name}:06d}}.")


def feature_names(feature: dict) -> list[str] | None:
    """The names of a feature's dimensions, or None when it has none.

    LeRobot has written them as a list, as `{"motors": list}` and as `{name: position}`.
    """
    names = feature.get("names")
    if isinstance(names, dict):
        values = list(names.values())
        if len(values) == 1 and isinstance(values[0], list):
            return values[0]
        if not all(isinstance(value, int | float) for value in values):
            raise ValueError(f"names must be a list, or map each name to its position, got {str(names)[:200]}.")
        return sorted(names, key=names.get)
    if not isinstance(names, list | None):
        raise ValueError(f"names must be a list, or map each name to its position, got {str(names)[:200]}.")
    return names


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file; what is wrong with it, now or while it is read, is said with its name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Download or copy the dataset again.")
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
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
    fps = info["fps"]
    if not _is_number(fps) or not 0 < fps <= 1e6:
        raise ValueError(f"{path}: fps must be positive, got {str(fps)[:200]}.")
    for name in sorted(needed - {"fps", "features"}):
        if type(info[name]) is not int or not (name == "chunks_size") <= info[name] < 1 << 48:
            raise ValueError(f"{path}: {name} must be a whole number, got {str(info[name])[:200]}.")
    if not isinstance(info["features"], dict):
        raise ValueError(f"{path}: features must be a map, got {type(info['features']).__name__}.")
    for name, feature in info["features"].items():
        if not _is_feature(feature):
            raise ValueError(
                f"{path}: the feature {name[:200]!r} must have a dtype (a string), a shape (a list of at most "
                f"{_MAX_RANK} whole numbers up to {_MAX_SIDE}) and perhaps `info` (a map), got {str(feature)[:200]}."
            )
    return info


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_feature(feature) -> bool:
    return (
        isinstance(feature, dict)
        and isinstance(feature.get("dtype"), str)
        and isinstance(feature.get("shape"), list)
        and len(feature["shape"]) <= _MAX_RANK
        and all(type(side) is int and 0 <= side <= _MAX_SIDE for side in feature["shape"])
        and isinstance(feature.get("info"), dict | None)
    )


def _read_tables_v30(root: Path, info: dict) -> tuple[dict, np.ndarray, np.ndarray, dict]:
    tasks_path = root / "meta" / "tasks.parquet"
    with open_parquet(tasks_path) as file:
        tasks = _read_table(tasks_path, file)
    # The instruction is the table's pandas index, which older writers left without a name.
    text_column = "task" if "task" in tasks.column_names else "__index_level_0__"
    _need_columns(tasks, ("task_index", text_column), tasks_path)
    tasks = _cast(tasks, {"task_index": pa.int64(), text_column: pa.large_string()}, tasks_path)
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{root} has no meta/episodes/*/*.parquet. Download or copy the dataset again.")
    tables = [_read_episodes(file) for file in files]
    try:
        episodes = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise ValueError(f"{root}: the tables in meta/episodes do not fit together. ({error})") from error
    if incomplete := [name for name in episodes.column_names if episodes[name].null_count]:
        raise ValueError(
            f"{root}: meta/episodes has empty fields in {', '.join(incomplete)}. Export the dataset again."
        )
    arrays = {name: episodes[name].to_numpy() for name in episodes.column_names}
    for name, values in arrays.items():
        if not ((values >= 0) & (values < 1e9)).all():  # false for NaN, too
            raise ValueError(f"{root}: meta/episodes has values in {name} that are negative, too large or NaN.")
    return (
        _tasks(zip(tasks["task_index"].to_pylist(), tasks[text_column].to_pylist(), strict=True), tasks_path),
        arrays.pop("episode_index"),
        arrays.pop("length"),
        arrays,
    )


def _read_episodes(path: Path) -> pa.Table:
    """The columns of an episode table that are needed; statistics are by far most of the others."""
    with open_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if name.startswith(("data/", "videos/"))]
        types = {name: pa.int32() for name in names if name.endswith(_FILE_FIELDS)}
        types |= {name: pa.float64() for name in names if name.endswith("/from_timestamp")}
        types |= {"episode_index": pa.int64(), "length": pa.int64()}
        table = _read_table(path, file, list(types))
    _need_columns(table, ("episode_index", "length"), path)
    return _cast(table, types, path)


def _cast(table: pa.Table, types: dict[str, pa.DataType], where: Path) -> pa.Table:
    """The columns as these types, without loss."""
    columns = {}
    for name, wanted in types.items():
        try:
            columns[name] = table[name].cast(wanted)
        except pa.ArrowException as error:
            raise ValueError(f"{where}: the column {name} is not {wanted}. ({str(error)[:200]})") from error
    return pa.table(columns)


def _tasks(pairs: Iterable[tuple], where: Path) -> dict[int, str]:
    tasks = dict(pairs)
    if not all(type(index) is int and 0 <= index < 1 << 62 and isinstance(text, str) for index, text in tasks.items()):
        raise ValueError(f"{where} must give every task a number and an instruction. Export the dataset again.")
    return tasks


def _read_table(path: Path, file: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Those of the columns that are there (all by default). A small file may unpack to any size: read in batches.

    What the file itself says of its sizes is a stranger's word; and pyarrow 26 ends the process over damaged ones.
    """
    names = [name for name in file.schema_arrow.names if columns is None or name in columns]
    schema = pa.schema([file.schema_arrow.field(name) for name in names])
    batches, rows, size = [], 0, 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=names):
        batches.append(batch)
        rows, size = rows + len(batch), size + batch.nbytes
        if size > _MAX_TABLE_BYTES or rows > _MAX_TABLE_ROWS:
            raise ValueError(
                f"{path} unpacks to more than {_MAX_TABLE_BYTES} bytes or {_MAX_TABLE_ROWS} rows, which no table of "
                "episodes or tasks has. Download it again."
            )
    return pa.Table.from_batches(batches, schema)


def _need_columns(table: pa.Table, columns: tuple[str, ...], where: Path) -> None:
    if missing := sorted(set(columns) - set(table.column_names)):
        raise ValueError(f"{where} lacks the column {', '.join(missing)}; it has {', '.join(table.column_names)}.")


def _read_tables_v21(root: Path, info: dict) -> tuple[dict, np.ndarray, np.ndarray, dict]:
    tasks_path, episodes_path = root / "meta" / "tasks.jsonl", root / "meta" / "episodes.jsonl"
    tasks = ((row["task_index"], row["task"]) for row in _read_json_lines(tasks_path, ("task_index", "task")))
    episodes = array("q")  # index, length, index, ...: no objects for every episode
    for number, row in enumerate(_read_json_lines(episodes_path, ("episode_index", "length")), start=1):
        for name in ("episode_index", "length"):
            if type(row[name]) is not int or not 0 <= row[name] < 1 << 48:
                raise ValueError(f"{episodes_path}, line {number}: {name} must be a whole number, not {row[name]!r}.")
            episodes.append(row[name])
    table = np.array(episodes, np.int64).reshape(-1, 2)
    return _tasks(tasks, tasks_path), table[:, 0].copy(), table[:, 1].copy(), {}


def _read_json(path: Path) -> dict:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {_MAX_JSON_BYTES} are read.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a map, not a {type(values).__name__}.")
    return values


def _read_json_lines(path: Path, keys: tuple[str, ...]) -> Iterator[dict]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Download or copy the dataset again.")
    with path.open("rb") as lines:
        for number, line in enumerate(iter(partial(lines.readline, _MAX_JSON_BYTES), b""), start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}, is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}, must hold a map, not a {type(row).__name__}.")
            if missing := [key for key in keys if key not in row]:
                raise ValueError(f"{path}, line {number}, lacks {', '.join(missing)}.")
            yield row

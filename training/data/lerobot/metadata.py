"""The `meta/` folder of a LeRobot dataset, in one form for the formats v2.0, v2.1 and v3.0.

v2.x has one data file and one video per episode and camera, and its tables are JSON lines. v3.0 puts many episodes in
one file, says in `meta/episodes/` where each one is, and its tables are parquet.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePosixPath
from string import Formatter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ONE_FILE_EACH = ("v2.0", "v2.1")  # versions with a file for every episode
SUPPORTED_VERSIONS = (*ONE_FILE_EACH, "v3.0")
STATE_KEY = "observation.state"
ACTION_KEY = "action"
STATISTIC_NAMES = ("mean", "std", "min", "max", "q01", "q99")
_FILE_FIELDS = ("chunk_index", "file_index")
_EPISODE_FIELDS = ("episode_chunk", "episode_index")
_CHUNKS_SIZE = 1000  # episodes in a chunk, where info.json does not say
_EACH = "chunk-{episode_chunk:03d}", "episode_{episode_index:06d}"
_MANY = "chunk-{chunk_index:03d}", "file-{file_index:03d}"
# Where files are if they are not where info.json says: GR00T's demonstrations have a template that nobody has followed.
_USUAL_PATHS = {
    True: {
        "data_path": "data/{}/{}.parquet".format(*_EACH),
        "video_path": "videos/{}/{{video_key}}/{}.mp4".format(*_EACH),
    },
    False: {
        "data_path": "data/{}/{}.parquet".format(*_MANY),
        "video_path": "videos/{{video_key}}/{}/{}.mp4".format(*_MANY),
    },
}

# A dataset may come from a stranger. These are far beyond any dataset, and keep what is read bounded.
_MAX_JSON_BYTES = 64_000_000
_MAX_TABLE_BYTES = 2_000_000_000
_MAX_TABLE_ROWS = 100_000_000
_BATCH_ROWS = 4096
_MAX_TEMPLATE = 1024
_VIDEO_COLUMN = re.compile(r"videos/(.+)/file_index")
_WIDTH = re.compile(r"0?\d{0,2}d?")


def _nothing(paths: Sequence[Path]) -> None:
    """What is in a folder is there."""


@dataclass(frozen=True)
class LeRobotMetadata:
    """What `meta/` says about a dataset. Episodes are addressed by their *position* in these arrays.

    Attributes:
        root: the dataset's folder.
        info: the content of `meta/info.json`.
        tasks: task index → instruction; empty without a table of them.
        episode_indices: (E,) the dataset's own episode numbers.
        episode_lengths: (E,) frames of each episode.
        placement: v3.0's columns that say which file holds an episode and where in it, each (E,); empty for v2.x.
        notes: what in the metadata does not agree with itself and does no harm, a sentence each.
        fetch: makes data files be there, if the dataset has them.
        fetch_videos: the same for videos.
        has: whether the dataset has a file.
    """

    root: Path
    info: dict
    tasks: dict[int, str]
    episode_indices: np.ndarray
    episode_lengths: np.ndarray
    placement: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)
    fetch: Callable[[Sequence[Path]], None] = _nothing
    fetch_videos: Callable[[Sequence[Path]], None] = _nothing
    has: Callable[[Path], bool] = Path.is_file

    @classmethod
    def load(cls, root: Path, **files: Callable) -> "LeRobotMetadata":
        """Read and check `root/meta`.

        Args:
            files: `fetch`, `fetch_videos` and `has`, where files are not simply there.

        Raises:
            FileNotFoundError: `root` is not a LeRobot dataset, or a metadata file is missing.
            ValueError: unsupported format version, or metadata that is damaged or disagrees with itself.
        """
        info = _read_info(root)
        read_tables = _read_tables_v2 if info["codebase_version"] in ONE_FILE_EACH else _read_tables_v3
        metadata = cls(root, info, *read_tables(root), **files)
        for key, found, what in (
            ("total_episodes", len(metadata.episode_indices), "episodes"),
            ("total_frames", int(metadata.episode_lengths.sum()), "frames"),
        ):
            if key in info and info[key] != found:
                metadata.notes.append(
                    f"meta/info.json says {key} = {info[key]}, but the episode table lists {found} {what}: the table "
                    "is believed. If that is too few, the copy is incomplete."
                )
        if note := metadata.note_on_videos:
            metadata.notes.append(note)
        if len(np.unique(metadata.episode_indices)) != len(metadata.episode_indices):
            raise ValueError(f"{root}: the episode table lists an episode more than once.")
        return metadata

    @property
    def has_file_for_each(self) -> bool:
        """Whether every episode has files of its own."""
        return self.info["codebase_version"] in ONE_FILE_EACH

    @property
    def recorded(self) -> np.ndarray:
        """Positions of the episodes that have frames. The others are in no file."""
        return np.flatnonzero(self.episode_lengths)

    @cached_property
    def note_on_videos(self) -> str | None:
        """Says that the template of video paths gives different videos one path; None where it does not."""
        cameras = [name for name, feature in self.info["features"].items() if feature.get("dtype") == "video"]
        template = self.info.get("video_path")
        if not cameras or not isinstance(template, str):
            return None
        if len(cameras) > 1 and "{video_key" not in template:
            what = f"does not name the camera, and there are {len(cameras)}"
        elif not all(self._tells_files_apart(template, camera) for camera in cameras):
            what = "gives different videos of a camera one path"
        else:
            return None
        return (
            f"video_path of meta/info.json, {template[:200]}, {what}: they are looked for where LeRobot puts them, "
            f"{_USUAL_PATHS[self.has_file_for_each]['video_path']}."
        )

    def data_files(self, positions: np.ndarray) -> dict[Path, np.ndarray]:
        """The parquet files that hold the rows of the episodes at these positions → the episodes in each, in order."""
        return self._files("data_path", "data", positions)

    def video_files(self, camera: str, positions: np.ndarray) -> dict[Path, np.ndarray]:
        """The video files of a camera that hold the episodes at these positions → the episodes in each, in order."""
        return self._files("video_path", f"videos/{camera}", positions, video_key=camera)

    def has_videos(self, camera: str) -> bool:
        """Whether the metadata says of any episode where the videos of a camera are."""
        fields = self._fields("video_path").intersection(_FILE_FIELDS)
        columns = [self.placement.get(f"videos/{camera}/{name}") for name in fields]
        return self.has_file_for_each or all(column is not None and (column >= 0).any() for column in columns)

    def video(self, camera: str, position: int) -> Path:
        """The video file that holds an episode's frames of a camera."""
        return self._find("video_path", f"videos/{camera}", position, {"video_key": camera})

    def filmed(self) -> list[str]:
        """Every camera of which there are videos, whatever info.json says: by the columns of the episode table, or by
        the folders where LeRobot puts them."""
        if not self.has_file_for_each:
            return [match[1] for match in map(_VIDEO_COLUMN.fullmatch, self.placement) if match]
        usual = _USUAL_PATHS[True]["video_path"]
        pattern = self._fill("video_path", usual, "videos", 0, {"video_key": "*"}).relative_to(self.root)
        place = pattern.parts.index("*")
        return sorted(path.relative_to(self.root).parts[place] for path in self.root.glob(str(pattern)))

    def video_spans(self, camera: str, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) from where and (n,) to where in their file episodes are, in seconds; an end may be unknown: NaN."""
        ends = self.placement.get(f"videos/{camera}/to_timestamp")
        starts = self._placed(f"videos/{camera}/from_timestamp", positions)
        return starts, np.full(len(positions), np.nan) if ends is None else np.where(ends >= 0, ends, np.nan)[positions]

    def episodes_beside(self, camera: str, positions: Sequence[int]) -> list[np.ndarray] | None:
        """For each of these positions those of all episodes that are in the same video; None if each has its own."""
        if self.has_file_for_each or "episode_index" in self._fields("video_path"):
            return None
        chunk, file = (self.placement[f"videos/{camera}/{name}"].astype(np.int64) for name in _FILE_FIELDS)
        place = (chunk << 32) + file
        order = self.recorded[np.argsort(place[self.recorded], kind="stable")]
        starts, ends = (np.searchsorted(place[order], place[positions], side) for side in ("left", "right"))
        return [order[start:end] for start, end in zip(starts, ends, strict=True)]

    def episode_tasks(self, positions: np.ndarray) -> list[list[str]]:
        """The instructions that the episode table lists for each episode; read when asked for."""
        if self.has_file_for_each:
            path = self.root / "meta" / "episodes.jsonl"
            listed = [row["tasks"] for row in read_json_lines(path, ("tasks",))]
        else:
            listed = []
            for path in _episode_tables(self.root):
                with open_parquet(path) as file:
                    table = read_table(path, file, ["tasks"])
                _need_columns(table, ("tasks",), path)
                listed += table["tasks"].to_pylist()
        return [
            listed[position] if isinstance(listed[position], list) else [listed[position]] for position in positions
        ]

    def listed_tasks(self) -> Iterator[list[str]]:
        """What the episode table lists as instructions of each episode, perhaps nothing; read as it is asked for."""
        if self.has_file_for_each:
            rows = read_json_lines(self.root / "meta" / "episodes.jsonl", ())
            yield from (_strings(row.get("tasks")) for row in rows)
            return
        for path in _episode_tables(self.root):
            with open_parquet(path) as file:
                if "tasks" in file.schema_arrow.names:
                    yield from map(_strings, read_table(path, file, ["tasks"])["tasks"].to_pylist())
                else:
                    yield from ([] for _ in range(file.metadata.num_rows))

    def first_indices(self) -> np.ndarray:
        """(E,) the `index` of each episode's first row among all rows: as the episode table says, or counted in the
        order of the episodes' numbers. Read when asked for."""
        if not self.has_file_for_each:
            column = "dataset_from_index"
            parts = []
            for path in _episode_tables(self.root):
                with open_parquet(path) as file:
                    table = read_table(path, file, [column])
                if column in table.column_names:
                    parts.append(_cast(table, {column: pa.int64()}, path)[column].fill_null(-1).to_numpy())
            if parts and sum(map(len, parts)) == len(self.episode_indices):
                starts = np.concatenate(parts)
                _check_numbers(self.root, column, starts)
                return starts
        order = np.argsort(self.episode_indices)
        starts = np.empty_like(self.episode_lengths)
        starts[order] = np.cumsum(self.episode_lengths[order]) - self.episode_lengths[order]
        return starts

    def modality(self) -> dict | None:
        """`meta/modality.json`, which GR00T has; None without it."""
        path = self.root / "meta" / "modality.json"
        return _read_json(path) if path.is_file() else None

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

    def _files(self, key: str, kind: str, positions: np.ndarray, **names: str) -> dict[Path, np.ndarray]:
        if self.has_file_for_each or not self._fields(key).isdisjoint(_EPISODE_FIELDS):
            groups = positions[:, None]
        else:
            chunk, file = (self._placed(f"{kind}/{name}", positions).astype(np.int64) for name in _FILE_FIELDS)
            _, first, number = np.unique((chunk << 32) + file, return_index=True, return_inverse=True)
            order = np.argsort(number, kind="stable")
            groups = np.split(positions[order], np.flatnonzero(np.diff(number[order])) + 1)
            groups = [groups[i] for i in np.argsort(first)]  # in the order of the episodes
        template, usual = self._template(key), _USUAL_PATHS[self.has_file_for_each][key]
        firsts = [int(group[0]) for group in groups]
        paths = [self._fill(key, template, kind, first, names) for first in firsts]
        fetch = self.fetch_videos if key == "video_path" else self.fetch
        fetch(paths)
        if template != usual and self._knows_usual(kind):
            gone = [first for first, path in zip(firsts, paths, strict=True) if not self.has(path)]
            fetch([self._fill(key, usual, kind, first, names) for first in gone])
        files: dict[Path, list] = {}
        for group in groups:
            files.setdefault(self._find(key, kind, int(group[0]), names), []).append(group)
        return {path: np.concatenate(parts) for path, parts in files.items()}

    def _fields(self, key: str) -> frozenset[str]:
        """What a path template of info.json depends on."""
        return self._checked(key, self._template(key))

    def _template(self, key: str) -> str:
        template = self.info.get(key)
        if template is None or (key == "video_path" and self.note_on_videos):
            return _USUAL_PATHS[self.has_file_for_each][key]
        if not isinstance(template, str):
            raise ValueError(f"{self.root}: meta/info.json needs {key!r}, a path template, but has {template!r}.")
        return template

    def _tells_files_apart(self, template: str, camera: str) -> bool:
        """Whether a template of video paths gives each of a camera's videos a path of its own."""
        numbers = {name: self._episode_field(name, self.episode_indices) for name in (*_EPISODE_FIELDS, *_FILE_FIELDS)}
        videos = ["episode_index"]
        if not self.has_file_for_each:
            placed = {name: self.placement.get(f"videos/{camera}/{name}") for name in _FILE_FIELDS}
            if any(column is None for column in placed.values()):
                return True  # nothing says where its videos are
            numbers, videos = numbers | placed, list(_FILE_FIELDS)
        used = [name for name in numbers if f"{{{name}" in template]
        if "episode_index" in used or set(videos) <= set(used):
            return True
        video_at: dict[tuple, tuple] = {}
        for position in self.recorded.tolist():
            path, video = (tuple(int(numbers[name][position]) for name in names) for names in (used, videos))
            if min(video) >= 0 and video_at.setdefault(path, video) != video:
                return False
        return True

    def _checked(self, key: str, template: str) -> frozenset[str]:
        known = (*_FILE_FIELDS, *_EPISODE_FIELDS, *(("video_key",) if key == "video_path" else ()))
        try:
            return _template_fields(template, known)
        except ValueError as error:
            raise ValueError(f"{self.root}: {key} = {template[:200]!r}: it {error}") from error

    def _find(self, key: str, kind: str, position: int, names: dict[str, str]) -> Path:
        """Where a file is by the template of info.json; or if it is not there, where such files usually are."""
        template, usual = self._template(key), _USUAL_PATHS[self.has_file_for_each][key]
        path = self._fill(key, template, kind, position, names)
        if template == usual or self.has(path):
            return path
        if not self._knows_usual(kind):
            return path
        other = self._fill(key, usual, kind, position, names)
        if not self.has(other):
            return path
        note = f"Files are not where {key} of meta/info.json says, but where LeRobot puts them: {usual}."
        if note not in self.notes:
            self.notes.append(note)
        return other

    def _knows_usual(self, kind: str) -> bool:
        """Whether it is known where files usually are."""
        return self.has_file_for_each or f"{kind}/file_index" in self.placement

    def _fill(self, key: str, template: str, kind: str, position: int, names: dict[str, str]) -> Path:
        """Fill a path template, which may come from a stranger: it must stay inside the folder."""
        wanted = self._checked(key, template)
        fields = {name: self._field(name, kind, position) for name in wanted - names.keys()}
        relative = PurePosixPath(template.format(**fields, **names))
        # Not `resolve()`: the Hub's cache is made of links that lead out of the folder.
        if relative.is_absolute() or ".." in relative.parts or "\0" in str(relative):
            raise ValueError(f"{self.root}: {key} = {template!r} leads out of the dataset's folder ({relative}).")
        return self.root / relative

    def _field(self, name: str, kind: str, position: int) -> int:
        """The value of a field of a path template for an episode."""
        if name in _FILE_FIELDS and not self.has_file_for_each:
            return int(self._placed(f"{kind}/{name}", position))
        return int(self._episode_field(name, self.episode_indices[position]))

    def _episode_field(self, name: str, episodes: np.ndarray) -> np.ndarray:
        """The value of a field that follows from an episode's number."""
        size = self.info.get("chunks_size", _CHUNKS_SIZE)
        values = {"episode_index": episodes, "file_index": episodes % size}
        return values.get(name, episodes // size)

    def _placed(self, column: str, positions: np.ndarray | int) -> np.ndarray:
        """Values of the episode table. What it says of other episodes does not matter."""
        if column not in self.placement:
            raise ValueError(f"{self.root}: meta/episodes has no column {column!r}, which info.json's features need.")
        values = self.placement[column][positions]
        _check_numbers(self.root, column, values)
        return values


@lru_cache(maxsize=64)
def _template_fields(template: str, known: tuple[str, ...]) -> frozenset[str]:
    """A template is filled with `str.format`, which can read attributes and write any number of zeros: neither here."""
    if len(template) > _MAX_TEMPLATE:
        raise ValueError(f"is {len(template)} characters long; at most {_MAX_TEMPLATE} are taken.")
    fields = set()
    for _, name, spec, conversion in Formatter().parse(template):
        if name is None:
            continue
        if name not in known:
            raise ValueError(f"may only use the fields {sorted(known)}.")
        if conversion or not _WIDTH.fullmatch(spec):
            raise ValueError(f"writes {name} in a form other than a plain number such as {{{name}:06d}}.")
        fields.add(name)
    return frozenset(fields)


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
            f"{root} has LeRobot format {version!r}; supported are {', '.join(SUPPORTED_VERSIONS)}. Convert an older "
            "dataset with LeRobot's own script `convert_dataset_v1_to_v2.py`. For a newer format, update kivla."
        )
    if missing := sorted({"fps", "features"} - info.keys()):
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    fps = info["fps"]
    if not _is_number(fps) or not 0 < fps <= 1e6:
        raise ValueError(f"{path}: fps must be a positive number, at most 1e6, got {repr(fps)[:200]}.")
    for name in ("total_episodes", "total_frames", "chunks_size"):
        if name in info and (type(info[name]) is not int or not (name == "chunks_size") <= info[name] < 1 << 48):
            raise ValueError(f"{path}: {name} must be a whole number, got {str(info[name])[:200]}.")
    features = info["features"]
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise ValueError(f"{path}: features must be a map of maps, got {str(features)[:200]}.")
    for feature in features.values():  # "Video" is a camera as well
        if isinstance(feature.get("dtype"), str):
            feature["dtype"] = feature["dtype"].lower()
    return info


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_tables_v3(root: Path) -> tuple[dict, np.ndarray, np.ndarray, dict]:
    tasks_path = root / "meta" / "tasks.parquet"
    tasks = _read_tasks_table(tasks_path) if tasks_path.is_file() else {}
    tables = [_read_episodes(file) for file in _episode_tables(root)]
    try:
        episodes = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise ValueError(f"{root}: the tables in meta/episodes do not fit together. ({error})") from error
    # Empty fields matter where they are used: a camera that is left out may have some.
    arrays = {name: episodes[name].fill_null(-1).to_numpy() for name in episodes.column_names}
    for name in ("episode_index", "length"):
        _check_numbers(root, name, arrays[name])
    return tasks, arrays.pop("episode_index"), arrays.pop("length"), arrays


def _check_numbers(root: Path, name: str, values: np.ndarray) -> None:
    if not np.all((values >= 0) & (values < 1e9)):  # false for NaN, too
        raise ValueError(
            f"{root}: meta/episodes has values in {name} that are empty, negative, too large or NaN. Export the "
            "dataset again."
        )


def _read_tasks_table(path: Path) -> dict[int, str]:
    with open_parquet(path) as file:
        tasks = read_table(path, file)
    # The instruction is the table's pandas index, which older writers left without a name.
    text_column = "task" if "task" in tasks.column_names else "__index_level_0__"
    _need_columns(tasks, ("task_index", text_column), path)
    tasks = _cast(tasks, {"task_index": pa.int64(), text_column: pa.large_string()}, path)
    return _tasks(zip(tasks["task_index"].to_pylist(), tasks[text_column].to_pylist(), strict=True), path)


def _episode_tables(root: Path) -> list[Path]:
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{root} has no meta/episodes/*/*.parquet. Download or copy the dataset again.")
    return files


def _read_episodes(path: Path) -> pa.Table:
    """The columns of an episode table that are needed; statistics are by far most of the others."""
    with open_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if name.startswith(("data/", "videos/"))]
        types = {name: pa.int32() for name in names if name.endswith(_FILE_FIELDS)}
        types |= {name: pa.float64() for name in names if name.endswith(("/from_timestamp", "/to_timestamp"))}
        types |= {"episode_index": pa.int64(), "length": pa.int64()}
        table = read_table(path, file, list(types))
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


def _strings(value) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _tasks(pairs: Iterable[tuple], where: Path) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for index, text in pairs:
        if isinstance(index, int) and tasks.setdefault(index, text) != text:
            raise ValueError(
                f"{where} gives the task {index} two instructions, {str(tasks[index])[:200]!r} and "
                f"{str(text)[:200]!r}: nobody can tell which is meant. Correct it."
            )
        tasks[index] = text
    if not all(type(index) is int and 0 <= index < 1 << 62 and isinstance(text, str) for index, text in tasks.items()):
        raise ValueError(f"{where} must give every task a number and an instruction. Export the dataset again.")
    return tasks


def read_table(path: Path, file: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
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


def _read_tables_v2(root: Path) -> tuple[dict, np.ndarray, np.ndarray, dict]:
    tasks_path, episodes_path = root / "meta" / "tasks.jsonl", root / "meta" / "episodes.jsonl"
    rows = read_json_lines(tasks_path, ("task_index", "task")) if tasks_path.is_file() else ()
    tasks = _tasks(((row["task_index"], row["task"]) for row in rows), tasks_path)
    episodes = array("q")  # index, length, index, ...: no objects for every episode
    for number, row in enumerate(read_json_lines(episodes_path, ("episode_index", "length")), start=1):
        for name in ("episode_index", "length"):
            if type(row[name]) is not int or not 0 <= row[name] < 1 << 48:
                raise ValueError(f"{episodes_path}, line {number}: {name} must be a whole number, not {row[name]!r}.")
            episodes.append(row[name])
    table = np.array(episodes, np.int64).reshape(-1, 2)
    return tasks, table[:, 0].copy(), table[:, 1].copy(), {}


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


def read_json_lines(path: Path, keys: tuple[str, ...]) -> Iterator[dict]:
    """The maps of a file, one a line, each with these keys; what is wrong is said with its line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Download or copy the dataset again.")
    with path.open("rb") as lines:
        for number, line in enumerate(iter(partial(lines.readline, _MAX_JSON_BYTES), b""), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}, is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}, must hold a map, not a {type(row).__name__}.")
            if missing := [key for key in keys if key not in row]:
                raise ValueError(f"{path}, line {number}, lacks {', '.join(missing)}.")
            yield row

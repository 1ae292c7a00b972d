"""What is said about the frames of a LeRobot dataset beside the task: sub-tasks, other wordings, questions.

LeRobot has two columns since mid-2026. `language_persistent` is the same list of rows on every frame of an episode,
each with the time from which it holds; `language_events` has rows on the frames where something was said. A row is
{role, content, style, timestamp (persistent only), camera, tool_calls}. Older and hand-made datasets have a column of
strings, or of numbers with a table in `meta/`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from ..example_order import fold_seed
from .metadata import open_parquet

PERSISTENT_COLUMN, EVENTS_COLUMN = "language_persistent", "language_events"
PERSISTENT_FEATURE = {"dtype": "language", "shape": [1], "names": None}  # in info.json
_SAME_TIME = 1e-4  # seconds: times are float32, and may have been computed in two ways
_BATCH_ROWS = 1024
_INDEX_ENDINGS = ("_index", "_id")


@dataclass
class Language:
    """What is said about the selected episodes; episodes by their numbers, frames by their rows in them.

    Attributes:
        subtasks: episode → the rows where another sub-task begins, and these sub-tasks (None: there is none).
        wordings: episode → other wordings of its task.
        questions: (episode, row, camera, question, answer) each.
    """

    subtasks: dict[int, tuple[np.ndarray, list[str | None]]] = field(default_factory=dict)
    wordings: dict[int, list[str]] = field(default_factory=dict)
    questions: list[tuple[int, int, str | None, str, str]] = field(default_factory=list)

    def subtask(self, episode: int, row: int) -> str | None:
        """The sub-task at a frame: the latest one that has begun."""
        starts, texts = self.subtasks.get(episode, (np.empty(0), []))
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return texts[number] if number >= 0 else None

    def wording(self, task: str, episode: int, row: int) -> str:
        """The task, or one of its other wordings: drawn for every frame, always the same for it."""
        options = list(dict.fromkeys([task, *self.wordings.get(episode, [])]))
        return options[fold_seed(episode, row) % len(options)]

    def facts(self) -> list:
        """All of it, for a digest."""
        subtasks = [(episode, starts.tolist(), texts) for episode, (starts, texts) in sorted(self.subtasks.items())]
        return [subtasks, sorted(self.wordings.items()), self.questions]


def read_language(
    name: str, root: Path, paths: Sequence[Path], features: dict, episodes: Sequence[int], subtask_key: str | None
) -> Language:
    """Read what is said about episodes, without their frames' numbers.

    Args:
        name: of the dataset, for messages.
        root: its folder.
        paths: its data files.
        features: those of info.json.
        episodes: numbers of the selected episodes.
        subtask_key: the column with the sub-tasks, or None.

    Raises:
        ValueError: there is no such column, it is of another kind, its table is missing, or it names none.
    """
    language, wanted = Language(), set(episodes)
    if subtask_key is not None and subtask_key not in features:
        raise ValueError(f"{name} has no feature {subtask_key!r} with sub-tasks, only {', '.join(features)}.")
    if subtask_key == EVENTS_COLUMN:
        raise ValueError(f"{name}: sub-tasks are state, and stand in {PERSISTENT_COLUMN!r}, not in {EVENTS_COLUMN!r}.")
    has_column = subtask_key not in (None, PERSISTENT_COLUMN)
    table = None
    for column in dict.fromkeys([PERSISTENT_COLUMN, EVENTS_COLUMN, *([subtask_key] if has_column else [])]):
        if column not in features:
            continue
        for episode, first, times, values in _episode_pieces(paths, column, wanted):
            if column == PERSISTENT_COLUMN:
                # The same on every frame; an episode that goes on in another piece has been read.
                if episode not in language.wordings:
                    language.wordings[episode] = _texts(values[0].as_py(), "task_aug")
                if subtask_key == PERSISTENT_COLUMN:
                    _add_subtasks(language, episode, *_persistent_subtasks(values[0].as_py(), first, times))
            elif column == EVENTS_COLUMN:
                language.questions += [(episode, *question) for question in _questions(values, first)]
            else:
                if table is None and not _is_text(values.type):
                    table = _text_table(name, root, subtask_key, values.type)
                _add_subtasks(language, episode, *_column_subtasks(name, subtask_key, values, first, table))
    if subtask_key is not None and not any(text for _, texts in language.subtasks.values() for text in texts):
        raise ValueError(
            f"{name}: {subtask_key!r} names no sub-task in the selected episodes. Leave out subtask_key, or choose the "
            "column that has them."
        )
    return language


def _episode_pieces(
    paths: Sequence[Path], column: str, episodes: set[int]
) -> Iterator[tuple[int, int, np.ndarray, pa.Array]]:
    """The rows of the episodes, in pieces: number, first row of the piece in the episode, times, and the column."""
    rows_so_far: dict[int, int] = {}
    for path in paths:
        with open_parquet(path) as file:
            if missing := {"episode_index", "timestamp", column} - set(file.schema_arrow.names):
                raise ValueError(f"{path} lacks {sorted(missing)}, which are needed to read {column!r}.")
            for batch in file.iter_batches(_BATCH_ROWS, columns=["episode_index", "timestamp", column]):
                numbers = batch["episode_index"].to_numpy()
                for start, end in _runs(numbers):
                    episode, first = int(numbers[start]), rows_so_far.get(int(numbers[start]), 0)
                    rows_so_far[episode] = first + end - start
                    if episode in episodes:
                        piece = batch.slice(start, end - start)
                        yield episode, first, piece["timestamp"].to_numpy().astype(np.float64), piece[column]


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Where equal values follow each other: (start, end) each."""
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.empty(0, int)
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(values)], strict=True))


def _add_subtasks(language: Language, episode: int, starts: np.ndarray, texts: list[str | None]) -> None:
    before = language.subtasks.get(episode, (np.empty(0, np.int64), []))
    language.subtasks[episode] = np.concatenate([before[0], starts]), before[1] + texts


def _persistent_subtasks(rows: list[dict] | None, first: int, times: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
    """The sub-tasks that are active on a piece of an episode, by the rows where they begin.

    Active is the latest row of style `subtask` whose time is not after the frame's (LeRobot's rule).
    """
    rows = [row for row in rows or [] if row["style"] == "subtask"]
    rows.sort(key=lambda row: row["timestamp"])
    begins = np.array([row["timestamp"] for row in rows], np.float64)
    active = np.searchsorted(begins, times + _SAME_TIME, side="right") - 1  # (frames,) -1: none yet
    starts = [start for start, _ in _runs(active)]
    texts = [(rows[active[start]]["content"] or None) if active[start] >= 0 else None for start in starts]
    return first + np.array(starts, np.int64), texts


def _column_subtasks(
    name: str, key: str, values: pa.Array, first: int, table: dict[int, str] | None
) -> tuple[np.ndarray, list[str | None]]:
    """The sub-tasks of a piece of an episode from a column of strings, or of numbers and their table."""
    if pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type) or pa.types.is_large_list(values.type):
        values = values.flatten()  # one number in a list
    encoded = values.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy()
    words = encoded.dictionary.to_pylist()
    starts = [start for start, _ in _runs(codes)]
    found = [words[codes[start]] if codes[start] >= 0 else None for start in starts]
    if table is not None:
        # A number below 0 says that there is none.
        if unknown := sorted({number for number in found if number is not None and number >= 0} - table.keys()):
            raise ValueError(f"{name}: {key!r} has the numbers {unknown[:20]}, which its table in meta/ does not know.")
        found = [table.get(number) for number in found]
    return first + np.array(starts, np.int64), [text or None for text in found]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _text_table(name: str, root: Path, key: str, kind: pa.DataType) -> dict[int, str]:
    """Number → words, from the table that belongs to an index column, such as `meta/subtasks.parquet`."""
    value = kind.value_type if pa.types.is_nested(kind) and not pa.types.is_struct(kind) else kind
    if not pa.types.is_integer(value):
        raise ValueError(f"{name}: {key!r} is of type {kind}; sub-tasks are strings, or numbers with a table in meta/.")
    stem = key.rsplit(".", 1)[-1]
    for ending in _INDEX_ENDINGS:
        stem = stem.removesuffix(ending)
    # GR00T's columns annotation.* are numbers of the table of tasks.
    stems = ["tasks"] if key.startswith("annotation.") else [f"{stem}s", stem]
    files = [root / "meta" / f"{one}.{ending}" for one in stems for ending in ("parquet", "jsonl")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        looked = ", ".join(str(file.relative_to(root)) for file in files)
        raise ValueError(f"{name}: {key!r} has numbers, and there is no table of them: none of {looked}.")
    if found.suffix == ".parquet":
        with open_parquet(found) as file:
            rows = file.read().to_pylist()
    else:
        rows = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines() if line.strip()]
    pairs = [
        ([v for v in row.values() if type(v) is int], [v for v in row.values() if isinstance(v, str)]) for row in rows
    ]
    if not all(len(numbers) == 1 and len(texts) == 1 for numbers, texts in pairs):
        raise ValueError(f"{found} must have a number and its words in every row.")
    return {numbers[0]: texts[0] for numbers, texts in pairs}


def _texts(rows: list[dict] | None, style: str) -> list[str]:
    return [row["content"] for row in rows or [] if row["style"] == style and row["content"]]


def _questions(values: pa.Array, first: int) -> Iterator[tuple[int, str | None, str, str]]:
    """Row, camera, question and answer of every pair of `vqa` rows, user and assistant, about a camera."""
    for offset in np.flatnonzero(values.value_lengths().fill_null(0).to_numpy()).tolist():
        rows = [row for row in values[offset].as_py() if row["style"] == "vqa" and row["content"]]
        for camera in dict.fromkeys(row["camera"] for row in rows):
            said = {
                role: [row["content"] for row in rows if row["camera"] == camera and row["role"] == role]
                for role in ("user", "assistant")
            }
            # One without the other is no example.
            for question, answer in zip(said["user"], said["assistant"], strict=False):
                yield first + offset, camera, question, answer


# ------------------------------------------------------------------------------------------------------------ writing
def persistent_features() -> datasets.List:
    """The type of `language_persistent` as LeRobot has it."""
    text = datasets.Value("string")
    row = {"role": text, "content": text, "style": text, "timestamp": datasets.Value("float32"), "camera": text}
    return datasets.List({**row, "tool_calls": datasets.List(datasets.Json())})


def persistent_column(subtasks: Sequence[str | None], times: np.ndarray, kind: pa.ListType) -> pa.Array:
    """The column `language_persistent` of an episode, from the sub-tasks of its frames (T,) at their times (T,)."""
    starts = [i for i, text in enumerate(subtasks) if i == 0 or text != subtasks[i - 1]]
    rows = [
        {"role": "assistant", "content": subtasks[i], "style": "subtask", "timestamp": float(times[i])}
        for i in starts
        if i or subtasks[i] is not None
    ]
    # The calls, of which there are none, have an extension type that pyarrow fills by a cast alone.
    fields = {field.name: field.type for field in kind.value_type} | {"tool_calls": pa.list_(pa.string())}
    return pa.array([rows] * len(subtasks), pa.list_(pa.struct(fields.items()))).cast(kind)


__all__ = [
    "EVENTS_COLUMN",
    "PERSISTENT_COLUMN",
    "PERSISTENT_FEATURE",
    "Language",
    "persistent_column",
    "persistent_features",
    "read_language",
]

"""What is said about the frames of a LeRobot dataset beside the task: sub-tasks, other wordings, questions.

LeRobot has two columns since mid-2026. `language_persistent` is the same list of rows on every frame of an episode,
each with the time from which it holds; `language_events` has rows on the frames where something was said. A row is
{role, content, style, timestamp (persistent only), camera, tool_calls}. Older and hand-made datasets have a column of
strings, or of numbers with a table in `meta/`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from packaging.version import Version

from ..example_order import fold_seed
from .messages import some
from .metadata import open_parquet, read_json_lines, read_table

PERSISTENT_COLUMN, EVENTS_COLUMN = "language_persistent", "language_events"
PERSISTENT_FEATURE = {"dtype": "language", "shape": [1], "names": None}  # in info.json
_SAME_TIME = 1e-4  # seconds: times are float32, and may have been computed in two ways
_BATCH_ROWS = 1024
_FIELDS = {"role", "content", "style"}  # of a row, all words; the camera came later
_INDEX_ENDINGS = ("_index", "_id")


class FrameQuestion(NamedTuple):
    """A question about a frame of a camera (or of none in particular), and its answer."""

    selected: int
    frame: int
    camera: str | None
    question: str
    answer: str


@dataclass
class Language:
    """What is said about the selected episodes, each by its place among them.

    Attributes:
        subtasks: episode → the frames where another sub-task begins, and these sub-tasks (None: there is none).
        wordings: episode → other wordings of its task.
        questions: about frames.
        notes: what was found, a sentence each.
    """

    subtasks: dict[int, tuple[np.ndarray, list[str | None]]] = field(default_factory=dict)
    wordings: dict[int, list[str]] = field(default_factory=dict)
    questions: list[FrameQuestion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def subtask(self, selected: int, frame: int) -> str | None:
        """The sub-task at a frame: the latest one that has begun."""
        starts, texts = self.subtasks.get(selected, (np.empty(0), []))
        number = int(np.searchsorted(starts, frame, side="right")) - 1
        return texts[number] if number >= 0 else None

    def wording(self, task: str, selected: int, frame: int, episode: int) -> str:
        """The task or one of its other wordings: drawn by the numbers of episode and frame, so always the same."""
        options = list(dict.fromkeys([task, *self.wordings.get(selected, [])]))
        return options[fold_seed(episode, frame) % len(options)] if len(options) > 1 else task

    def facts(self) -> list:
        """All of it that examples show, for a digest; empty where nothing is said."""
        subtasks = [(selected, starts.tolist(), texts) for selected, (starts, texts) in sorted(self.subtasks.items())]
        return [facts for facts in (subtasks, sorted(self.wordings.items())) if facts]


def read_language(
    root: Path,
    paths: Sequence[Path],
    columns: Mapping[str, list[pa.DataType]],
    first_rows: np.ndarray,
    lengths: np.ndarray,
    times_of: Callable[[int], np.ndarray],
    subtask_key: str | None,
) -> Language:
    """Read what is said about episodes.

    Args:
        root: the dataset's folder.
        paths: its data files, in order.
        columns: name of a column that they have → its types.
        first_rows, lengths: (E,) which rows of all files the selected episodes have.
        times_of: the times of an episode's frames, by its place in the selection, (frames,) seconds.
        subtask_key: the column with the sub-tasks, or None.

    Raises:
        ValueError: there is no such column, it is of another kind, its table is missing, or it names none.
    """
    language = Language()
    # A column or a list in which a file has nothing is of no type there.
    columns = {name: [kind for kind in types if not _is_empty(kind)] for name, types in columns.items()}
    columns = {name: types for name, types in columns.items() if types}
    if subtask_key is not None and subtask_key not in columns:
        raise ValueError(
            f"there is no column {subtask_key!r} with sub-tasks, only {', '.join(columns)}. Choose another subtask_key."
        )
    if subtask_key == EVENTS_COLUMN:
        raise ValueError(
            f"sub-tasks are what holds for a while: they are in {PERSISTENT_COLUMN!r}, not in {EVENTS_COLUMN!r}."
        )
    fields = {PERSISTENT_COLUMN: {*_FIELDS, "timestamp"}, EVENTS_COLUMN: _FIELDS}
    for name, needed in fields.items():
        if name not in columns:
            continue
        if not all(_has_fields(kind, needed) for kind in columns[name]):
            if name == subtask_key:
                raise ValueError(f"the rows of {name!r} need {sorted(needed)}, as LeRobot has them: {columns[name]}.")
            language.notes.append(f"{name} has not the rows that LeRobot has, and is not read.")
        elif name == PERSISTENT_COLUMN:
            # The rows should be the same on every frame: the first one is enough, and the last one shows if they are.
            rows, last_rows = {}, {}
            for selected, first, values in _pieces(paths, name, first_rows, lengths):
                if first == 0:
                    rows[selected] = _rows_of(values[0])
                last_rows[selected] = _rows_of(values[-1])
            _add_persistent(language, rows, last_rows, times_of, subtask_key == PERSISTENT_COLUMN)
        else:
            for selected, first, values in _pieces(paths, name, first_rows, lengths):
                language.questions += [FrameQuestion(selected, *rest) for rest in _questions(values, first)]
    if language.questions:
        language.notes.append(
            f"{EVENTS_COLUMN} has {len(language.questions)} questions about frames: question_share mixes them in."
        )
    if subtask_key is None:
        return language
    if subtask_key != PERSISTENT_COLUMN:
        language.subtasks = _subtasks_of_column(root, paths, subtask_key, columns[subtask_key], first_rows, lengths)
    different = {text for _, texts in language.subtasks.values() for text in texts} - {None}
    if not different:
        raise ValueError(
            f"{subtask_key!r} names no sub-task in the selected episodes. Leave out subtask_key, or choose the column "
            "that has them."
        )
    language.notes.append(f"{subtask_key} has {len(different)} different sub-tasks: they are taught as responses.")
    return language


def _add_persistent(
    language: Language,
    rows_of: dict[int, list[dict]],
    last_rows_of: dict[int, list[dict]],
    times_of: Callable[[int], np.ndarray],
    is_asked: bool,
) -> None:
    """Wordings and, if they are asked for, sub-tasks from the rows of each episode, of its first and last frame."""
    has_subtasks = False
    for selected, rows in rows_of.items():
        if wordings := [row["content"] for row in rows if row["style"] == "task_aug" and row["content"]]:
            language.wordings[selected] = wordings
        subtasks, last_subtasks = (
            [row for row in said if row["style"] == "subtask"] for said in (rows, last_rows_of[selected])
        )
        has_subtasks = has_subtasks or bool(subtasks or last_subtasks)
        if is_asked:
            try:
                language.subtasks[selected] = _by_time(subtasks, times_of(selected))
                if last_subtasks != subtasks:
                    raise ValueError("they are others on its last frame. Every frame needs all rows of its episode.")
            except ValueError as error:
                frames = (
                    f"the episode whose sub-tasks are {some([row['content'] for row in subtasks or last_subtasks])}"
                )
                raise ValueError(f"{PERSISTENT_COLUMN!r}, in {frames}: {error}") from error
    if has_subtasks and not is_asked:
        language.notes.append(
            f"{PERSISTENT_COLUMN} has sub-tasks, which are not used: subtask_key={PERSISTENT_COLUMN} teaches them."
        )
    if language.wordings:
        language.notes.append(
            f"{PERSISTENT_COLUMN} has other wordings of the tasks of {len(language.wordings)} episodes: each frame has "
            "one of them, drawn at random."
        )


def _subtasks_of_column(
    root: Path,
    paths: Sequence[Path],
    key: str,
    types: list[pa.DataType],
    first_rows: np.ndarray,
    lengths: np.ndarray,
) -> dict[int, tuple[np.ndarray, list[str | None]]]:
    """`Language.subtasks` from a column of strings, or of numbers with a table."""
    if len(types) > 1:
        raise ValueError(f"{key!r} is not of the same type in all data files: {types}.")
    table = None if _is_text(types[0]) else _text_table(root, key, types[0])
    subtasks: dict[int, tuple[np.ndarray, list[str | None]]] = {}
    for selected, first, values in _pieces(paths, key, first_rows, lengths):
        starts, texts = _column_subtasks(key, values, first, table)
        starts_before, texts_before = subtasks.get(selected, (np.empty(0, np.int64), []))
        subtasks[selected] = np.concatenate([starts_before, starts]), texts_before + texts
    return subtasks


def _is_empty(kind: pa.DataType) -> bool:
    return pa.types.is_null(kind) or (_is_list(kind) and pa.types.is_null(kind.value_type))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _has_fields(kind: pa.DataType, needed: set[str]) -> bool:
    """Whether a column is a list of rows that have these fields: a time is a number, all else words, or nothing."""
    if not (_is_list(kind) and pa.types.is_struct(kind.value_type)):
        return False
    types = {field.name: field.type for field in kind.value_type}
    return needed <= types.keys() and all(
        (_is_number(types[name]) if name == "timestamp" else _is_text(types[name])) or pa.types.is_null(types[name])
        for name in needed
    )


def _rows_of(cell: pa.Scalar) -> list[dict]:
    """What is said on a frame; an empty row says nothing."""
    return [row for row in cell.as_py() or [] if row is not None]


def _pieces(
    paths: Sequence[Path], column: str, first_rows: np.ndarray, lengths: np.ndarray
) -> Iterator[tuple[int, int, pa.Array]]:
    """A column of some episodes, piece by piece: which of them, the piece's first frame, and the values."""
    order = np.argsort(first_rows)
    starts, ends = first_rows[order], (first_rows + lengths)[order]

    def within(low: int, high: int) -> range:
        return range(int(np.searchsorted(ends, low, side="right")), int(np.searchsorted(starts, high)))

    row = 0  # among those of all files
    for path in paths:
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if not within(row, row + size):
                    row += size
                    continue
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[column]):
                    for i in within(row, row + len(batch)):
                        low, high = max(int(starts[i]), row), min(int(ends[i]), row + len(batch))
                        yield int(order[i]), low - int(starts[i]), batch[column].slice(low - row, high - low)
                    row += len(batch)


def _runs(values: np.ndarray) -> np.ndarray:
    """Where another value begins."""
    return np.flatnonzero(np.r_[True, values[1:] != values[:-1]])


def _by_time(rows: list[dict], times: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
    """The sub-tasks of an episode from rows with times, by the frames where they begin.

    Active is the latest row whose time is not after the frame's (LeRobot's rule).

    Raises:
        ValueError: a row, or a frame, has no time.
    """
    if any(row["timestamp"] is None or not np.isfinite(row["timestamp"]) for row in rows):
        raise ValueError("one has no time, and nobody can tell from when on it holds. Give it a timestamp.")
    if rows and not np.isfinite(times).all():
        raise ValueError("a frame has no time, and nobody can tell what holds there. Mend the column 'timestamp'.")
    rows = sorted(rows, key=lambda row: row["timestamp"])
    begins = np.array([row["timestamp"] for row in rows], np.float64)
    active = np.searchsorted(begins, times + _SAME_TIME, side="right") - 1  # (frames,) -1: none yet
    starts = _runs(active)
    return starts, [(rows[active[start]]["content"] or None) if active[start] >= 0 else None for start in starts]


def _column_subtasks(
    key: str, values: pa.Array, first: int, table: dict[int, str] | None
) -> tuple[np.ndarray, list[str | None]]:
    """The sub-tasks of a piece of an episode from a column of strings, or of numbers and their table."""
    if _is_list(values.type):
        values = _one_each(key, values)
    if pa.types.is_floating(values.type):
        values = _whole(key, values)
    encoded = values.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy()
    words = encoded.dictionary.to_pylist()
    starts = _runs(codes)
    found = [words[codes[start]] if codes[start] >= 0 else None for start in starts]
    if table is not None:
        # A number below 0 says that there is none.
        if unknown := sorted({number for number in found if number is not None and number >= 0} - table.keys()):
            raise ValueError(f"{key!r} has the numbers {unknown[:20]}, which its table in meta/ does not know.")
        found = [table.get(number) for number in found]
    return first + starts, [text or None for text in found]


def _one_each(key: str, values: pa.Array) -> pa.Array:
    """The number in the list of each row; null where there is none."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    if (lengths > 1).any():
        raise ValueError(
            f"{key!r} has {lengths.max()} numbers in a row; a frame has one sub-task. Choose another column."
        )
    # `flatten` leaves out rows without a number: those after it would move up.
    places = pa.array(np.cumsum(lengths) - 1, pa.int64(), mask=lengths == 0)
    return values.flatten().take(places)


def _whole(key: str, values: pa.Array) -> pa.Array:
    """Numbers that a program made floats of, as pandas does where some are missing (NaN)."""
    try:
        return pc.if_else(pc.is_nan(values), None, values).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{key!r} has numbers that are not whole, and so not those of a table.") from error


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _text_table(root: Path, key: str, kind: pa.DataType) -> dict[int, str]:
    """Number → words, from the table that belongs to an index column, such as `meta/subtasks.parquet`."""
    value = kind.value_type if _is_list(kind) else kind
    if not _is_number(value):
        raise ValueError(f"{key!r} is of type {kind}; sub-tasks are strings, or numbers with a table in meta/.")
    stem = key.rsplit(".", 1)[-1]
    for ending in _INDEX_ENDINGS:
        stem = stem.removesuffix(ending)
    # GR00T's columns annotation.* are numbers of the table of tasks.
    stems = ["tasks"] if key.startswith("annotation.") else [f"{stem}s", stem]
    files = [root / "meta" / f"{one}.{ending}" for one in stems for ending in ("parquet", "jsonl")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        looked = ", ".join(str(file.relative_to(root)) for file in files)
        raise ValueError(f"{key!r} has numbers, and there is no table of them: none of {looked}.")
    if found.suffix == ".parquet":
        with open_parquet(found) as file:
            rows = read_table(found, file).to_pylist()
    else:
        rows = read_json_lines(found, ())
    pairs = [
        ([v for v in row.values() if type(v) is int], [v for v in row.values() if isinstance(v, str)]) for row in rows
    ]
    if not all(len(numbers) == 1 and len(texts) == 1 for numbers, texts in pairs):
        raise ValueError(f"{found} must have a number and its words in every row.")
    words: dict[int, str] = {}
    for (number,), (text,) in pairs:
        if words.setdefault(number, text) != text:
            raise ValueError(
                f"{found} gives the number {number} two meanings, {words[number][:200]!r} and {text[:200]!r}: nobody "
                "can tell which is meant. Correct it."
            )
    return words


def _questions(values: pa.Array, first: int) -> Iterator[tuple[int, str | None, str, str]]:
    """Frame, camera, question and answer of every pair of `vqa` rows, user and assistant, about a camera."""
    for offset in np.flatnonzero(values.value_lengths().fill_null(0).to_numpy()).tolist():
        rows = [row for row in _rows_of(values[offset]) if row["style"] == "vqa" and row["content"]]
        for camera in dict.fromkeys(row.get("camera") for row in rows):
            said = {
                role: [row["content"] for row in rows if row.get("camera") == camera and row["role"] == role]
                for role in ("user", "assistant")
            }
            # One without the other is no example.
            for question, answer in zip(said["user"], said["assistant"], strict=False):
                yield first + offset, camera, question, answer


# ------------------------------------------------------------------------------------------------------------ writing
def persistent_features() -> datasets.List:
    """The type of `language_persistent` as LeRobot has it: with JSON where `datasets` knows it, since 4.7."""
    text = datasets.Value("string")
    row = {"role": text, "content": text, "style": text, "timestamp": datasets.Value("float32"), "camera": text}
    call = datasets.Json() if Version(datasets.__version__) >= Version("4.7") else text
    return datasets.List({**row, "tool_calls": datasets.List(call)})


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
    "FrameQuestion",
    "Language",
    "persistent_column",
    "persistent_features",
    "read_language",
]

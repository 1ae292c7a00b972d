"""The rows of a dataset: one memory-mapped table of all data files, read in blocks so that no frame costs memory."""

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetGenerationError

from .messages import some
from .metadata import open_parquet
from .vector_keys import VectorPart

BLOCK_ROWS = 1 << 16
INDEX_COLUMNS = {"timestamp": "float64", "frame_index": "int64", "episode_index": "int64", "task_index": "int64"}
ROW_NUMBER = "index"  # of a row among all of the dataset; only read where nothing else says which episode it is of


@dataclass(frozen=True)
class DataFiles:
    """What the parquet files of a dataset hold.

    Attributes:
        paths: the files, in order.
        num_rows: of each.
        types: column → its type, or the types that it has in several files; of columns that all files have.
        lacking: column that some files have → the files without it.
    """

    paths: list[Path]
    num_rows: list[int]
    types: dict[str, list[pa.DataType]]
    lacking: dict[str, list[Path]]

    @classmethod
    def look_at(cls, paths: Sequence[Path]) -> "DataFiles":
        """Read the footers of the files."""
        num_rows, types, seen = [], {}, None
        holders: dict[tuple[str, ...], list[Path]] = {}  # names of columns → the files that have these
        for number, path in enumerate(paths):
            with open_parquet(path) as file:
                num_rows.append(file.metadata.num_rows)
                schema = file.schema_arrow
            holders.setdefault(tuple(schema.names), []).append(path)
            if number and schema.equals(seen):
                continue
            seen = schema
            if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
                raise ValueError(f"{path} has the column {twice[0]!r} more than once. Export the dataset again.")
            there = {field.name: field.type for field in schema}
            types = {name: types.get(name, []) for name in (types if number else there) if name in there}
            for name, kinds in types.items():
                if there[name] not in kinds:
                    kinds.append(there[name])
        lacking = {
            name: [path for names, files in holders.items() if name not in names for path in files]
            for name in dict.fromkeys(name for names in holders for name in names)
            if name not in types
        }
        return cls(list(paths), num_rows, types, lacking)


def load_table(
    files: DataFiles, index_columns: Sequence[str], vector_columns: Sequence[str], image_columns: Sequence[str]
) -> datasets.Dataset:
    """All rows, of these columns; slices of the table are `pyarrow.Table`s.

    Numbers are kept as they are, half precision as float32: large ones are not exact in that (`vectors`), which
    `FrameChecks` says.

    Raises:
        ValueError: a file is damaged, its columns are not what others' are, or a row has not one number where it
            should have one.
    """
    features = datasets.Features()
    for name in index_columns:
        nested = pa.types.is_nested(files.types[name][0])
        features[name] = _feature(files.types[name]) if nested else datasets.Value(INDEX_COLUMNS.get(name, "int64"))
    for name in vector_columns:
        features[name] = _without_half(_feature(files.types[name]))
    for name in image_columns:
        is_path = _is_text(files.types[name][0])
        features[name] = datasets.Value("string") if is_path else datasets.Image(decode=False)
    paths: list = [glob.escape(str(path)) for path in files.paths]  # `datasets` takes paths for patterns
    try:
        table = datasets.Dataset.from_parquet(paths, columns=list(features), features=features)
    except (DatasetGenerationError, FileNotFoundError) as error:
        for path in files.paths:  # the file that is missing or damaged says so itself
            with open_parquet(path) as file:
                file.read(columns=list(features))
        for name in index_columns:
            if name != "timestamp" and any(map(pa.types.is_floating, files.types[name])):
                raise ValueError(
                    f"the column {name!r} counts, and holds numbers that are not whole. Export the dataset again."
                ) from error
            if not all(map(is_vector, files.types[name])):
                raise ValueError(
                    f"the column {name!r} holds {some(files.types[name])}; expected are numbers"
                    f"{', in seconds' if name == 'timestamp' else ''}. Export the dataset again."
                ) from error
        raise ValueError(f"the data files do not have the same types of columns. ({error.__cause__})") from error
    table = table.with_format("arrow")
    for name in index_columns:
        if pa.types.is_nested(files.types[name][0]):
            _check_one_each(table, name)
    return table


def _check_one_each(table: datasets.Dataset, name: str) -> None:
    """Refuse lists of no number, or of several, where each row has one: those after them would move."""
    for start in range(0, len(table), BLOCK_ROWS):
        column = table[start : start + BLOCK_ROWS][name]
        wrong = check_lengths(column)
        if wrong is None and matrix(column).shape[1] != 1:
            wrong = 0
        if wrong is not None:
            raise ValueError(
                f"the column {name!r} holds lists of numbers, and not one number in row {start + wrong} of all. Export "
                "the dataset again."
            )


def _feature(types: Sequence[pa.DataType]) -> datasets.features.features.FeatureType:
    """The type of a column as `datasets` has it; of one whose type differs among files, the widest."""
    if len(types) == 1:
        return datasets.Features.from_arrow_schema(pa.schema({"column": types[0]}))["column"]
    return datasets.List(datasets.Value("float32")) if pa.types.is_nested(types[0]) else datasets.Value("float32")


def _without_half(feature):
    if isinstance(feature, datasets.List):
        return datasets.List(_without_half(feature.feature), length=feature.length)
    if isinstance(feature, datasets.LargeList):
        return datasets.LargeList(_without_half(feature.feature))
    return datasets.Value("float32") if feature.dtype == "float16" else feature


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column of this type can be dimensions: numbers or truth values, or lists of them."""
    while _is_list(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def is_picture_file(kind: pa.DataType) -> bool:
    """Whether a column of this type is one of picture files, as bytes and path."""
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def is_picture(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold pictures: files as bytes, perhaps with their path, or paths alone."""
    return is_picture_file(kind) or _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def episode_runs(table: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(R,) the `episode_index` of each run of rows that have the same, and (R,) its first row."""
    return _runs(table, "episode_index", lambda column: column)


def numbered_runs(table: datasets.Dataset, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of rows whose numbers in the dataset, `index`, are of one episode.

    Args:
        starts: (E,) the number of each episode's first row, in growing order.

    Returns:
        (R,) which of the E episodes each run is of, -1 for numbers before the first; (R,) its first row; and (R,) the
        number of that row.
    """
    episodes, rows = _runs(table, ROW_NUMBER, lambda column: np.searchsorted(starts, column, side="right") - 1)
    return episodes, rows, np.array([scalars(table[row : row + 1][ROW_NUMBER])[0] for row in rows.tolist()], np.int64)


def _runs(
    table: datasets.Dataset, name: str, episode_of: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    indices, first_rows, last = [], [], None
    for start in range(0, len(table), BLOCK_ROWS):
        column = episode_of(scalars(table[start : start + BLOCK_ROWS][name]))
        begins = np.r_[last is None or column[0] != last, column[1:] != column[:-1]]
        indices.append(column[begins])
        first_rows.append(start + np.flatnonzero(begins))
        last = column[-1]
    if not indices:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(indices), np.concatenate(first_rows)


def blocks(
    table: datasets.Dataset, columns: Sequence[str], first_rows: np.ndarray, lengths: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, pa.Table]]:
    """Columns of some episodes, in the order of the table.

    Args:
        first_rows, lengths: (E,) which rows an episode has; episodes do not overlap.

    Yields:
        (n,) numbers of rows; (n,) which of the E episodes each is of; and the rows themselves. n is at most
        `BLOCK_ROWS`.
    """
    order = np.argsort(first_rows)
    starts = first_rows[order]
    ends = starts + lengths[order]
    for block_start in range(0, len(table), BLOCK_ROWS):
        block_end = min(block_start + BLOCK_ROWS, len(table))
        episodes = slice(np.searchsorted(ends, block_start, side="right"), np.searchsorted(starts, block_end))
        low, high = np.maximum(starts[episodes], block_start), np.minimum(ends[episodes], block_end)
        sizes = high - low
        if not sizes.sum():
            continue
        rows = np.arange(sizes.sum()) + np.repeat(low - np.cumsum(sizes) + sizes, sizes)
        slab = table[block_start:block_end].select(columns)
        yield rows, np.repeat(order[episodes], sizes), slab.take(rows - block_start) if len(rows) < len(slab) else slab


def vectors(rows: pa.Table, parts: Sequence[VectorPart]) -> np.ndarray:
    """(n, D) float32: the parts of each row after each other. A column that is one part may come without a copy."""
    arrays = [matrix(rows[part.column])[:, part.start : part.end] for part in parts]
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
    return whole.astype(np.float32, copy=False)


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of vectors, or of numbers, as (rows, D) in its own type; without a copy where Arrow allows it.

    Vectors must be of one length (`check_lengths`); lists of lists are flattened. What is empty is NaN.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    count = len(array)
    while pa.types.is_nested(array.type):
        array = array.flatten()
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    return array.to_numpy(zero_copy_only=False).reshape(count, -1)


def scalars(column: pa.ChunkedArray) -> np.ndarray:
    """A column with one number a row, perhaps in a list, as (rows,)."""
    return matrix(column).reshape(len(column))


def first_without_picture(column: pa.ChunkedArray) -> int | None:
    """The first row that has neither a picture nor the path of one; None where there is none. Nothing is copied."""
    passed = 0
    for chunk in column.chunks:
        if pa.types.is_struct(chunk.type):
            there = pc.or_(pc.is_valid(pc.struct_field(chunk, "bytes")), _is_path(pc.struct_field(chunk, "path")))
        else:
            there = _is_path(chunk) if pa.types.is_string(chunk.type) else pc.is_valid(chunk)
        if not pc.all(there).as_py() and len(there):
            return passed + there.to_pylist().index(False)
        passed += len(chunk)
    return None


def _is_path(paths: pa.Array) -> pa.Array:
    """Whether there is one; an empty one leads nowhere."""
    return pc.fill_null(pc.not_equal(paths, ""), False)


def picture_paths(column: pa.ChunkedArray) -> Iterator[str]:
    """The paths of pictures that are not in the column themselves. No picture is copied."""
    for chunk in column.chunks:
        if pa.types.is_struct(chunk.type):
            yield from pc.struct_field(chunk, "path").filter(pc.is_null(pc.struct_field(chunk, "bytes"))).to_pylist()
        elif pa.types.is_string(chunk.type):
            yield from chunk.to_pylist()


def check_lengths(column: pa.ChunkedArray) -> int | None:
    """The first row whose vector is empty or of another length than the first one's; None where there is none."""
    array = column.combine_chunks()
    rows = np.arange(len(array))  # of the values, which are lists themselves at first
    while pa.types.is_nested(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
        if (wrong := (lengths != lengths[0]) | (lengths < 1)).any():
            return int(rows[np.argmax(wrong)])
        rows, array = np.repeat(rows, lengths), array.flatten()
    return None


__all__ = [
    "BLOCK_ROWS",
    "INDEX_COLUMNS",
    "ROW_NUMBER",
    "DataFiles",
    "blocks",
    "check_lengths",
    "episode_runs",
    "first_without_picture",
    "is_picture",
    "is_picture_file",
    "is_vector",
    "load_table",
    "matrix",
    "numbered_runs",
    "picture_paths",
    "scalars",
    "vectors",
]

"""Plain text as the Hub, JSON and Parquet files have it: rows with a column of texts."""

from functools import partial
from pathlib import Path

import datasets

from .json_rows import json_files, load_json, parsed
from .saved_rows import is_saved, load_named, load_saved

TEXT_COLUMN = "text"


def load_texts(
    name_or_path: str | Path, column: str | None = None, split: str = "train", config: str | None = None
) -> datasets.Dataset:
    """Read texts into a dataset of one column, `text`.

    Args:
        name_or_path: what `datasets.load_dataset` takes; a folder written by `save_to_disk`; a JSON file (a list, or
            lines), a Parquet file, or a folder of JSON files, whose names are its splits.
        column: which column has the texts; by default `text`, or the only one that is of strings.
        split: of the dataset. A file, or a folder that `Dataset.save_to_disk` wrote, has only "train".
        config: of a dataset that has several.

    Raises:
        ValueError: no such split or column, several columns that it may be, a column that is not of strings, no rows,
            no such file, a damaged JSON file, another kind of file, or a `config` of a file.
    """
    path = Path(name_or_path)
    is_here = is_saved(path) or bool(json_files(path)) or path.is_file()
    if is_here and config is not None:
        raise ValueError(f"{path} has no configurations: leave out config={config!r}.")
    if is_saved(path):
        rows = load_saved(path, split)
    elif json_files(path):
        rows = load_json(path, split, partial(_json_texts, column=column))
    elif path.suffix == ".parquet" and path.is_file():
        rows = datasets.load_dataset("parquet", data_files=str(path), split=split)
    elif path.is_file():
        raise ValueError(f"{path} is neither JSON (.json, .jsonl) nor Parquet (.parquet).")
    else:
        rows = load_named(name_or_path, config, split)
    if not len(rows):
        raise ValueError(f"{name_or_path} has no rows.")
    strings = [name for name, kind in rows.features.items() if _is_string(kind)]
    column = _chosen(strings, column, f"{name_or_path} has the columns {', '.join(rows.column_names)}")
    rows = rows.select_columns(column)
    return rows if column == TEXT_COLUMN else rows.rename_column(column, TEXT_COLUMN)


def _json_texts(file: Path, column: str | None) -> datasets.Dataset:
    """Read the texts of a JSON file, whatever its rows have beside them."""
    rows = list(parsed(file))
    if wrong := [i for i, row in enumerate(rows) if not isinstance(row, dict)]:
        raise ValueError(
            f'{file}: row {wrong[0]} is {rows[wrong[0]]!r:.80}; expected is a map such as {{"text": ...}}.'
        )
    first = rows[0] if rows else {}
    strings = [name for name, value in first.items() if isinstance(value, str)]
    column = _chosen(strings, column, f"{file} has in its first row {', '.join(first) or 'nothing'}")
    if wrong := [i for i, row in enumerate(rows) if not isinstance(row.get(column), str)]:
        raise ValueError(f"{file}: row {wrong[0]} has no text as {column!r}, but {rows[wrong[0]].get(column)!r:.80}.")
    return datasets.Dataset.from_dict({column: [row[column] for row in rows]})


def _chosen(strings: list[str], column: str | None, there: str) -> str:
    """The column of texts: the one asked for, `text`, or the only one of strings."""
    if column is None:
        column = TEXT_COLUMN if TEXT_COLUMN in strings else strings[0] if len(strings) == 1 else None
        if column is None:
            raise ValueError(f"{there}; say which column has the texts (of strings: {', '.join(strings) or 'none'}).")
    if column not in strings:
        raise ValueError(f"{there}, and no column {column!r} of texts (of strings: {', '.join(strings) or 'none'}).")
    return column


def _is_string(kind) -> bool:
    return isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string")


__all__ = ["TEXT_COLUMN", "load_texts"]

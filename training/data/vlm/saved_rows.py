"""Rows as `datasets` has them: folders that its `save_to_disk` wrote, and what its `load_dataset` finds."""

import json
from pathlib import Path
from typing import Any

import datasets

from .json_rows import JSON_SUFFIXES

_FILES = (*JSON_SUFFIXES, ".parquet")


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def saved_splits(folder: Path) -> list[str]:
    """The splits of such a folder; empty if it has none, or is none."""
    file = folder / "dataset_dict.json"
    return json.loads(file.read_text(encoding="utf-8"))["splits"] if file.is_file() else []


def load_saved(folder: Path, split: str) -> datasets.Dataset:
    """Read a split of such a folder; of one that has no splits, all of it.

    Raises:
        ValueError: there is no such split.
    """
    rows = datasets.load_from_disk(folder)
    if not isinstance(rows, datasets.DatasetDict):
        return rows
    if split not in rows:
        raise ValueError(f"{folder} has no split {split!r}, but {', '.join(rows)}.")
    return rows[split]


def load_named(name: str | Path, config: str | None, split: str, **options) -> Any:
    """`datasets.load_dataset`, in words for people where there is no such dataset.

    Args:
        name: of a dataset on the Hub, or a folder with one.

    Raises:
        ValueError: there is none, or the Hub cannot be reached.
    """
    if Path(name).suffix in _FILES and not Path(name).exists():
        raise ValueError(f"There is no file {name}.")
    try:
        return datasets.load_dataset(str(name), config, split=split, **options)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(f"{name} is no file or folder here, nor found on the Hub: {error}") from error

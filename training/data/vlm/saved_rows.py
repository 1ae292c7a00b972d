"""Folders that `save_to_disk` of `datasets` wrote."""

from pathlib import Path

import datasets


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


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

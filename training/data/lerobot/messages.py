"""Parts of messages about a dataset."""

from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path


def some(values: Collection) -> str:
    """A few of many values."""
    return f"{', '.join(map(str, islice(values, 20)))}{', ...' if len(values) > 20 else ''}"


def refuse_missing(name: str, paths: Sequence[Path | str], what: str) -> None:
    """Refuse a dataset of which files are missing; none is fine.

    Raises:
        FileNotFoundError: some are; they are named.
    """
    if paths:
        raise FileNotFoundError(
            f"{name}: {len(paths)} {what}{'' if len(paths) == 1 else ', each'} missing: {some(paths)}. "
            "Download or copy the dataset again, or leave the episodes or the camera out."
        )


__all__ = ["refuse_missing", "some"]

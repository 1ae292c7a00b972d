"""Pictures that rows name by their path: found in one folder, and nowhere else."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ....processing.image_input import as_rgb

_SHOWN = 5  # missing pictures in a message


def open_picture(name: str, folder: Path, row: int) -> Image.Image:
    """Open a picture as RGB, given by its path in the folder, or by its content (`data:image/...`).

    Raises:
        ValueError: the path leaves the folder, or there is no picture that can be read; the message names the row.
    """
    try:
        return as_rgb(name if _is_content(name) else picture_path(name, folder))
    except ValueError as error:
        raise ValueError(f"Row {row}: {error}") from error


def picture_path(name: str, folder: Path) -> Path:
    """Find where a picture lies. Links within the folder may lead elsewhere: its owner made them.

    Raises:
        ValueError: the path leaves the folder.
    """
    path, inside = (Path(os.path.abspath(place)) for place in (folder / name, folder))
    if "://" in name or not path.is_relative_to(inside):
        raise ValueError(
            f"the picture {name[:200]!r} is not in {folder}. Give the folder that the paths are relative to "
            "(media_dir, --vlm_media_dir)."
        )
    return path


def check_pictures(rows: Iterable[str | Sequence[str] | None], folder: Path) -> None:
    """Check that all pictures are there, before anything is trained; none is opened.

    Args:
        rows: the paths of each row.

    Raises:
        ValueError: one is outside the folder, or some are missing; the message names the first ones.
    """
    missing = []
    for row, names in enumerate(rows):
        for name in [names] if isinstance(names, str) else names or ():
            if _is_content(name):
                continue
            try:
                is_there = os.path.isfile(picture_path(name, folder))
            except ValueError as error:
                raise ValueError(f"Row {row}: {error}") from error
            if not is_there:
                missing.append(f"{name[:200]} (row {row})")
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ValueError(
            f"{len(missing)} pictures are not in {folder}: {', '.join(missing[:_SHOWN])}{more}. If they are in another "
            "folder, give that one (media_dir, --vlm_media_dir)."
        )


def _is_content(name: str) -> bool:
    return name.startswith("data:image/")


__all__ = ["check_pictures", "open_picture", "picture_path"]

"""A picture from a data file: embedded there, or a file of the dataset's folder that is named there."""

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from ....processing.image_input import as_rgb


def read_image(stored: dict | str | None, root: Path) -> np.ndarray:
    """Read a picture as uint8 (height, width, 3) RGB.

    Args:
        stored: `{"bytes": ..., "path": ...}`, a path alone, or None.
        root: the dataset's folder. Paths are relative to it, or lead into it.

    Raises:
        ValueError: there is no picture, it lies outside the folder, or it cannot be decoded.
    """
    stored = {"path": stored} if isinstance(stored, str) else stored or {}
    content, path = stored.get("bytes"), stored.get("path")
    if content is None:
        if not path:
            raise ValueError("the data file holds no image here. Leave the camera or the episode out.")
        content = _inside(path, root).read_bytes()
    try:
        return np.array(as_rgb(content))
    except ValueError as error:
        raise ValueError(f"the stored image cannot be decoded: {error}") from error


class ImageFiles:
    """Which of the files that a dataset's data files name are there; each folder is listed once.

    Args:
        root: the dataset's folder.
    """

    def __init__(self, root: Path):
        self._root = root
        self._names = cache(lambda folder: {entry.name for entry in os.scandir(folder) if entry.is_file()})

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Those of the paths that lead to no file.

        Raises:
            ValueError: one leads out of the dataset's folder.
        """
        return [path for path in dict.fromkeys(paths) if not any(map(self._is_there, _places(path, self._root)))]

    def _is_there(self, place: str) -> bool:
        folder, name = os.path.split(place)
        return os.path.isdir(folder) and name in self._names(folder)


def _inside(path: str, root: Path) -> Path:
    """The file that a path names."""
    found = [place for place in _places(path, root) if os.path.isfile(place)]
    if not found:
        raise ValueError(f"the data file names the image {path[:200]!r}, which is not in the dataset's folder.")
    return Path(found[0])


def _places(path: str, root: Path) -> list[str]:
    """Where a path may lead. A stranger's dataset may name any: only those in its own folder are looked at.

    A link in the folder is followed: the Hub's cache is made of links that lead out of it.
    """
    folder = os.path.abspath(root)
    places = [os.path.abspath(os.path.join(folder, path)), os.path.abspath(path)]
    inside = [place for place in places if place.startswith(folder + os.sep)]
    if not inside:
        raise ValueError(
            f"the data file names an image outside of the dataset's folder, which is not read: {path[:200]!r}."
        )
    return inside


__all__ = ["ImageFiles", "read_image"]

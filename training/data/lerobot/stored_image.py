"""A picture from a data file: embedded there, or a file of the dataset's folder that is named there."""

import os
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


def _inside(path: str, root: Path) -> Path:
    """The file that a path names. A stranger's dataset may name any: only those in its own folder are read."""
    folder = os.path.abspath(root)  # not `realpath`: the Hub's cache is made of links that lead out of the folder
    places = [os.path.abspath(os.path.join(folder, path)), os.path.abspath(path)]
    inside = [place for place in places if place.startswith(folder + os.sep)]
    found = [place for place in inside if os.path.isfile(place)]
    if found:
        return Path(found[0])
    if inside:
        raise ValueError(f"the data file names the image {path[:200]!r}, which is not in the dataset's folder.")
    raise ValueError(
        f"the data file names an image outside of the dataset's folder, which is not read: {path[:200]!r}."
    )


__all__ = ["read_image"]

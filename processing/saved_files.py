"""Folders of saved processors and action tokenizers: found here or on the Hub, read, and written in one move."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download


def local_folder(folder_or_hub_id: str | os.PathLike, files: Sequence[str], **hub_kwargs) -> Path:
    """Return the folder itself, or a download of just `files` (patterns) from the Hub.

    Args:
        hub_kwargs: `revision`, `token`, ... of `snapshot_download`.

    Raises:
        FileNotFoundError: there is no such folder, and this cannot be the name of a Hub repository.
    """
    folder = Path(folder_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(folder_or_hub_id, os.PathLike) or folder.is_absolute() or len(folder.parts) > 2:
        raise FileNotFoundError(f"There is no folder {folder}, and this is no name of a Hub repository either.")
    return Path(snapshot_download(folder_or_hub_id, allow_patterns=list(files), **hub_kwargs))


def read_text(file: Path) -> str:
    """Read a text file.

    Raises:
        FileNotFoundError: the folder has no such file; the message lists what it has.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.parent} has no {file.name}. It has: {sorted(path.name for path in file.parent.iterdir())}."
        )
    return file.read_text(encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Read a map from a JSON file.

    Raises:
        FileNotFoundError: the folder has no such file.
        ValueError: the file is no JSON, or holds no map.
    """
    try:
        values = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a map, not a {type(values).__name__}.")
    return values


def write_files(folder: str | os.PathLike, contents: dict[str, str]) -> None:
    """Write all files aside, then move them into place: an interrupted save leaves no half-written file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        for name, text in contents.items():
            (Path(aside) / name).write_text(text + "\n", encoding="utf-8")
        for name in contents:
            os.replace(Path(aside) / name, folder / name)


__all__ = ["local_folder", "read_json", "read_text", "write_files"]

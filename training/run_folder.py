"""Folders that a command fills step by step, and goes on filling when started again: with the same arguments only."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from .sole_use import IN_USE, PATIENCE, sole_use

ARGUMENTS = "arguments.json"


def claim_folder(
    folder: Path, arguments: dict, marks: Iterable[str], option: str = "output_dir", patience: float = PATIENCE
) -> None:
    """Write down with which arguments a folder is filled; what is there must have been made with the same ones.

    Args:
        arguments: all that the results depend on, by option.
        marks: patterns of files of which one is there if the command has been at work in the folder.
        option: that named the folder.
        patience: seconds to wait for another process that has it.

    Raises:
        ValueError: it was filled with other arguments (each is named), or nothing says with which.
        FileExistsError: it holds other things.
        InUseError: another process still has it then.
    """
    if not folder.is_dir():
        check_is_free(folder, option=option)
    check_can_write(folder)
    file, now = folder / ARGUMENTS, json.loads(json.dumps(arguments))
    what_to_do = f"Give another --{option}; or remove the folder to start anew."
    with sole_use(folder, patience):  # of two at once one is the first
        if file.is_file():
            before = read_json(file, what_to_do)
            names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            if names:
                lines = "".join(f"\n  --{name}: was {before.get(name)}, is {now.get(name)}" for name in names)
                raise ValueError(f"{folder} holds the results of other arguments:{lines}\n{what_to_do}")
        elif found := next((path for mark in marks for path in folder.glob(mark)), None):
            raise ValueError(f"{found} is there, and nothing says with which arguments it was made. {what_to_do}")
        else:
            check_is_free(folder, option=option)
        write_json(file, now)


_LOGS = {".log", ".out", ".err", ".txt"}  # what is printed may be written beside the results


def check_is_free(folder: Path, marks: Iterable[str] = (), option: str = "output_dir") -> None:
    """Check that a folder to be filled is new or empty, or that the command has been at work in it.

    Args:
        marks: patterns of files of which one is there if it has.
        option: that named the folder.

    Raises:
        FileExistsError: it holds other things, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Give --{option} a new or an empty folder.")
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path for path in names if path.suffix not in _LOGS and path.name != IN_USE]
    if others and not any(path for mark in marks for path in folder.glob(mark)):
        raise FileExistsError(
            f"{folder} is not empty: it holds {others[0].name}, which is of something else. Give --{option} a new "
            "or an empty folder."
        )


def check_can_write(folder: str | Path) -> None:
    """Try, before any work is done, whether a folder for results can be filled: it is there, or can be made.

    Raises:
        OSError: it cannot; the message says where, and why.
    """
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        TemporaryDirectory(dir=there, prefix=".kivla_").cleanup()
    except OSError as error:
        raise OSError(
            f"Nothing can be written to {folder}: no folder can be made in {there} ({error.strerror}). Name another "
            "place."
        ) from error


def check_can_write_file(file: str | Path) -> None:
    """Try, before any work is done, whether a file for results can be written; a pipe or `/dev/stdout` is taken.

    Raises:
        OSError: it cannot; the message says where, and why.
    """
    file = Path(file)
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder. Name a file.")
    if file.is_file() or not file.exists():
        check_can_write(file.parent)


def relation_to(folder: str | Path, value: str | Path | None) -> str | None:
    """How a folder for results stands to something that is read, if that is here: it "is" it, or "holds" it."""
    if value is None or not (path := Path(value).expanduser().resolve()).exists():
        return None
    folder = Path(folder).resolve()
    return "is" if path == folder else "holds" if folder in path.parents else None


def check_for_results(output_dir: str, **inputs: str | None) -> None:
    """Refuse a folder for results that is one of what is read, or that nothing can be written to.

    Raises:
        ValueError: it is read, as the option that is named.
        OSError: nothing can be written there.
    """
    for name, value in inputs.items():
        if relation_to(output_dir, value) == "is":
            raise ValueError(f"--output_dir {output_dir} is the --{name} itself. Name a folder of its own.")
    check_can_write(output_dir)


def read_json(file: Path, what_to_do: str = "Take it away: what it says is then found out anew."):
    """Read a JSON file of a folder that goes on where it was.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}). {what_to_do}") from error


def write_json(path: Path, content) -> None:
    """Write a JSON file that is whole or not there, whenever the process is killed."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one move: the old one, if any, stays until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)

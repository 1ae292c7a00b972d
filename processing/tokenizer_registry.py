"""Action tokenizers by name: FAST, bins, and those of other packages."""

import os
from typing import Any

from .action_tokenizers import ACTION_TOKENIZERS, ActionTokenizer, check_action_tokenizer
from .binning_tokenizer import BinningActionTokenizer
from .fast_tokenizer import FASTActionTokenizer
from .plugins import find_class, installed, is_class_path
from .saved_files import local_folder, read_json
from .saved_settings import shortened

# Where installed packages name theirs: [project.entry-points."kivla.action_tokenizers"] in pyproject.toml
ENTRY_POINTS = "kivla.action_tokenizers"


def action_tokenizer_class(name: str) -> type[ActionTokenizer]:
    """Find the class of an action tokenizer by its kind, or by its place, `pkg.module:Class`.

    Kinds are those of classes that were imported, and those that installed packages name (`ENTRY_POINTS`).

    Raises:
        ValueError: there is none.
        TypeError: it cannot be used as an action tokenizer; the message names what it lacks.
    """
    found = find_class(name, ACTION_TOKENIZERS, ENTRY_POINTS, "action tokenizer")
    check_action_tokenizer(found)
    if found.kind != name and not is_class_path(name):
        raise ValueError(
            f"{found.__module__}.{found.__qualname__} is named {name!r} in the entry points {ENTRY_POINTS!r}, but its "
            f"kind, which is saved with policies, is {found.kind!r}. Give both the same name."
        )
    return found


def is_action_tokenizer_class(name: str) -> bool:
    """Say whether a name is one for `action_tokenizer_class`; otherwise it is a folder or a Hub id."""
    return is_class_path(name) or name in ACTION_TOKENIZERS or name in installed(ENTRY_POINTS)


def load_action_tokenizer(source: dict[str, Any] | str | os.PathLike, **hub_kwargs) -> ActionTokenizer:
    """Rebuilds an action tokenizer of whatever kind from its `to_dict()`, a folder, or a Hub repository.

    Raises:
        ValueError: the dictionary or the file names no known kind.
        FileNotFoundError: the folder holds no action tokenizer.
    """
    if isinstance(source, dict):
        return _class_of(source).from_dict(source)
    kinds = ACTION_TOKENIZERS.values()
    files = sorted({ActionTokenizer.FILE, *(file for kind in kinds for file in kind.files)})
    folder = local_folder(source, files, **hub_kwargs)
    if (folder / ActionTokenizer.FILE).is_file():  # names its kind
        return _class_of(read_json(folder / ActionTokenizer.FILE)).from_pretrained(source, **hub_kwargs)
    # Those with a layout of their own; without any, FAST says what is missing
    complete = (kind for kind in kinds if all((folder / file).is_file() for file in kind.files))
    return next(complete, FASTActionTokenizer).from_pretrained(source, **hub_kwargs)


def _class_of(saved: dict[str, Any]) -> type[ActionTokenizer]:
    kind = saved.get("kind")
    if not isinstance(kind, str) or is_class_path(kind):  # what a file says must not decide what is imported
        raise ValueError(f"Unknown action tokenizer {shortened(kind)!r}: expected is the name of a kind.")
    return action_tokenizer_class(kind)


__all__ = [
    "BinningActionTokenizer",
    "FASTActionTokenizer",
    "action_tokenizer_class",
    "is_action_tokenizer_class",
    "load_action_tokenizer",
]

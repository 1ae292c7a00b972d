"""Action tokenizers by name: FAST, bins, and those of other packages."""

import os
from typing import Any

from .action_tokenizers import ACTION_TOKENIZERS, ActionTokenizer, check_action_tokenizer
from .binning_tokenizer import BinningActionTokenizer
from .fast_tokenizer import FASTActionTokenizer
from .plugins import installed, is_class_path, load_class
from .saved_files import local_folder, read_json
from .saved_settings import shortened

# Where installed packages name theirs: [project.entry-points."kivla.action_tokenizers"] in pyproject.toml
ENTRY_POINTS = "kivla.action_tokenizers"


def action_tokenizer_class(name: str) -> type[ActionTokenizer]:
    """The class of an action tokenizer: by its kind, or by its place, `pkg.module:Class`.

    Kinds are those of classes that were imported, and those that installed packages name (`ENTRY_POINTS`).

    Raises:
        ValueError: there is none.
        TypeError: it cannot be used as an action tokenizer; the message names what it lacks.
    """
    named = installed(ENTRY_POINTS)
    if is_class_path(name):
        found = load_class(name)
    elif name in ACTION_TOKENIZERS:
        found = ACTION_TOKENIZERS[name]
    elif name in named:
        found = named[name].load()
    else:
        raise ValueError(
            f"Unknown action tokenizer {shortened(name)!r}, expected one of {sorted({*ACTION_TOKENIZERS, *named})}. If "
            f"it is of another package, install that. A class that its package does not name among the entry points "
            f"{ENTRY_POINTS!r} must be imported first."
        )
    check_action_tokenizer(found)
    if name in named and found.kind != name:
        raise ValueError(
            f"{named[name].value} is named {name!r} among the entry points {ENTRY_POINTS!r}, but its kind is "
            f"{found.kind!r}, which is saved with policies. Give both the same name."
        )
    return found


def load_action_tokenizer(source: dict[str, Any] | str | os.PathLike, **hub_kwargs) -> ActionTokenizer:
    """Rebuilds an action tokenizer of whatever kind from its `to_dict()`, a folder, or a Hub repository.

    Raises:
        ValueError: the dictionary or the file names no known kind.
        FileNotFoundError: the folder holds no action tokenizer.
    """
    if isinstance(source, dict):
        return _class_of(source).from_dict(source)
    # Every kind writes FILE, which names it; only the published FAST layout has none.
    folder = local_folder(source, [ActionTokenizer.FILE, *FASTActionTokenizer.files], **hub_kwargs)
    file = folder / ActionTokenizer.FILE
    kind = _class_of(read_json(file)) if file.is_file() else FASTActionTokenizer
    return kind.from_pretrained(source, **hub_kwargs)


def _class_of(saved: dict[str, Any]) -> type[ActionTokenizer]:
    kind = saved.get("kind")
    if not isinstance(kind, str) or is_class_path(kind):  # what a file says must not decide what is imported
        raise ValueError(f"Unknown action tokenizer {shortened(kind)!r}: expected is the name of a kind.")
    return action_tokenizer_class(kind)


__all__ = ["BinningActionTokenizer", "FASTActionTokenizer", "action_tokenizer_class", "load_action_tokenizer"]

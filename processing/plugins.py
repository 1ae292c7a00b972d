"""Classes that come from other packages: found by where they are, or by the name that their package gives them."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from .saved_settings import shortened


def is_class_path(name: str) -> bool:
    """Say whether a name is the place of a class, `pkg.module:Class`."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])


def load_class(path: str) -> type:
    """Import a class from its place, `pkg.module:Class`.

    Never call this with what a stranger's file says: a file must not decide what is imported.

    Raises:
        ValueError: there is no such module, or it has no such class.
    """
    module, _, attribute = path.partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and needs another one that is not
        raise ValueError(
            f"{path}: there is no module {error.name!r} here. Install its package, or run from the folder it is in."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{path}: {module} has no {attribute!r}.")
        found = getattr(found, part)
    return found


def installed(group: str) -> dict[str, EntryPoint]:
    """Find what installed packages offer under `[project.entry-points."GROUP"]` in their pyproject.toml, by name."""
    return {entry.name: entry for entry in entry_points(group=group)}


def find_class(name: str, known: Mapping[str, type | str], group: str, what: str) -> type:
    """Find a class by its place, or by its name.

    Args:
        name: `pkg.module:Class`, a name in `known`, or one that an installed package gives it.
        known: name → the class or its place.
        group: of entry points.
        what: what it is, for the message.

    Raises:
        ValueError: there is none.
    """
    if is_class_path(name):
        return load_class(name)
    if name in known:
        found = known[name]
        return load_class(found) if isinstance(found, str) else found
    named = installed(group)
    if name in named:
        return named[name].load()
    raise ValueError(
        f"Unknown {what} {shortened(name)!r}, expected one of {sorted({*known, *named})}. If it is of another package, "
        f"install that; without an entry point in {group!r} its class must be imported first (a "
        "command does with --import MODULE), or given as pkg.module:Class."
    )


def check_has(found, names: Iterable[str], what: str, advice: str) -> None:
    """Check that a class or an object has all that is needed.

    Args:
        found: a class or an object that is to be used as `what`.
        names: attributes that it must have, and not as abstract methods.
        advice: what to do, for the message.

    Raises:
        TypeError: it lacks some; the message names each.
    """
    abstract = getattr(found, "__abstractmethods__", frozenset())
    missing = [name for name in names if not hasattr(found, name) and name not in abstract]
    if missing := [*missing, *sorted(abstract)]:
        kind = found if isinstance(found, type) else type(found)
        raise TypeError(
            f"{kind.__module__}.{kind.__qualname__} cannot be used as {what}: it lacks {', '.join(missing)}. {advice}"
        )


__all__ = ["check_has", "find_class", "installed", "is_class_path", "load_class"]

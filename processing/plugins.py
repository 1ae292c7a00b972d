"""Classes that come from other packages: found by where they are, or by the name that their package gives them."""

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points


def is_class_path(name: str) -> bool:
    """Whether a name is the place of a class, `pkg.module:Class`."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])


def load_class(path: str) -> type:
    """The class at `pkg.module:Class`. Its module is imported: never call this with what a stranger's file says.

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
    """What installed packages offer under `[project.entry-points."GROUP"]` in their pyproject.toml, by name."""
    return {entry.name: entry for entry in entry_points(group=group)}


def check_has(found, names: Iterable[str], what: str, advice: str) -> None:
    """
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


__all__ = ["check_has", "installed", "is_class_path", "load_class"]

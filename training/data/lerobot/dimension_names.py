"""Names of a vector's dimensions, whatever form a dataset has written them in. Names never decide sizes."""

from collections import Counter
from collections.abc import Iterator, Sequence


def dimension_names(stored, size: int, label: str) -> tuple[list[str] | None, str | None]:
    """Make a list of `size` different names out of what `info.json` has as `names`.

    LeRobot and converters have written a list, a list in a list, `{"motors": list}`, `{name: position}`, groups such as
    `{"left": list, "right": list}`, one name for all dimensions, and null.

    Args:
        stored: the JSON value.
        size: how many dimensions the data has.
        label: what dimensions are called that have no name of their own, as `label_0`, `label_1`, ...

    Returns:
        The names, or None where there are none; and a sentence if they are not as they were written, otherwise None.
    """
    found = list(_leaves(stored))
    if not found:
        return None, None
    if len(found) != size:
        sentence = f"info.json has {len(found)} name(s) for the {size} dimensions of {label}: they are numbered."
        return [f"{label}_{i}" for i in range(size)], sentence
    plain = [name for _, name in found]
    names = plain if _all_differ(plain) else [f"{group}.{name}" if group else name for group, name in found]
    is_name = [isinstance(name, str) and bool(name.strip()) for name in plain]
    names = [name if is_name[i] else f"{label}_{i}" for i, name in enumerate(names)]
    unique = make_unique(names)
    changed = not all(is_name) or unique != names
    sentence = f"Some names of {label} in info.json are missing or not different: they are numbered."
    return unique, sentence if changed else None


def make_unique(names: Sequence[str]) -> list[str]:
    """Number those names that stand several times: `gripper_0`, `gripper_1`, ..."""
    counts, used, unique = Counter(names), set(names), []
    seen = Counter()
    for name in names:
        while counts[name] > 1 and (candidate := f"{name}_{seen[name]}") in used:
            seen[name] += 1
        unique.append(candidate if counts[name] > 1 else name)
        used.add(unique[-1])
    return unique


def _all_differ(names: list) -> bool:
    return all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


_MAX_DEPTH = 8  # a stranger's file may nest any number of lists


def _leaves(stored, group: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """(group, name) of every dimension."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(stored, dict):
        if stored and all(isinstance(place, int | float) for place in stored.values()):
            yield from ((group, name) for name in sorted(stored, key=stored.get))  # name → position
        elif len(stored) == 1:
            yield from _leaves(next(iter(stored.values())), group, depth + 1)
        else:
            for name, inner in stored.items():
                yield from _leaves(inner, f"{group}.{name}" if group else str(name), depth + 1)
    elif isinstance(stored, list):
        for inner in stored:
            yield from _leaves(inner, group, depth + 1) if isinstance(inner, list | dict) else [(group, inner)]
    elif isinstance(stored, str):
        yield group, stored


__all__ = ["dimension_names", "make_unique"]

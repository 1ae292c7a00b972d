"""Which actions a policy learns relative to the state: what `kivla train` was told, for each robot of the data."""

from collections.abc import Collection, Sequence

import numpy as np

from ..processing.action_units import UNKNOWN
from ..processing.relative_actions import RelativeActions
from ..processing.relative_words import ABSOLUTE, RobotDimensions, left_absolute, parse_relative_actions
from .data.relative_chunks import in_radians, offsets_already
from .data.robot_dataset import RobotDataset, range_notes
from .policy_options import RelativeOptions, refuse


def told_relative(
    data: RobotDataset, options: RelativeOptions, robots: Collection[str | None] = ()
) -> RelativeActions | None:
    """Make out what the options say of a dataset's robot; None where all actions are absolute, or nothing is said.

    Args:
        robots: names of all robots. A word may be for one of them alone: `ROBOT:aloha`.

    Raises:
        ValueError: words that do not fit the data; a rotation or an angle that wraps where nothing is relative.
    """
    words, wraps, rotations = (
        _words_for(data.robot, getattr(options, name), robots)
        for name in ("relative_actions", "wrapping_angles", "rotations")
    )
    if words is None:
        given = {"wrapping_angles": wraps, "rotations": rotations}
        refuse({name: "there are no --relative_actions" for name, value in given.items() if value})
        return None
    if not data.state_dim and words[0] not in ABSOLUTE:
        raise ValueError(f"{data.name} has no state, so that no action can be relative to it: --relative_actions none.")
    dimensions = RobotDimensions(data.action_dim, data.state_dim, data.action_names, data.state_names)
    try:
        relative = parse_relative_actions(words, dimensions, wraps, rotations)
    except ValueError as error:
        raise ValueError(f"--relative_actions for {data.name}: {error}") from error
    return relative


def told_to_wrap(
    data: RobotDataset, options: RelativeOptions, robots: Collection[str | None] = ()
) -> set[tuple[str, str]]:
    """Of which vector ("actions" or "state") which dimensions, by name, were said to be angles that wrap."""
    relative = told_relative(data, options, robots)
    if relative is None:
        return set()
    of_state = [relative.state_dimensions[dimension] for dimension in relative.wraps]
    names = data.state_names or list(map(str, range(data.state_dim)))
    return {("actions", relative.name(d)) for d in relative.wraps} | {("state", names[d]) for d in of_state}


def kept_relative(saved: dict, data: RobotDataset, path: str, notes: list[str]) -> RelativeActions | None:
    """Keep what a base policy has, where it fits the data that it is adapted to.

    Args:
        saved: what of a robot of its own is saved.
        path: the base, for messages.

    Raises:
        ValueError: its actions are relative, and it is not plain which of the data's are to be.
    """
    relative = saved.get("relative_actions")
    if relative == UNKNOWN:
        notes.append(
            f"{path} does not say whether its actions were relative to the state; the data's are learned as they are "
            "(otherwise --relative_actions)"
        )
    if relative in (None, UNKNOWN):
        return None
    relative = RelativeActions.from_json(relative)
    is_other = relative.names is not None and data.action_names not in (None, list(relative.names))
    if is_other or len(relative.state_dimensions) != data.action_dim or relative.state_size > data.state_dim:
        raise ValueError(
            f"the actions of {path} are relative ({relative}), and it is not plain which of {data.name} are to be. Say "
            "it with --relative_actions: a preset, names, or none."
        )
    return relative


def relative_notes(
    name: str | None,
    sources: Sequence[RobotDataset],
    relative: RelativeActions,
    statistics: dict[str, dict[str, np.ndarray]],
) -> list[str]:
    """Say what is relative, what moves rarely, what was left absolute, and what looks like an offset already, or like
    radians where degrees were said.

    Args:
        name: the robot's.
        statistics: as of `robot_statistics`.
    """
    whose, moved = "" if name is None else f" of {name}", statistics["relative_actions"]
    notes = [f"actions{whose}: {relative}", *range_notes("relative actions", moved, sources[0].action_names)]
    if names := left_absolute(relative):
        notes.append(
            f"{', '.join(names)}: by name a rotation, and absolute; a difference would be none. --rotations says its "
            "form"
        )
    if dimensions := in_radians(relative, statistics):
        notes.append(
            f"WARNING: {', '.join(map(relative.name, dimensions))} of {sources[0].name}: degrees were said, and the "
            "values look like radians (-3.14159:3.14159, or a form without _degrees)"
        )
    if dimensions := offsets_already(sources, relative):
        notes.append(
            f"WARNING: the actions {', '.join(map(relative.name, dimensions))} of {sources[0].name} look like offsets "
            "as they are: they go with how the state changes, and not with the state. Relative to it they would be "
            "offsets twice: --relative_actions none"
        )
    return notes


def _words_for(robot: str | None, words: list[str] | None, robots: Collection[str | None]) -> list[str] | None:
    """Those for this robot, and for all."""
    if words is None:
        return None
    own = {f"{name}:" for name in robots if name is not None}
    others = own - {f"{robot}:"}
    return [word.removeprefix(f"{robot}:") for word in words if not word.startswith(tuple(others))] or None


__all__ = ["kept_relative", "relative_notes", "told_relative", "told_to_wrap"]

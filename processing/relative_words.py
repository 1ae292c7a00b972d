"""Relative actions as people say them: a robot's preset, or names and numbers of dimensions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .relative_actions import FORMS_HELP, RelativeActions, Rotation

# A robot → the size of its actions, and which of them are relative: its joints. openpi's masks of ALOHA and DROID.
PRESETS = {
    "aloha": (14, (*range(6), *range(7, 13))),
    "droid": (8, tuple(range(7))),
    "so101": (6, tuple(range(5))),
}
ALL = "all"
# LIBERO's actions are offsets already: a second time would be wrong
ABSOLUTE = ("none", "libero")
RELATIVE_HELP = (
    f"Dimensions of the actions that are relative to the robot's state: {', '.join(PRESETS)}; all (but grippers, by "
    "name); names or numbers (0-5 wrist_roll.pos), as NAME=STATE_NAME where the state has another name; or none. For "
    "LIBERO none: its actions are offsets already."
)
WRAPS_HELP = "Relative dimensions that are angles which wrap, and their range: wrist_roll.pos=-180:180."
ROTATIONS_HELP = f"Dimensions that are a rotation together, and its form: rx,ry,rz=axis_angle. Forms: {FORMS_HELP}."

_GRIPPER = re.compile("gripper|jaw|claw", re.IGNORECASE)
_ROTATION = re.compile(
    r"^(roll|pitch|yaw|r[xyz]|w[xyz]|q[wxyz])$|quat|euler|rotvec|axis_angle|rot_?6d|rotation|orientation"
    r"|^(ee|eef|tcp|end_effector)[._](.*[._])?(roll|pitch|yaw|r[xyz]|w[xyz]|q[wxyz])([._].*)?$",
    re.IGNORECASE,
)
_NUMBER = r"-?\d+(?:\.\d+)?"


@dataclass(frozen=True)
class RobotDimensions:
    """Sizes of a robot's actions and state, and the names of their dimensions where they have any."""

    action_dim: int
    state_dim: int
    action_names: Sequence[str] | None = None
    state_names: Sequence[str] | None = None


def parse_relative_actions(
    words: Sequence[str],
    robot: RobotDimensions,
    wraps: Sequence[str] | None = None,
    rotations: Sequence[str] | None = None,
) -> RelativeActions | None:
    """Make out which actions are relative; None for none of them.

    Args:
        words: see `RELATIVE_HELP`.
        wraps: `NAME=LOW:HIGH` of every angle that wraps.
        rotations: `NAME,NAME,NAME=FORM` of every rotation; its dimensions are relative, too.

    Raises:
        ValueError: words that are not known or do not fit the robot, or a dimension that the state does not have.
    """
    plain, mapped = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if not words or (len(words) > 1 and {*plain} & {*ABSOLUTE}) or (len(plain) > 1 and {*plain} & {ALL, *PRESETS}):
        raise ValueError(
            f"relative actions {' '.join(words) or '(nothing)'}: give one preset, all, none, or dimensions."
        )
    if plain and plain[0] in ABSOLUTE:
        if wraps or rotations:
            raise ValueError("no action is relative, so none can wrap or be a rotation. Leave these options out.")
        return None
    turned = tuple(_rotation(word, robot) for word in rotations or ())
    wrapped = _wraps(wraps or (), robot)
    chosen = {d for rotation in turned for d in rotation.dimensions}
    of_state = {}  # told which: dimension of the action → that of the state
    for word in mapped:
        ours, _, theirs = word.partition("=")
        pair = _dimensions(ours, robot), _dimensions(theirs, robot, "state")
        if len(pair[0]) != len(pair[1]):
            raise ValueError(f"{word!r} maps {len(pair[0])} dimensions of the action to {len(pair[1])} of the state.")
        of_state |= dict(zip(*pair, strict=True))
    chosen |= {*of_state, *_chosen(plain, robot, chosen)}
    matched = [of_state.get(d, _in_state(d, robot)) if d in chosen else None for d in range(robot.action_dim)]
    if unmatched := [d for d in chosen if matched[d] == -1]:
        names = robot.action_names
        example = f"{names[unmatched[0]] if names else unmatched[0]}=..."
        raise ValueError(
            f"actions cannot be relative to the state: dimension {unmatched[0]}"
            f"{f' ({names[unmatched[0]]})' if names else ''} has no dimension of the same name there. The state has "
            f"{robot.state_dim} dimensions{f', {list(robot.state_names)}' if robot.state_names else ''}, the actions "
            f"{robot.action_dim}. Say which it is by {example} among the relative actions, or leave it absolute."
        )
    names = None if robot.action_names is None else tuple(robot.action_names)
    return RelativeActions(tuple(matched), wrapped, turned, names)


def preset_size(words: Sequence[str] | None) -> int:
    """The size of a preset's actions, where nothing else tells it; 0 for other words."""
    return PRESETS.get((words or [""])[0], (0, ()))[0]


def left_absolute(relative: RelativeActions | None) -> list[str]:
    """Names of absolute dimensions that look like a rotation, about which people should be asked."""
    if relative is None or relative.names is None:
        return []
    pairs = zip(relative.names, relative.state_dimensions, strict=True)
    return [name for name, of_state in pairs if of_state is None and _ROTATION.search(name)]


def _chosen(plain: Sequence[str], robot: RobotDimensions, turned: set[int]) -> set[int]:
    """The dimensions that words without a mapping say."""
    names = robot.action_names
    if plain == [ALL]:
        if names is None:
            raise ValueError(
                "relative actions `all` leaves grippers absolute by their names, and the actions have no names. Give "
                f"numbers, e.g. 0-{max(robot.action_dim - 2, 0)}, or a preset: {', '.join(PRESETS)}."
            )
        # A difference of rotations is none: those that nobody has described stay as they are
        return {d for d, name in enumerate(names) if not _GRIPPER.search(name) and not _ROTATION.search(name)} | turned
    if plain and plain[0] in PRESETS:
        size, chosen = PRESETS[plain[0]]
        if size != robot.action_dim:
            raise ValueError(
                f"the preset {plain[0]} is for actions of {size} dimensions, and these have {robot.action_dim}. Name "
                "the relative dimensions, or use another preset."
            )
        if names and (grippers := [names[d] for d in chosen if _GRIPPER.search(names[d])]):
            raise ValueError(
                f"the preset {plain[0]} would make {grippers[0]} relative, which is a gripper by its name: are the "
                f"dimensions, {list(names)}, in another order? Name the relative ones."
            )
        return set(chosen)
    return {d for word in plain for d in _dimensions(word, robot)}


def _dimensions(word: str, robot: RobotDimensions, of: str = "action") -> list[int]:
    """The dimensions that a word says: a name, a number, or numbers from-to."""
    names, size = (robot.state_names, robot.state_dim) if of == "state" else (robot.action_names, robot.action_dim)
    if names and word in names:
        return [list(names).index(word)]
    stems = [name.partition(".")[0] for name in names or ()]
    if stems.count(word) == 1:  # LeRobot writes shoulder_pan.pos
        return [stems.index(word)]
    if match := re.fullmatch(r"(\d+)(?:-(\d+))?", word):
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last < size:
            return list(range(first, last + 1))
    known = f"{list(names)}, or numbers" if names else "numbers"
    whose = "state" if of == "state" else "action"
    raise ValueError(
        f"{word!r} is no dimension of the {whose}, which has {size}: {known} from 0 to {size - 1}."
        + (f" Or one of {', '.join((*PRESETS, ALL, *ABSOLUTE))}." if of == "action" else "")
    )


def _in_state(dimension: int, robot: RobotDimensions) -> int:
    """The dimension of the state of the same name, or without names of the same number; -1 if there is none."""
    ours, theirs = robot.action_names, robot.state_names
    if ours and theirs and ours[dimension] in theirs:
        return list(theirs).index(ours[dimension])
    has_names = ours and theirs and not (_are_numbered(ours) or _are_numbered(theirs))
    return -1 if has_names or robot.action_dim != robot.state_dim else dimension


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether names are only numbers: action_0, action_1, ..."""
    stem = names[0].removesuffix("0")
    return stem != names[0] and list(names) == [f"{stem}{i}" for i in range(len(names))]


def _rotation(word: str, robot: RobotDimensions) -> Rotation:
    dimensions, _, form = word.rpartition("=")
    try:
        return Rotation(tuple(d for name in dimensions.split(",") for d in _dimensions(name, robot, "rotation")), form)
    except ValueError as error:
        raise ValueError(f"the rotation {word!r}: {error}") from error


def _wraps(words: Sequence[str], robot: RobotDimensions) -> dict[int, tuple[float, float]]:
    found = {}
    for word in words:
        name, _, ends = word.rpartition("=")
        match = re.fullmatch(rf"({_NUMBER}):({_NUMBER})", ends)
        if match is None:
            raise ValueError(
                f"an angle that wraps is NAME=LOW:HIGH, its range, e.g. wrist_roll.pos=-180:180; got {word!r}."
            )
        try:
            found |= dict.fromkeys(_dimensions(name, robot, "angle"), (float(match[1]), float(match[2])))
        except ValueError as error:
            raise ValueError(f"the angle that wraps {word!r}: {error}") from error
    return found


__all__ = [
    "ABSOLUTE",
    "PRESETS",
    "RELATIVE_HELP",
    "ROTATIONS_HELP",
    "WRAPS_HELP",
    "RobotDimensions",
    "left_absolute",
    "parse_relative_actions",
    "preset_size",
]

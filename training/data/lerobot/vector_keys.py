"""Which columns of a dataset are the actions and the state, and which features are its cameras.

LeRobot calls them `action` and `observation.state`. Converters of other projects have other names, or a column for each
part of the robot, which are then put after each other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KEY_PRESETS = ("openpi", "gr00t")
NO_STATE = "none"
USUAL_KEYS = {"action_key": ["action"], "state_key": ["observation.state"]}

_ACTION_KEYS, _STATE_KEYS = ("action", "actions"), ("observation.state", "state")
_OPENPI, _OPENPI_CAMERAS = ("actions", "state"), ("image", "wrist_image")
# Columns with one of these beginnings are parts of one vector, unless they say the same thing twice in other terms.
_ACTION_PARTS, _STATE_PARTS = ("action.", "actions."), ("observation.state.", "observation.states.", "state.")
_TERMS = {
    "joints": re.compile(r"joint|qpos"),
    "a pose": re.compile(r"cartesian|eef|end_effector|(^|[._])(ee|end|tcp|pose)([._]|$)"),
    "velocities": re.compile(r"velocit|qvel|(^|[._])vel([._]|$)"),
    "forces": re.compile(r"effort|torque|force|current"),
}
_ROW_NUMBERS = ("timestamp", "frame_index", "episode_index", "task_index", "index")
_SLICE = re.compile(r"(.+)\[(\d+):(\d+)\]")


@dataclass(frozen=True)
class VectorPart:
    """Dimensions `start` to `end` of a column; all of them by default."""

    column: str
    start: int | None = None
    end: int | None = None

    def __str__(self) -> str:
        return self.column if self.start is None else f"{self.column}[{self.start}:{self.end}]"


@dataclass(frozen=True)
class VectorKeys:
    """What was chosen.

    Attributes:
        actions, state: the parts, in order; no state: none.
        cameras: feature names, or None for all that there are.
        names: of the dimensions, where a preset has them: `{"actions": [...], "state": [...]}`.
        notes: what was chosen without being asked for.
    """

    actions: tuple[VectorPart, ...]
    state: tuple[VectorPart, ...]
    cameras: list[str] | None
    names: dict[str, list[str]]
    notes: list[str]


def choose_keys(
    columns: Sequence[str],
    features: dict,
    preset: str | None,
    modality: dict | None,
    action_key: str | Sequence[str] | None,
    state_key: str | Sequence[str] | None,
    others: Mapping[str, str] | None = None,
    lacking: Mapping[str, str] | None = None,
) -> VectorKeys:
    """Choose the columns.

    Args:
        columns: those of the data files that hold numbers.
        features: of `info.json`, whose order is that of parts.
        preset: `openpi`, `gr00t`, or None.
        modality: the content of `meta/modality.json`, if there is one.
        action_key, state_key: a name, or several in order, each perhaps with a range of dimensions, `action[0:7]`;
            `none` for no state.
        others: columns of anything else → their type, for messages.

    Raises:
        ValueError: a column is not there; or it is not clear which are meant, and the message lists them.
    """
    ordered = [name for name in features if name in columns] + [name for name in columns if name not in features]
    cameras, names, notes = None, {}, []
    asked = {"actions": action_key, "state": state_key}
    if preset == "openpi":
        if not {*_OPENPI, *_OPENPI_CAMERAS} & {*columns, *features}:
            raise ValueError(
                f"the keys of openpi are {', '.join((*_OPENPI, *_OPENPI_CAMERAS))}, and none of them is here. The "
                f"columns: {', '.join(columns)}. Leave the preset out (keys, --dataset_keys), or choose another."
            )
        action_key = action_key or "actions"
        if state_key is None and "state" in columns:
            state_key = "state"
        cameras = [name for name in features if name in _OPENPI_CAMERAS]
        if cameras and (absent := [name for name in _OPENPI_CAMERAS if name not in cameras]):
            notes.append(f"The dataset has no {_and(absent)}, which openpi's keys have.")
    elif preset == "gr00t":
        if modality is None:
            raise ValueError("the keys of GR00T are in meta/modality.json, and there is none.")
        parts = {kind: _modality_parts(modality, kind) for kind in ("action", "state")}
        if action_key is None:
            action_key, names["actions"] = parts["action"]
        if state_key is None:
            state_key, names["state"] = parts["state"] if parts["state"][0] else (NO_STATE, [])
            if not parts["state"][0]:
                notes.append("meta/modality.json has no groups of the state: there is none.")
        cameras = [_original_key(entry, f"observation.images.{name}") for name, entry in _group(modality, "video")]
    elif preset is not None:
        raise ValueError(f"there are no keys {preset!r}; known are {', '.join(KEY_PRESETS)}.")
    if cameras == []:
        notes.append(f"None of the cameras of {preset} is here: where none are chosen, all that are here are used.")
    if action_key is None:
        action_key = _default(ordered, _ACTION_KEYS, _ACTION_PARTS, "action")
        if action_key is None:
            for name in _ACTION_KEYS:
                _refuse(name, others or {}, lacking or {})
            raise ValueError(
                f"no column is called 'action'. A robot dataset needs actions; its columns: {', '.join(ordered)}. Say "
                "which are meant with action_key (--action_key)."
            )
        if action_key != ["action"]:
            notes.append(f"The actions are made of the column(s) {_and(action_key)}.")
    if state_key is None:
        state_key = _default(ordered, _STATE_KEYS, _STATE_PARTS, "state") or NO_STATE
        announced = [name for name in features if name in _STATE_KEYS or name.startswith(_STATE_PARTS)]
        if state_key == NO_STATE and (gone := [name for name in announced if name in (lacking or {})]):
            raise ValueError(
                f"the state {gone[0]!r} {lacking[gone[0]]}. Export the dataset again, leave these episodes out, or do "
                "without a state, state_key='none' (--state_key none)."
            )
        if state_key == NO_STATE and announced:
            notes.append(
                f"info.json announces the state {_and(announced)}, but the data files have no such column of numbers: "
                "there is no state."
            )
        if state_key != NO_STATE and (state_key != ["observation.state"] or preset == "openpi"):
            notes.append(f"The state is made of the column(s) {_and(state_key)}.")
    chosen = {
        kind: () if kind == "state" and is_no_state(key) else _parts(key, columns, others or {}, lacking or {})
        for kind, key in (("actions", action_key), ("state", state_key))
    }
    for kind in ("actions", "state"):
        if asked[kind] is None and (twice := _first_twice(chosen[kind])):
            what = "{}_key (--{}_key)".format(*[kind.removesuffix("s")] * 2)
            notes.append(f"The {kind} have dimensions twice, in {twice[0]} and {twice[1]}: choose with {what}.")
    if asked["actions"] is not None:
        _check_asked("action_key", chosen["actions"])
    if asked["state"] is not None:
        _check_asked("state_key", chosen["state"])
    return VectorKeys(chosen["actions"], chosen["state"], cameras or None, names, notes)


def is_no_state(state_key: str | Sequence[str]) -> bool:
    """Whether the key says that there is to be no state."""
    return state_key == NO_STATE or list(state_key) in ([], [NO_STATE])


def _default(columns: Sequence[str], keys: Sequence[str], beginnings: Sequence[str], what: str) -> list[str] | None:
    for key in keys:
        if key in columns:
            return [key]
    parts = [name for name in columns if name.startswith(tuple(beginnings))]
    terms = {term for term, pattern in _TERMS.items() if any(pattern.search(name) for name in parts)}
    if len(terms) > 1:
        raise ValueError(
            f"it is not clear which columns are the {what}: {', '.join(parts)} are {_and(sorted(terms))}. Say which, "
            f"in their order, with {what}_key (--{what}_key)"
            + (f", or {NO_STATE!r} for no state." if what == "state" else ".")
        )
    return parts or None


def _refuse(column: str, others: Mapping[str, str], lacking: Mapping[str, str]) -> None:
    """Say what is wrong with a column that cannot be used; of others there is nothing to say."""
    if column in others:
        raise ValueError(
            f"the column {column!r} holds {others[column]}; expected are numbers, or lists of numbers of one length."
        )
    if column in lacking:
        raise ValueError(
            f"the column {column!r} {lacking[column]}. Export the dataset again, or leave these episodes out."
        )


def _parts(
    key: str | Sequence[str], columns: Sequence[str], others: Mapping[str, str], lacking: Mapping[str, str]
) -> tuple[VectorPart, ...]:
    parts = []
    for name in [key] if isinstance(key, str) else key:
        match = None if name in columns else _SLICE.fullmatch(name)
        part = VectorPart(match[1], int(match[2]), int(match[3])) if match else VectorPart(name)
        _refuse(part.column, others, lacking)
        if part.column not in columns:
            raise ValueError(f"there is no column {part.column!r}. The columns: {', '.join(columns)}.")
        if match and part.start >= part.end:
            raise ValueError(f"{name} has no dimensions: a range ends after its last one.")
        parts.append(part)
    return tuple(parts)


def _check_asked(key: str, parts: Sequence[VectorPart]) -> None:
    """Refuse dimensions that are asked for twice, and numbers of rows in their place."""
    for part in parts:
        if part.column in _ROW_NUMBERS:
            raise ValueError(f"{key}: the column {part.column!r} counts rows, or tells their time: nothing to learn.")
    if twice := _first_twice(parts):
        raise ValueError(f"{key} has dimensions of {twice[0].column!r} twice: {twice[0]} and {twice[1]}.")


def _first_twice(parts: Sequence[VectorPart]) -> tuple[VectorPart, VectorPart] | None:
    """The first two parts that have a dimension in common."""
    for i, part in enumerate(parts):
        for other in parts[:i]:
            if part.column == other.column and (
                None in (part.start, other.start) or (part.start < other.end and other.start < part.end)
            ):
                return other, part
    return None


def _modality_parts(modality: dict, kind: str) -> tuple[list[str], list[str]]:
    """The keys of GR00T's groups, and a name for every dimension; neighbours in one column are one key."""
    default = {"action": "action", "state": "observation.state"}[kind]
    spans, names = [], []
    for group, entry in _group(modality, kind):
        start, end = entry.get("start"), entry.get("end")
        if type(start) is not int or type(end) is not int or not 0 <= start < end:
            raise ValueError(f"meta/modality.json: {kind} {group!r} needs a start and an end, got {str(entry)[:200]}.")
        column = _original_key(entry, default)
        names += [f"{group}.{i}" for i in range(end - start)] if end - start > 1 else [group]
        if spans and spans[-1][0] == column and spans[-1][2] == start:
            spans[-1] = (column, spans[-1][1], end)
        else:
            spans.append((column, start, end))
    if kind == "action" and not spans:
        raise ValueError("meta/modality.json has no groups of the action.")
    return [f"{column}[{start}:{end}]" for column, start, end in spans], names


def _group(modality: dict, kind: str) -> list[tuple[str, dict]]:
    group = modality.get(kind) or {}
    if not isinstance(group, dict) or not all(isinstance(entry, dict) for entry in group.values()):
        raise ValueError(f"meta/modality.json: {kind!r} must be a map of maps, got {str(group)[:200]}.")
    return list(group.items())


def _original_key(entry: dict, default: str) -> str:
    key = entry.get("original_key") or default
    if not isinstance(key, str):
        raise ValueError(f"meta/modality.json: original_key must be a name, got {str(key)[:200]}.")
    return key


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


__all__ = ["KEY_PRESETS", "NO_STATE", "USUAL_KEYS", "VectorKeys", "VectorPart", "choose_keys", "is_no_state"]

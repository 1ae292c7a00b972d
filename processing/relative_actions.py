"""Actions relative to the robot's state: offsets from the state that a chunk was predicted from, and back.

All H actions of a chunk are relative to the *same* state, that of its first observation, as with openpi's
`DeltaActions` and LeRobot's `use_relative_actions`. An offset is a difference; of an angle that wraps the shortest one;
and of a rotation the turn from the state to the action, R_state⁻¹ R_action.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .normalization import as_numbers

# Values of a rotation by the name of its form; Euler angles are `euler_` and scipy's three letters (small ones turn
# about fixed axes, capitals about axes that move), in radians, or with `_degrees`
_FORMS = {
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    "axis_angle": 3,
    "rotation_6d_columns": 6,
    "rotation_6d_rows": 6,
}
_EULER = re.compile(r"euler_(?P<axes>[xyz]{3}|[XYZ]{3})(?P<degrees>_degrees)?")
FORMS_HELP = f"{', '.join(_FORMS)}, or euler_ with its axes (euler_xyz, euler_XYZ_degrees)"


@dataclass(frozen=True)
class Rotation:
    """Dimensions of an action that are a rotation together.

    Args:
        dimensions: in the order of the form.
        form: "quaternion_xyzw", "quaternion_wxyz", "axis_angle" (radians), "rotation_6d_columns" or "rotation_6d_rows"
            (the first two columns or rows of the matrix, one after the other), or Euler angles: "euler_xyz" (scipy's
            letters: small ones about fixed axes, capitals about moving ones; radians), "euler_xyz_degrees".

    Raises:
        ValueError: an unknown form, or another number of dimensions than it has.
    """

    dimensions: tuple[int, ...]
    form: str

    def __post_init__(self):
        euler = _EULER.fullmatch(self.form)
        size = 3 if euler and len(set(euler["axes"])) == 3 else _FORMS.get(self.form)
        if size is None:
            raise ValueError(f"a rotation has one of the forms {FORMS_HELP}, not {self.form!r}.")
        if len(self.dimensions) != size:
            raise ValueError(f"a rotation as {self.form} has {size} dimensions, got {list(self.dimensions)}.")
        _turn_class()  # what is missing is missed now, and not in front of a robot

    @property
    def largest(self) -> float:
        """The largest value that it is written with; Euler angles and axes have up to a whole turn."""
        if self.form.endswith("_degrees"):
            return 360.0
        if self.form.startswith("rotation_6d"):
            return np.inf  # of any length
        return 1.0 if self.form.startswith("quaternion") else 2 * np.pi


@dataclass(frozen=True)
class RelativeActions:
    """Which dimensions of a robot's actions are relative to its state.

    Args:
        state_dimensions: for each dimension of an action, the dimension of the state that it is relative to; None where
            it is absolute.
        wraps: dimensions that are angles which wrap → (low, high), the range that they are in as absolute values; their
            period is high - low.
        rotations: dimensions that are a rotation together, in the same form in action and state.
        names: of the dimensions of an action, for people.

    Raises:
        ValueError: no dimension is relative; or a wrap or a rotation that is none, or of absolute dimensions.
    """

    state_dimensions: tuple[int | None, ...]
    wraps: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    rotations: tuple[Rotation, ...] = ()
    names: tuple[str, ...] | None = field(default=None, compare=False)

    def __post_init__(self):
        if not self.dimensions:
            raise ValueError("no dimension of the action is relative. Leave relative actions out.")
        if any(d is not None and d < 0 for d in self.state_dimensions):
            raise ValueError(f"dimensions of the state count from 0, got {list(self.state_dimensions)}.")
        if self.names is not None and len(self.names) != len(self.state_dimensions):
            raise ValueError(f"there are {len(self.names)} names for {len(self.state_dimensions)} dimensions.")
        rotated = [d for rotation in self.rotations for d in rotation.dimensions]
        used = [*rotated, *self.wraps]
        if len(set(used)) < len(used):
            raise ValueError(f"a dimension belongs to one rotation or wraps, once; got {used}.")
        if others := sorted(set(used) - set(self.dimensions)):
            raise ValueError(
                f"dimension {self.name(others[0])} wraps or is part of a rotation, but it is not relative."
            )
        for dimension, (low, high) in self.wraps.items():
            if not (np.isfinite([low, high]).all() and low < high):
                raise ValueError(
                    f"dimension {self.name(dimension)} wraps from {low} to {high}: the smaller end comes first."
                )

    @property
    def dimensions(self) -> list[int]:
        """The relative ones."""
        return [i for i, of_state in enumerate(self.state_dimensions) if of_state is not None]

    @property
    def rotated(self) -> list[int]:
        """Those that are part of a rotation."""
        return [d for rotation in self.rotations for d in rotation.dimensions]

    @property
    def state_size(self) -> int:
        """The smallest size of a state that has all of its dimensions."""
        return 1 + max(d for d in self.state_dimensions if d is not None)

    def name(self, dimension: int) -> str:
        is_named = self.names is not None and 0 <= dimension < len(self.names)
        return self.names[dimension] if is_named else str(dimension)

    def __str__(self) -> str:
        rotated, absolute = set(self.rotated), set(range(len(self.state_dimensions))) - set(self.dimensions)
        parts = {
            "relative to the state": [d for d in self.dimensions if d not in rotated and d not in self.wraps],
            "relative, and wrapping": self.wraps,
            "absolute": sorted(absolute),
        }
        said = [f"{what}: {', '.join(map(self.name, some))}" for what, some in parts.items() if some]
        said += [f"turned from the state's {r.form}: {', '.join(map(self.name, r.dimensions))}" for r in self.rotations]
        return "; ".join(said)

    def to_json(self) -> dict:
        """Ready for JSON, and back by `from_json`."""
        return {
            "state_dimensions": list(self.state_dimensions),
            "wraps": {str(dimension): [float(end) for end in ends] for dimension, ends in self.wraps.items()},
            "rotations": [{"dimensions": list(r.dimensions), "form": r.form} for r in self.rotations],
            "names": None if self.names is None else list(self.names),
        }

    @classmethod
    def from_json(cls, values: Mapping) -> "RelativeActions":
        """Inverse of `to_json`; what is not said has its default.

        Raises:
            ValueError: it is no description of relative actions.
        """
        try:
            return cls(
                tuple(None if d is None else _index(d) for d in values["state_dimensions"]),
                {_index(d): (float(low), float(high)) for d, (low, high) in values.get("wraps", {}).items()},
                tuple(Rotation(tuple(map(_index, r["dimensions"])), r["form"]) for r in values.get("rotations", ())),
                None if values.get("names") is None else tuple(map(str, values["names"])),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"relative_actions are not as they are saved ({error!r}): {values!r:.200}.") from error


def to_relative(actions, state, relative: RelativeActions) -> np.ndarray:
    """Absolute actions (..., H, D), robot units -> relative ones, (..., H, D) float64.

    Args:
        state: (..., Ds), robot units: one for all H actions.

    Raises:
        ValueError: sizes that do not fit, a state that is not finite, or values that are no rotation.
    """
    actions, reference = _both(actions, state, relative)
    offsets = actions - reference
    for dimension, (low, high) in relative.wraps.items():  # the shortest way round
        offsets[..., dimension] -= (high - low) * np.round(offsets[..., dimension] / (high - low))
    for rotation in relative.rotations:
        here, there = (_turns(values, rotation) for values in (reference, actions))
        _write(offsets, here.inv() * there, rotation)
    return offsets


def to_absolute(offsets, state, relative: RelativeActions) -> np.ndarray:
    """Inverse of `to_relative`.

    An angle that wraps is given within its range. A rotation is given as its form writes it: Euler angles may be
    another triple of the same rotation; a quaternion has the sign that is nearer to the state's.

    Raises:
        ValueError: as `to_relative`.
    """
    offsets, reference = _both(offsets, state, relative)
    actions = offsets + reference
    for dimension, (low, high) in relative.wraps.items():
        actions[..., dimension] = low + np.mod(actions[..., dimension] - low, high - low)
    for rotation in relative.rotations:
        here, turns = (_turns(values, rotation) for values in (reference, offsets))
        _write(actions, here * turns, rotation, near=reference)
    return actions


def nearest_turn(actions: np.ndarray, reference: np.ndarray, relative: RelativeActions | None) -> np.ndarray:
    """Actions (..., D) with every angle that wraps written as the turn nearest to a reference's, (..., D).

    So that differences of the two are the shortest ones. Where the reference is NaN an angle stays as it is.
    """
    if relative is None or not relative.wraps:
        return actions
    actions = np.array(np.broadcast_to(actions, reference.shape))
    for dimension, (low, high) in relative.wraps.items():
        turns = np.round((actions[..., dimension] - reference[..., dimension]) / (high - low))
        actions[..., dimension] -= (high - low) * np.nan_to_num(turns)
    return actions


def _both(actions, state, relative: RelativeActions) -> tuple[np.ndarray, np.ndarray]:
    """Actions, and beside each what it is relative to, both (..., H, D) float64; 0 where it is absolute."""
    actions, state = as_numbers(actions), as_numbers(state)
    size = len(relative.state_dimensions)
    if actions.ndim < 2 or actions.shape[-1] != size:
        raise ValueError(f"relative actions are chunks (..., H, {size}), got shape {actions.shape}.")
    if state.ndim < 1 or state.shape[-1] < relative.state_size:
        raise ValueError(
            f"the actions are relative to dimension {relative.state_size - 1} of the state, and the state has the "
            f"shape {state.shape}: is it the state of another robot?"
        )
    if not np.isfinite(state).all():
        raise ValueError(f"the state that actions are relative to must be finite, got {state.tolist()}.")
    reference = np.zeros((*state.shape[:-1], size))
    reference[..., relative.dimensions] = state[..., [relative.state_dimensions[d] for d in relative.dimensions]]
    return actions, np.broadcast_to(reference[..., None, :], actions.shape)


def _turn_class():
    """scipy's rotations. Imported where there are any: a policy without them runs without scipy."""
    from scipy.spatial.transform import Rotation as Turn

    return Turn


def _turns(values: np.ndarray, rotation: Rotation):
    """The rotations that some dimensions of (..., D) are, in one row: scipy's."""
    Turn = _turn_class()
    rows = values[..., list(rotation.dimensions)].reshape(-1, len(rotation.dimensions))
    if rotation.form == "axis_angle":
        return Turn.from_rotvec(rows)
    if euler := _EULER.fullmatch(rotation.form):
        return Turn.from_euler(euler["axes"], rows, degrees=euler["degrees"] is not None)
    if rotation.form.startswith("quaternion"):
        _check_length(rows, rotation)
        return Turn.from_quat(rows[:, [1, 2, 3, 0]] if rotation.form.endswith("wxyz") else rows)
    # Gram-Schmidt of the two vectors (Zhou et al. 2019, arXiv 1812.07035)
    first, second = rows[:, :3], rows[:, 3:]
    _check_length(first, rotation)
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    second = second - (first * second).sum(1, keepdims=True) * first
    _check_length(second, rotation)
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    axis = 2 if rotation.form.endswith("columns") else 1
    return Turn.from_matrix(np.stack([first, second, np.cross(first, second)], axis=axis))


def _write(values: np.ndarray, turns, rotation: Rotation, near: np.ndarray | None = None) -> None:
    """Put rotations into their dimensions of (..., D). Of a quaternion's two signs: nearer to `near`; or w ≥ 0."""
    dimensions = list(rotation.dimensions)
    if rotation.form == "axis_angle":
        rows = turns.as_rotvec()
    elif euler := _EULER.fullmatch(rotation.form):
        rows = turns.as_euler(euler["axes"], degrees=euler["degrees"] is not None)
    elif rotation.form.startswith("quaternion"):
        rows = turns.as_quat(canonical=True)
        rows = rows[:, [3, 0, 1, 2]] if rotation.form.endswith("wxyz") else rows
        if near is not None:
            signs = np.sign((rows * near[..., dimensions].reshape(rows.shape)).sum(1, keepdims=True))
            rows = rows * np.where(signs == 0, 1, signs)
    else:
        matrices = turns.as_matrix()  # (n, row, column)
        matrices = matrices if rotation.form.endswith("rows") else matrices.swapaxes(1, 2)
        rows = matrices[:, :2].reshape(-1, 6)
    values[..., dimensions] = rows.reshape(*values.shape[:-1], len(dimensions))


def _check_length(vectors: np.ndarray, rotation: Rotation) -> None:
    lengths = np.linalg.norm(vectors, axis=1)
    if (lengths < 1e-6).any():
        raise ValueError(
            f"dimensions {list(rotation.dimensions)} are no rotation as {rotation.form}: they are "
            f"{vectors[int(lengths.argmin())].tolist()}."
        )


def _index(value: Sequence | int | str) -> int:
    number = int(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise TypeError(f"a dimension is a whole number, got {value!r}")
    return int(number)


__all__ = ["FORMS_HELP", "RelativeActions", "Rotation", "nearest_turn", "to_absolute", "to_relative"]

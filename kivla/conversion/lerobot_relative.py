"""LeRobot's relative actions: the steps of its processor files that say them, and back.

LeRobot subtracts the state from every dimension of an action but those whose name contains one of `exclude_joints`. The
dimensions of state and action are the same, one by one.
"""

from pathlib import Path

from ..processing.relative_actions import RelativeActions
from .weight_files import CheckpointError, read_json

RELATIVE_STEP, ABSOLUTE_STEP = "relative_actions_processor", "absolute_actions_processor"


def read_relative(preprocessor: Path, settings: dict, action_dim: int) -> RelativeActions | None:
    """Read what a checkpoint's processor file says; without such a step (older ones) actions are absolute.

    Args:
        settings: the checkpoint's config.json, where it has no processor files.
        action_dim: dimensions of an action.
    """
    steps = [step for step in read_json(preprocessor).get("steps", []) if step.get("registry_name") == RELATIVE_STEP]
    if steps:
        config = steps[0].get("config") or {}
        is_on, excluded, names = config.get("enabled"), config.get("exclude_joints"), config.get("action_names")
    else:
        is_on = settings.get("use_relative_actions") and not preprocessor.is_file()
        excluded, names = settings.get("relative_exclude_joints"), settings.get("action_feature_names")
    if not is_on:
        return None
    names = None if names is None else [*names, *(f"action_{i}" for i in range(len(names), action_dim))][:action_dim]
    mask = _mask(excluded or [], names, action_dim)
    if not any(mask):
        return None
    return RelativeActions(tuple(i if is_relative else None for i, is_relative in enumerate(mask)), names=_tuple(names))


def lerobot_settings(relative: RelativeActions) -> dict:
    """`exclude_joints` and `action_names` by which LeRobot makes the same dimensions relative.

    Raises:
        CheckpointError: it cannot, since it knows differences of the same dimensions alone.
    """
    size = len(relative.state_dimensions)
    names = list(relative.names or (f"action_{i:03}" for i in range(size)))
    mask = [of_state is not None for of_state in relative.state_dimensions]
    absolute = [name for name, is_relative in zip(names, mask, strict=True) if not is_relative]
    # LeRobot's own default where it says the same, or every name
    excluded = next((some for some in (["gripper"], absolute) if _mask(some, names, size) == mask), None)
    if all(mask):
        excluded = []
    problems = {
        "angles that wrap": bool(relative.wraps),
        "rotations": bool(relative.rotations),
        "other dimensions of the state": any(d not in (None, i) for i, d in enumerate(relative.state_dimensions)),
        "names that contain each other": excluded is None,
    }
    if found := [problem for problem, is_there in problems.items() if is_there]:
        raise CheckpointError(
            f"LeRobot's relative actions have no {' and no '.join(found)}, and this policy's do ({relative}). Its "
            "plugin runs the policy as it is: python -m lerobot_policy_kivla.export."
        )
    return {"exclude_joints": excluded, "action_names": names}


def _mask(excluded: list[str], names: list[str] | None, size: int) -> list[bool]:
    """Which dimensions LeRobot makes relative."""
    tokens = [str(token).lower() for token in excluded if token]
    if not tokens or names is None:
        return [True] * size
    return [not any(token in str(name).lower() for token in tokens) for name in names]


def _tuple(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(map(str, names))


__all__ = ["ABSOLUTE_STEP", "RELATIVE_STEP", "lerobot_settings", "read_relative"]

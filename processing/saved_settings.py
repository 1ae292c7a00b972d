"""What the settings of a processor may be: of one that is made, and of one on disk, which may be a stranger's."""

from numbers import Integral
from pathlib import Path

# What each setting is in a saved processor; one that is absent has its default
SAVED_TYPES = {
    **dict.fromkeys(("chunk_size", "max_action_dim", "max_state_dim", "action_token_skip"), int),
    **dict.fromkeys(("state_encoding", "normalization", "action_token_placement", "action_prompt"), str),
    **dict.fromkeys(
        ("expert_reads_response", "noise_padding", "square_images", "clip_actions", "responds_first"), bool
    ),
    "max_length": int | None,
    "action_tokenizer": dict | None,
    "robots": dict,
    "prompt_frames": dict,
}
ROBOT_TYPES = {"statistics": dict | None, "cameras": list | None, "action_dim": int | None}


# Whole numbers among the settings, and the lowest that makes sense
_LOWEST = {"chunk_size": 1, "max_action_dim": 1, "max_state_dim": 0, "action_token_skip": 0, "max_length": 1}


def check_settings(settings: dict) -> None:
    for name, lowest in _LOWEST.items():
        value = settings[name]
        if name == "max_length" and value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or not lowest <= value <= 1 << 20:
            raise ValueError(f"{name} must be a whole number of at least {lowest}, got {value!r}.")
    for name, kind in SAVED_TYPES.items():
        if kind is bool and not isinstance(settings[name], bool):
            raise ValueError(f"{name} must be True or False, got {settings[name]!r}.")


def check_saved(file: Path, settings: dict) -> None:
    """Settings on disk may be damaged, or a stranger's."""
    has_robots = "robots" in settings
    needed = {"action_tokenizer", *(() if has_robots else ROBOT_TYPES)}
    unknown, missing = settings.keys() - SAVED_TYPES.keys() - ROBOT_TYPES.keys(), needed - settings.keys()
    if unknown or missing:
        raise ValueError(
            f"{file} is damaged: unknown settings {str(sorted(unknown))[:200]}, missing {sorted(missing)}."
        )
    _check_types(file, settings, SAVED_TYPES)
    for robot in settings["robots"].values() if has_robots else [settings]:
        if not isinstance(robot, dict) or ROBOT_TYPES.keys() - robot.keys():
            raise ValueError(f"{file} is damaged: a robot is {str(robot)[:200]}.")
        _check_types(file, robot, ROBOT_TYPES)
        if not all(isinstance(values, dict) for values in (robot["statistics"] or {}).values()):
            raise ValueError(f"{file} is damaged: statistics must be maps, got {str(robot['statistics'])[:200]}.")
        if not all(isinstance(camera, str) for camera in robot["cameras"] or []):
            raise ValueError(f"{file} is damaged: cameras must be names, got {str(robot['cameras'])[:200]}.")


def _check_types(file: Path, values: dict, types: dict) -> None:
    for name in types.keys() & values.keys():
        value, wanted = values[name], types[name]
        is_right = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
        if not is_right or (isinstance(value, int) and not 0 <= value <= 1 << 20):
            raise ValueError(f"{file} is damaged: {name} is {str(value)[:200]}.")


__all__ = ["ROBOT_TYPES", "check_saved", "check_settings"]

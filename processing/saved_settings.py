"""What saved settings may be. Files on disk may be damaged, or a stranger's: here are all limits, one check for each.

Messages show what was given, cut: a hostile value may be very long.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from string import Formatter

import numpy as np
from tokenizers import Tokenizer

# What each setting is in a saved processor; one that is absent has its default
SAVED_TYPES = {
    **dict.fromkeys(("chunk_size", "max_action_dim", "max_state_dim", "action_token_skip"), int),
    **dict.fromkeys(("history", "history_stride"), int),
    **dict.fromkeys(("state_encoding", "normalization", "action_token_placement", "action_prompt"), str),
    **dict.fromkeys(
        ("expert_reads_response", "noise_padding", "square_images", "clip_actions", "responds_first"), bool
    ),
    "clips_as_video": bool,
    "max_length": int | None,
    "action_tokenizer": dict | None,
    "image_backend": str,
    "robots": dict,
    "prompt_frames": dict,
}
ROBOT_TYPES = {"statistics": dict | None, "cameras": list | dict | None, "action_dim": int | None}
# and what a robot has only where it is said
ROBOT_OPTIONS = {"relative_actions": dict | str | None, "adapt_to_pi": bool}


# Whole numbers among the settings, and the lowest that makes sense
_LOWEST = {
    **{"chunk_size": 1, "max_action_dim": 1, "max_state_dim": 0, "action_token_skip": 0, "max_length": 1},
    **{"history": 1, "history_stride": 1},
}


def shortened(value, length: int = 200) -> str:
    """Return a value as text for a message, cut."""
    return str(value)[:length]


def check_settings(settings: dict) -> None:
    """Check the settings of a processor that is made.

    Raises:
        ValueError: a number that is none or out of its range, or something else than True or False.
    """
    for name, lowest in _LOWEST.items():
        value = settings[name]
        if name == "max_length" and value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or not lowest <= value <= 1 << 20:
            raise ValueError(f"{name} must be a whole number of at least {lowest}, got {value!r}.")
    for name, kind in SAVED_TYPES.items():
        if kind is bool and not isinstance(settings[name], bool):
            raise ValueError(f"{name} must be True or False, got {settings[name]!r}.")


def check_action_prompt(action_prompt: str, state_encoding: str) -> None:
    """Check which fields a prompt has.

    Raises:
        ValueError: the prompt has other fields than `{text}` and, where the state is text, `{state}`.
    """
    parts = [part[1:] for part in Formatter().parse(action_prompt) if part[1] is not None]
    if any(spec or conversion for _, spec, conversion in parts):  # a width could be any number
        raise ValueError(f"action_prompt must not format its fields, got {action_prompt!r}. Write {{text}} alone.")
    if {field for field, _, _ in parts} != ({"text", "state"} if state_encoding == "text" else {"text"}):
        raise ValueError(
            f'action_prompt must contain {{text}}, {{state}} exactly if state_encoding is "text", and nothing else in '
            f'braces; got {action_prompt!r} with state_encoding="{state_encoding}".'
        )


def check_saved(file: Path, settings: dict) -> None:
    """Check the settings of a processor on disk.

    Raises:
        ValueError: unknown or missing ones, or of a wrong type or size.
    """
    has_robots = "robots" in settings
    needed = {"action_tokenizer", *(() if has_robots else ROBOT_TYPES)}
    unknown, missing = (
        settings.keys() - SAVED_TYPES.keys() - ROBOT_TYPES.keys() - ROBOT_OPTIONS.keys(),
        needed - settings.keys(),
    )
    if unknown or missing:
        raise ValueError(
            f"{file} is damaged: unknown settings {shortened(sorted(unknown))}, missing {sorted(missing)}."
        )
    _check_types(file, settings, SAVED_TYPES)
    for robot in settings["robots"].values() if has_robots else [settings]:
        if not isinstance(robot, dict) or ROBOT_TYPES.keys() - robot.keys():
            raise ValueError(f"{file} is damaged: a robot is {shortened(robot)}.")
        _check_types(file, robot, ROBOT_TYPES | ROBOT_OPTIONS)
        if not all(isinstance(values, dict) for values in (robot["statistics"] or {}).values()):
            raise ValueError(f"{file} is damaged: statistics must be maps, got {shortened(robot['statistics'])}.")
        cameras = robot["cameras"] or []
        known_as = cameras.values() if isinstance(cameras, dict) else []
        if not all(isinstance(camera, str) for camera in [*cameras, *known_as]):
            raise ValueError(f"{file} is damaged: cameras must be names, got {shortened(robot['cameras'])}.")


def _check_types(file: Path, values: dict, types: dict) -> None:
    for name in types.keys() & values.keys():
        value, wanted = values[name], types[name]
        is_right = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
        if not is_right or (isinstance(value, int) and not 0 <= value <= 1 << 20):
            raise ValueError(f"{file} is damaged: {name} is {shortened(value)}.")


def check_prompts(saved: Mapping, names: Sequence[str]) -> None:
    """Check `prompt_frames` on disk: by number of images, or letters of images and videos, texts of these names.

    Raises:
        ValueError: something else, or none for one image.
    """
    for number, texts in saved.items():
        is_number = (number.isdecimal() and len(number) < 6) or (0 < len(number) < 1000 and set(number) <= {"i", "v"})
        is_map = isinstance(texts, dict) and sorted(texts) == sorted(names)
        if not (is_number and is_map and all(isinstance(text, str) for text in texts.values()) and texts["closing"]):
            raise ValueError(
                f"prompt_frames of {shortened(number, 20)!r} images must be texts for {list(names)}, got "
                f"{shortened(texts)}."
            )
    if "1" not in saved:
        raise ValueError(f"prompt_frames lacks the frame of one image; it has those of {shortened(sorted(saved))}.")


def check_fast(scale, vocab_size, min_token) -> None:
    """Check the settings of a FAST tokenizer.

    Raises:
        ValueError: these cannot be the settings of a FAST tokenizer.
    """
    if not _is_number(scale) or not 0 < scale < 1e9:
        raise ValueError(f"scale must be positive, got {shortened(scale)}.")
    if not _is_count(vocab_size, 1 << 20) or not _is_count(abs(min_token) if _is_number(min_token) else None, 1 << 30):
        raise ValueError(
            f"vocab_size and min_token must be whole numbers, got {shortened(vocab_size)}, {shortened(min_token)}."
        )


def check_bins(num_bins, low, high) -> None:
    """Check the settings of bins.

    Raises:
        ValueError: these cannot be the settings of bins.
    """
    numbers = _is_count(num_bins, 1 << 20) and _is_number(low) and _is_number(high)
    if not numbers or num_bins < 2 or not -1e30 < low < high < 1e30:
        given = ", ".join(shortened(value, 100) for value in (num_bins, low, high))
        raise ValueError(f"Need a whole num_bins >= 2 and finite low < high, got {given}.")


def check_names(values: Mapping, names: Sequence[str]) -> None:
    """Check that a map has these names.

    Raises:
        ValueError: some of these names are missing.
    """
    if missing := sorted(set(names) - values.keys()):
        raise ValueError(f"it lacks {missing}.")


def parse_tokenizer(text: str) -> Tokenizer:
    """Read the `tokenizer.json` of the tokenizers library.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with panics_as_errors():
            return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"its tokenizer is damaged: {error}") from error


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a `ValueError` where the library `tokenizers` panics.

    It is Rust: over a file that breaks its assumptions it raises what is not even an `Exception`.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise ValueError(str(error)) from error


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_count(value, limit: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= value <= limit


__all__ = [
    "ROBOT_TYPES",
    "check_action_prompt",
    "check_bins",
    "check_fast",
    "check_names",
    "check_prompts",
    "check_saved",
    "check_settings",
    "panics_as_errors",
    "parse_tokenizer",
    "shortened",
]

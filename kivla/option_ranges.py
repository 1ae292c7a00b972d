"""Which numbers the options of the commands take, by their names; told before anything is read or written.

What counts something is 1 or more, any other number is finite and not negative; the tables below have the exceptions.
Options of transformers' Trainer have the library's own meanings, and `kivla train` checks those that matter.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import Field, fields

# Counts of which none is possible, too; places, which begin with 0; and seeds
_FROM_ZERO = {
    *("latency_steps", "num_videos", "num_question_scenes", "max_waiting", "rtc_max_delay", "action_token_skip"),
    *("warmup_steps", "warmup_steps_before", "alignment_steps", "plot_episode", "port"),
    *("seed", "seeds", "first_seed", "pilot_seed"),
}
_ABOVE_ZERO = {
    *(
        "action_scale",
        "scales",
        "expert_initializer_range",
        "expert_precision",
        "max_parameter_share",
        "max_step_share",
    ),
    *("max_message_mb", "max_observation_age_ms", "minutes", "stream_gb", "target_success", "tolerance_s"),
}
_SHARES = {"backbone_gradient_scale", "empty_grips", "question_share", "text_share", "vlm_share", "target_success"}
_ANY = {"state", "vision_feature_layer"}  # of which a negative one means something


def check_ranges(options) -> None:
    """Check every number among a command's options.

    Args:
        options: a dataclass with the values.

    Raises:
        ValueError: naming the first option that has a number it cannot have, and what it can.
    """
    for field in fields(options):
        if "str" in str(field.type):  # numbers of episodes, for one, which are words before they are read
            continue
        of_library, is_float = _is_of_library(type(options), field), "float" in str(field.type)
        for number in _numbers(getattr(options, field.name)):
            if is_float and not math.isfinite(number):
                raise ValueError(f"--{field.name} must be a finite number, got {number}.")
            if of_library or field.name in _ANY:
                continue
            if field.name in _SHARES and number > 1:
                raise ValueError(f"--{field.name} is a share, at most 1, got {number:g}.")
            if field.name in _ABOVE_ZERO and number <= 0:
                raise ValueError(f"--{field.name} must be above 0, got {number:g}.")
            least = 0 if is_float or field.name in _FROM_ZERO else 1
            if number < least:
                what = "must not be negative" if least == 0 else "must be at least 1"
                raise ValueError(f"--{field.name} {what}, got {number:g}.")


def _numbers(value) -> Iterator[float]:
    """The numbers of an option: itself, or those of its list."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, int | float) and not isinstance(one, bool):
            yield one


def _is_of_library(kind: type, field: Field) -> bool:
    """Whether transformers declares an option of this name, which ours may have another default for."""
    theirs = [base for base in kind.__mro__ if base.__module__.startswith("transformers.")]
    return any(field.name in inspect.get_annotations(base) for base in theirs)


__all__ = ["check_ranges"]

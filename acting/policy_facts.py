"""What a policy says of itself to the executors; of a plain function nothing is known."""

from collections.abc import Callable

import numpy as np

from .chunk_schedule import RTC_METHODS


def check_settings(policy, way: str, hold: Callable[[np.ndarray], np.ndarray] | None) -> None:
    """Refuse before the robot moves what would fail at every step.

    Args:
        policy: it may have the methods `check_rtc`, which raises where it cannot do real-time chunking by a method, and
            `check_averaging`, which raises where its chunks have no mean.

    Raises:
        ValueError: the policy cannot act this way, or `hold` is no function.
    """
    if hold is not None and not callable(hold):
        raise ValueError(f"hold must be a function of the last command, got {hold!r}.")
    check_rtc = getattr(policy, "check_rtc", None)
    if way in RTC_METHODS and check_rtc is not None:
        check_rtc(RTC_METHODS[way])
    check_averaging = getattr(policy, "check_averaging", None)
    if way == "ensemble" and check_averaging is not None:
        check_averaging()


def max_delay_of(policy, way: str) -> int | None:
    """The largest delay that a policy can act with, by its own word (`policy.max_delay`); None for any."""
    return getattr(policy, "max_delay", None) if way == "rtc-trained" else None


__all__ = ["check_settings", "max_delay_of"]

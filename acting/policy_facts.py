"""What a policy says of itself to the executors; of a plain function nothing is known."""

from collections.abc import Callable, Mapping

import numpy as np

from .limits import ActionLimits


def check_settings(
    policy,
    way: str,
    hold: Callable[[np.ndarray], np.ndarray] | None,
    limits: ActionLimits | None,
    options: Mapping,
) -> None:
    """Refuse before the robot moves what would fail at every step, or turn a joint the long way round.

    Args:
        policy: as in `check_way`. It may have a method `check_options`, which raises where it cannot be called with
            such options, and `wrapping_angles`: of each of its robots the dimensions of actions that are angles which
            wrap, and their range.
        options: of every call.

    Raises:
        ValueError: the policy cannot act this way, `limits` do not know its angles, or `hold` is no function.
        TypeError: the policy has no such option.
    """
    if hold is not None and not callable(hold):
        raise ValueError(f"hold must be a function of the last command, got {hold!r}.")
    check_options = getattr(policy, "check_options", None)
    if check_options is not None:
        check_options(**options)
    check_way(policy, way)
    if limits is not None:
        _check_wraps(limits, getattr(policy, "wrapping_angles", []))


def check_way(policy, way: str) -> None:
    """
    Args:
        policy: it may have a method `check_averaging`, which raises where its chunks have no mean.

    Raises:
        ValueError: the policy cannot act this way.
    """
    check_averaging = getattr(policy, "check_averaging", None)
    if way == "ensemble" and check_averaging is not None:
        check_averaging()


def _check_wraps(limits: ActionLimits, of_robots: list[dict[int, tuple[float, float]]]) -> None:
    """
    Raises:
        ValueError: the limits are those of none of the robots.
    """
    refused = []
    for wraps in of_robots:
        try:
            limits.check_wraps(wraps)
        except ValueError as error:
            refused.append(error)
    if refused and len(refused) == len(of_robots):
        raise refused[0]


def max_delay_of(policy, way: str) -> int | None:
    """The largest delay that a policy can act with, by its own word (`policy.max_delay`); None for any."""
    return getattr(policy, "max_delay", None) if way == "rtc-trained" else None


__all__ = ["check_settings", "max_delay_of"]

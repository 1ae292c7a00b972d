"""What LeRobot's real-time chunking hands back of a chunk."""

import numpy as np


def without_padding(actions: np.ndarray) -> np.ndarray:
    """The rows that are actions, (n, action_dim): LeRobot fills up what is left of a chunk to a fixed length.

    It repeats the last action, and in older versions it adds zeros, which would be a command in robot units: both kinds
    of rows are taken off at the end. A policy's own chunk hardly ever ends in two equal actions, and where it does, the
    new chunk only loses a hint.
    """
    is_real = actions.any(axis=1)  # (n,)
    is_real[1:] &= (actions[1:] != actions[:-1]).any(axis=1)
    return actions[: len(actions) - int(np.argmax(is_real[::-1]))] if is_real.any() else actions[:0]


__all__ = ["without_padding"]

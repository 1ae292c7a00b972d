"""openpi's `adapt_to_pi`: the units of an ALOHA robot, and those that π0 and π0.5 were pretrained in.

Each arm has six joints and a gripper. Two joints turn the other way. The gripper is a position between its ends for
ALOHA and an angle for π0; state and action of it have different units, as in openpi (`aloha_policy.py`).
"""

import numpy as np

ALOHA_DIM = 14
_SIGNS = np.array([1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0] * 2)
_GRIPPERS = [6, 13]
# Of a follower's gripper, metres: how far its fingers are from each other, closed and open
_CLOSED_POSITION, _OPEN_POSITION = 0.01844, 0.05800
# Of its linkage, metres (Interbotix)
_ARM_LENGTH, _HORN_RADIUS = 0.036, 0.022
# π0's gripper runs over the encoder counts 2405 to 3110 of 4096, with zero at 2048: radians
_PI_CLOSED, _PI_OPEN = 0.5476, 1.6296
# ALOHA's commands for a gripper, radians, closed and open
_CLOSED_JOINT, _OPEN_JOINT = -0.6213, 1.4910


def state_to_pi(state: np.ndarray) -> np.ndarray:
    """A state (..., 14) of ALOHA in π0's units."""
    flipped = _checked(state) * _SIGNS
    position = flipped[..., _GRIPPERS] * (_OPEN_POSITION - _CLOSED_POSITION) + _CLOSED_POSITION
    sine = (_HORN_RADIUS**2 + position**2 - _ARM_LENGTH**2) / (2 * _HORN_RADIUS * position)
    angle = np.arcsin(np.clip(sine, -1.0, 1.0))
    flipped[..., _GRIPPERS] = (angle - _PI_CLOSED) / (_PI_OPEN - _PI_CLOSED)
    return flipped


def actions_to_pi(actions: np.ndarray) -> np.ndarray:
    """Actions (..., 14) of ALOHA in π0's units."""
    flipped = _checked(actions) * _SIGNS
    flipped[..., _GRIPPERS] = flipped[..., _GRIPPERS] * (_OPEN_JOINT - _CLOSED_JOINT) + _CLOSED_JOINT - _PI_CLOSED
    return flipped


def actions_from_pi(actions: np.ndarray) -> np.ndarray:
    """Inverse of `actions_to_pi`."""
    flipped = _checked(actions) * _SIGNS
    flipped[..., _GRIPPERS] = (flipped[..., _GRIPPERS] + _PI_CLOSED - _CLOSED_JOINT) / (_OPEN_JOINT - _CLOSED_JOINT)
    return flipped


def _checked(values: np.ndarray) -> np.ndarray:
    if values.shape[-1:] != (ALOHA_DIM,):
        raise ValueError(
            f"adapt_to_pi is for ALOHA, whose states and actions have {ALOHA_DIM} dimensions; got shape {values.shape}."
        )
    return values


__all__ = ["ALOHA_DIM", "actions_from_pi", "actions_to_pi", "state_to_pi"]

"""How things move on the moving tabletop: objects on tracks, and a gripper with inertia.

Units are table units and steps. Objects: an obstacle (index 0) in the middle, and two above it, left and right; one of
these two is asked for.
"""

import numpy as np

from ..tabletop.tasks import LIMIT

# Each object drifts to and fro on a horizontal track of its own, and turns back at both ends.
TRACKS = np.array([(-0.2, 0.2), (-0.75, -0.3), (0.3, 0.75)])  # (K, 2) smallest and largest x
ROWS = np.array([(-0.25, 0.15), (0.65, 0.8), (0.65, 0.8)])  # (K, 2) range of y
SPEEDS = (0.005, 0.012)  # table units a step
START = np.array([(-0.15, 0.15), (-0.95, -0.7)])  # (2, 2) ranges of the gripper's first x and y
ANYWHERE = np.array([(-0.8, 0.8), (-0.95, 0.8)])  # (2, 2) the same, for an episode that begins midway
TOUCH = 0.18  # from the gripper to an object's centre: it is touched

# The gripper takes on the velocity that it is told to, half of the difference in each step, by a limited force.
MAX_SPEED = 0.06  # table units a step, on each axis
RESPONSE = 0.5
MAX_ACCELERATION = 0.02


def drift(positions: np.ndarray, velocities: np.ndarray, steps: int | np.ndarray = 1) -> tuple[np.ndarray, np.ndarray]:
    """Where objects are after some steps, and how fast they then go along x.

    Args:
        positions: (N, K, 2).
        velocities: (N, K) along x.
        steps: one number, or (N, 1); below 0 for where they came from.
    """
    low, high = TRACKS.T
    length = high - low  # to and fro is a circle of twice this length
    there = positions[..., 0] - low
    on_circle = np.where(velocities > 0, there, 2 * length - there) + steps * np.abs(velocities)
    on_circle %= 2 * length
    moved = np.stack([low + np.minimum(on_circle, 2 * length - on_circle), positions[..., 1]], axis=-1)
    return moved, np.where(on_circle < length, 1, -1) * np.abs(velocities)


def glide(gripper: np.ndarray, velocity: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the gripper is one step later, and its velocity.

    Args:
        gripper, velocity: (N, 2) each.
        told: (N, 2), the velocity that it is to take, in [-1, 1] of the largest one.
    """
    change = RESPONSE * (MAX_SPEED * told - velocity)
    moved = gripper + velocity + np.clip(change, -MAX_ACCELERATION, MAX_ACCELERATION)
    moved = np.clip(moved, -LIMIT, LIMIT)
    return moved, moved - gripper  # at the edge it stops

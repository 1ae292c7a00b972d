"""The scripted expert of the moving tabletop: drive at the obstacle, go round it late, then meet the target.

It goes round on the left or on the right, whichever was drawn, until it has clearly left the middle. So the same
picture is followed by either, and a policy that learns from it has two ways to go on.
"""

import numpy as np

from .motion import MAX_SPEED, TOUCH, drift

TURN = 0.65  # so far below the obstacle it turns aside
PASS = TOUCH + 0.2  # from the obstacle's centre to where it passes
COMMITTED = 0.13  # so far from the middle, a side is a side
OBSTACLE = 0  # index of the object


def expert_actions(
    gripper: np.ndarray, positions: np.ndarray, velocities: np.ndarray, target: np.ndarray, sides: np.ndarray
) -> np.ndarray:
    """The velocity that the expert tells the gripper to take, (N, 2) in [-1, 1].

    Args:
        gripper: (N, 2).
        positions, velocities: (N, K, 2) and (N, K) of the objects.
        target: (N,) index of the object to touch.
        sides: (N,) -1 (left) or 1 (right), where it has not left the middle.
    """
    rows = np.arange(len(gripper))
    obstacle = positions[:, OBSTACLE]
    ahead = obstacle[:, 1] - gripper[:, 1]  # (N,) how far the obstacle's row still is
    offset = gripper[:, 0] - obstacle[:, 0]
    side = np.where(np.abs(offset) > COMMITTED, np.sign(offset), sides)

    # Before the obstacle: straight at it, then to the place beside it where it will be.
    steps = np.clip(ahead / MAX_SPEED, 0, None).round()
    then, _ = drift(positions, velocities, steps[:, None])
    beside = np.stack([then[:, OBSTACLE, 0] + side * PASS, obstacle[:, 1]], axis=-1)
    goal = np.where((ahead > TURN)[:, None], np.stack([obstacle[:, 0], obstacle[:, 1]], axis=-1), beside)
    # Once far enough aside, straight on until it is passed.
    clear = (ahead <= TURN) & (np.abs(offset) >= PASS - 0.05)
    goal = np.where(clear[:, None], gripper + np.array([0, 1]), goal)
    # Behind it: to where the target will be.
    passed = (ahead < -0.5 * TOUCH) | (target == OBSTACLE)
    distance = np.linalg.norm(positions[rows, target] - gripper, axis=-1)
    then, _ = drift(positions, velocities, (distance / MAX_SPEED).round()[:, None])
    goal = np.where(passed[:, None], then[rows, target], goal)

    way = (goal - gripper) / MAX_SPEED
    return (way / np.maximum(np.linalg.norm(way, axis=-1, keepdims=True), 1)).astype(np.float32)

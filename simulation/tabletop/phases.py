"""How far an episode has come: the phases of a task, so that a report can say where a policy fails.

| kinds | phases |
|---|---|
| touch | touched an object, touched the target first |
| touch_then_touch | touched an object, touched the first target first, touched the second one next |
| move, push, put | reached the target, closed on an object, held the target, carried it the right way, did as told |

A policy that closes its gripper where nothing is gets as far as "reached the target"; one that takes the wrong object
has closed on an object, and never holds the target.
"""

import numpy as np

from .scenes import Scene
from .tasks import REACH, TASK_KINDS, TOUCHING, History, Task, carry_goal

_OF_TOUCH = ("touched an object", "touched the target first")
_OF_TOUCH_TWICE = ("touched an object", "touched the first target first", "touched the second one next")
_OF_CARRYING = (
    "reached the target",
    "closed on an object",
    "held the target",
    "carried it the right way",
    "did as told",
)
PHASES = {
    "touch": _OF_TOUCH,
    "move": _OF_CARRYING,
    "push": _OF_CARRYING,
    "put": _OF_CARRYING,
    "touch_then_touch": _OF_TOUCH_TWICE,
}
MOST = max(len(phases) for phases in PHASES.values())
CARRIED = 1 / 3  # of the way from where the target lay to where it is to go


def phases_now(task: Task, scene: Scene, history: History, success: np.ndarray) -> np.ndarray:
    """Which phases each of N episodes is in or has behind it, (N, `MOST`) bool, in the order of `PHASES`.

    Some are about the moment (the gripper is at the target); whoever asks after every step knows which were reached.

    Args:
        success: (N,) bool, whether the task is fulfilled.
    """
    rows = np.arange(len(success))
    touched, right = history.first_touched >= 0, history.first_touched == task.target
    touching = [touched, right, success]  # of a single touch the third is not used

    position, goal = scene.positions[rows, task.target], carry_goal(task, scene, history)
    start = history.starts[rows, task.target]
    holds = scene.held == task.target
    left, whole = (np.linalg.norm(goal - point, axis=-1) for point in (position, start))
    carrying = [
        np.linalg.norm(position - scene.gripper, axis=-1) < REACH,
        history.first_held >= 0,
        history.first_held == task.target,
        holds & (left <= (1 - CARRIED) * whole),
        success,
    ]
    touching += [np.zeros(len(success), bool)] * (MOST - len(touching))
    is_touching = np.isin(task.kind, TOUCHING)[:, None]
    return np.where(is_touching, np.stack(touching, axis=-1), np.stack(carrying, axis=-1))


def by_name(kind: int, reached: np.ndarray) -> dict[str, bool]:
    """One episode's row of reached phases (`MOST`,) with their names, in order."""
    return {name: bool(value) for name, value in zip(PHASES[TASK_KINDS[kind]], reached, strict=False)}

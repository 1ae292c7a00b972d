"""The moving tabletop: what is asked for drifts and turns back, something is in the way, and the gripper has inertia.

The tabletop stands still, so a policy that thinks slowly loses nothing there. Here it does: `MovingTabletopVectorEnv`
has the tabletop's objects, sentences and pictures, and time passes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium
import numpy as np

from ..tabletop import tasks
from ..tabletop.env import TabletopEnv, TabletopVectorEnv
from ..tabletop.rendering import render
from ..tabletop.scenes import SEEN_PAIRS, Scene, sample_pairs
from . import expert
from .motion import ANYWHERE, MAX_SPEED, ROWS, SPEEDS, START, TOUCH, TRACKS, drift, glide

WAKE = 8  # every object leaves a faint image of where it was so many steps ago
TARGETS = (1, 2)  # indices of the objects that may be asked for
# What the state has beside the gripper's place, if all is tracked
TRACKED = (
    *("x_velocity", "y_velocity"),
    *("obstacle_x", "obstacle_y", "obstacle_x_velocity"),
    *("target_x", "target_y", "target_x_velocity"),
)


class MovingTabletopVectorEnv(TabletopVectorEnv):
    """N tables with two objects that drift to and fro, a third one in the way, and a gripper with inertia.

    The sentence says which of the two to touch. What is touched first decides. The obstacle lies in the middle of the
    way; the scripted expert goes round it on the left or on the right, as drawn for the scene, and turns aside late.
    So there are two good ways, and going from one over to the other ends at the obstacle.

    * action: float32 (N, 2), `dx` and `dy` in [-1, 1]: the velocity that the gripper is to take (0.06 table units a
      step at 1). It has inertia: it needs some steps to start, to stop and to turn.
    * observation: `{"images": {"top": uint8 (N, size, size, 3)}, "state": float32 (N, 2)}`. In the picture every object
      has a faint second image behind it, where it was eight steps ago. The state is the gripper's x and y; `tracked`,
      its velocity too, and place and velocity of the obstacle and of the object that was asked for, (N, 10).
    * reward, terminated, info and what a seed means: as `TabletopVectorEnv`'s. The swapped instruction asks for the
      other one of the two objects.

    Args:
        num_envs: N.
        midway: begin anywhere on the table, and moving. So demonstrations show how to go on from where a policy may get
            to, without a disturbance that makes what the expert does next a matter of chance.
        tracked: the state also says what a tracker would: how everything moves that the told sentence is about. So a
            small policy can be trained to act well in minutes, and what it loses by acting late is seen clearly.
        image_size: height and width of the camera's picture, in pixels; 24 or more.
        max_steps: after so many steps an unfinished table is truncated.
        render_mode: "rgb_array" for `render()`.
        render_size: height and width of `render()`'s pictures.

    Raises:
        ValueError: an argument is none of the above.
    """

    state_names: Sequence[str] = ["x", "y"]
    action_names: Sequence[str] = ["dx", "dy"]
    state_dim = action_dim = 2
    robot_type = "tabletop_gripper_with_inertia"

    def __init__(
        self,
        num_envs: int = 1,
        midway: bool = False,
        tracked: bool = False,
        image_size: int = 48,
        max_steps: int = 60,
        render_mode: str | None = None,
        render_size: int = 192,
    ):
        self.midway, self.tracked = midway, tracked
        if tracked:
            self.state_names = [*self.state_names, *TRACKED]
            self.state_dim = len(self.state_names)
        super().__init__(
            num_envs,
            num_objects=len(TRACKS),
            image_size=image_size,
            max_steps=max_steps,
            render_mode=render_mode,
            render_size=render_size,
        )
        self._declare_spaces(image_size, gymnasium.spaces.Box(-1, 1, (self.state_dim,), np.float32))

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict, dict]:
        seed = self._seeds(seed)
        # What a picture of the table does not show has a generator of its own: the scene is drawn by another one.
        rngs = [np.random.default_rng([s, 1]) for s in seed]
        speeds = np.stack([rng.uniform(*SPEEDS, size=len(TRACKS)) for rng in rngs])
        self.velocities = speeds * np.stack([rng.choice([-1, 1], size=len(TRACKS)) for rng in rngs])  # (N, K) along x
        self.sides = np.array([rng.choice([-1, 1]) for rng in rngs])  # where the expert goes round the obstacle
        self.gripper_velocity = np.zeros((len(seed), 2))
        if self.midway:
            self.gripper_velocity = np.stack([rng.uniform(-MAX_SPEED, MAX_SPEED, size=2) for rng in rngs])
        return super().reset(seed=seed, options=options)

    def expert_actions(self) -> np.ndarray:
        """The scripted expert's actions (N, 2) for what each table was told."""
        scene = self.scene
        return expert.expert_actions(scene.gripper, scene.positions, self.velocities, self.told_task.target, self.sides)

    def hold(self, actions: np.ndarray) -> np.ndarray:
        """The actions that stop the gripper, whatever the last ones (N, 2) were."""
        return np.zeros_like(actions)

    def _sample_episode(self, rng: np.random.Generator) -> tasks.Episode:
        colors, shapes = np.array(sample_pairs(rng, [SEEN_PAIRS] * len(TRACKS))).T
        positions = np.stack([rng.uniform(*TRACKS.T), rng.uniform(*ROWS.T)], axis=-1)  # (K, 2)
        gripper = rng.uniform(*(ANYWHERE if self.midway else START).T)
        while np.linalg.norm(positions - gripper, axis=-1).min() < TOUCH + 2 * MAX_SPEED:
            gripper = rng.uniform(*ANYWHERE.T)
        scene = Scene(colors, shapes, positions, gripper, np.array(False), np.array(-1))
        told, swapped = (tasks.possible_tasks(scene, "touch", target)[0] for target in rng.permutation(TARGETS))
        sentences = [tasks.phrase(rng, scene, task, self.split) for task in (told, swapped)]
        return tasks.Episode(scene, told, *sentences)

    def _move(self, actions: np.ndarray, active: np.ndarray) -> None:
        scene, where = self.scene, active[:, None]
        positions, velocities = drift(scene.positions, self.velocities)
        gripper, gripper_velocity = glide(scene.gripper, self.gripper_velocity, np.clip(actions, -1, 1))
        scene.positions = np.where(where[..., None], positions, scene.positions)
        scene.gripper = np.where(where, gripper, scene.gripper)
        self.velocities = np.where(where, velocities, self.velocities)
        self.gripper_velocity = np.where(where, gripper_velocity, self.gripper_velocity)
        self._touch(active, TOUCH)

    def _observe(self) -> dict:
        return {"images": {"top": self._picture(self.image_size)}, "state": self._state().astype(np.float32)}

    def _state(self) -> np.ndarray:
        """(N, state_dim)"""
        gripper = self.scene.gripper
        if not self.tracked:
            return gripper
        parts = [gripper, self.gripper_velocity]
        rows = np.arange(self.num_envs)
        for thing in (np.full(self.num_envs, expert.OBSTACLE), self.told_task.target):
            parts += [self.scene.positions[rows, thing], self.velocities[rows, thing, None]]
        return np.concatenate(parts, axis=-1)

    def render(self) -> tuple[np.ndarray, ...]:
        return tuple(self._picture(self.render_size))

    def _picture(self, size: int) -> np.ndarray:
        """(N, size, size, 3): the table, over a quarter of what it looked like some steps ago."""
        now = render(self.scene, size)
        before, _ = drift(self.scene.positions, self.velocities, -WAKE)
        then = render(replace(self.scene, positions=before), size)
        return ((3 * now.astype(np.uint16) + then + 2) // 4).astype(np.uint8)


class MovingTabletopEnv(TabletopEnv):
    """One table: `MovingTabletopVectorEnv` with N = 1, without the leading dimension.

    `gymnasium.make("KIVLA/MovingTabletop-v0")`.

    Args:
        options: as `MovingTabletopVectorEnv`'s.
    """

    tables: ClassVar[type[TabletopVectorEnv]] = MovingTabletopVectorEnv

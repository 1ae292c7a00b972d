"""Meta-World's faucet: one scene, two instructions, and only the sentence says which way to turn the handle.

Needs `pip install "kivla[metaworld]"`. MuJoCo draws without a display: by EGL on Linux (Debian and Ubuntu:
`apt install libegl1 libgl1-mesa-dri`, enough without a GPU), or, with `MUJOCO_GL=osmesa` in the environment, by OSMesa
(`apt install libosmesa6`).
"""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # is read when mujoco is imported; its own default needs a display

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

try:
    import mujoco
except ModuleNotFoundError as error:
    raise ImportError("Meta-World is not installed. Install it with `pip install 'kivla[metaworld]'`.") from error
except AttributeError as error:  # of PyOpenGL, far from the cause
    raise ImportError(
        f"MuJoCo found no library to draw with (MUJOCO_GL={os.environ.get('MUJOCO_GL')}). On Debian and Ubuntu install "
        "one with `apt install libegl1 libgl1-mesa-dri`; or with `apt install libosmesa6`, and set MUJOCO_GL=osmesa."
    ) from error
from metaworld.asset_path_utils import full_V3_path_for
from metaworld.policies import SawyerFaucetCloseV3Policy, SawyerFaucetOpenV3Policy
from metaworld.policies.policy import Policy

from .vector_env import OneCameraVectorEnv


@dataclass(frozen=True)
class Task:
    """One of Meta-World's tasks.

    Attributes:
        name: Meta-World's.
        instruction: what the policy is told.
        expert: Meta-World's scripted policy.
        site: the point of the handle that this expert is shown.
        offset: from there to the point that must reach the target.
        target: where, seen from the faucet's foot.
    """

    name: str
    instruction: str
    expert: Policy
    site: str
    offset: tuple[float, float, float]
    target: tuple[float, float, float]


TASKS = (
    Task(
        name="faucet-open-v3",
        instruction="open the faucet",
        expert=SawyerFaucetOpenV3Policy(),
        site="handleStartOpen",
        offset=(-0.04, 0.0, 0.03),
        target=(0.175, 0.0, 0.125),
    ),
    Task(
        name="faucet-close-v3",
        instruction="close the faucet",
        expert=SawyerFaucetCloseV3Policy(),
        site="handleStartClose",
        offset=(0.0, 0.0, 0.0),
        target=(-0.175, 0.0, 0.125),
    ),
)

# As in Meta-World's environments of both tasks, in metres.
TARGET_RADIUS = 0.07
FAUCET_LOW, FAUCET_HIGH = np.array([-0.05, 0.8, 0.0]), np.array([0.05, 0.85, 0.0])  # what both tasks' ranges share
HAND_START = np.array([0.0, 0.4, 0.2])
HAND_LOW, HAND_HIGH = np.array([-0.5, 0.4, -0.15]), np.array([0.5, 1.0, 0.5])
HAND_QUATERNION = np.array([1.0, 0.0, 1.0, 0.0])  # the gripper points down
SUBSTEPS = 5  # of MuJoCo's 2.5 ms in a step of Meta-World
CONTROL_RATE = 80  # Meta-World's steps per second
ACTION_SCALE = 0.01  # metres that an action of size 1 moves the hand's target in a step of Meta-World
EXPERT_GAIN = 0.25  # of the way to its goal that Meta-World's expert goes in one of its steps


class MetaWorldVectorEnv(OneCameraVectorEnv):
    """N Sawyer arms before a faucet, to be opened or closed.

    Meta-World's `faucet-open-v3` and `faucet-close-v3` are two environments with the same MuJoCo scene, in which the
    handle starts in the middle. Here they are one: place of the faucet, start of the hand and picture are drawn in the
    same way for both instructions, and either can be followed. So the first picture and state tell nothing about the
    task, and a policy that does not read is right half of the time.

    Success is decided by Meta-World's criteria, each about a point of the handle that must come within 7 cm of a
    target: that of "open the faucet" lies on the side of +x (the handle has then turned by about 1.4 rad), that of
    "close the faucet" on the side of -x. Both are asked after every step, whatever the instruction, and the first that
    is met decides the episode: its task succeeded, the other failed.

    * action: float32 (N, 4), `dx`, `dy`, `dz` in [-1, 1] (`action_repeat` cm each) and `grip`: from open at -1 to
      closed at 1. It is repeated for `action_repeat` of Meta-World's steps of 1/80 s.
    * observation: `{"images": {"front": uint8 (N, size, size, 3)}, "state": float32 (N, 4)}`. The camera looks at
      faucet and robot from the other side of the table. The state is what the arm knows of itself: the hand's
      position in metres, and the gripper's opening in [0, 1].
    * reward: 1 at the step that fulfils the instruction, else 0.
    * terminated: one of the two criteria is met. A finished copy keeps its state and ignores actions until the next
      reset; there is no automatic reset.
    * info: `instruction` and `swapped_instruction` (the other of the two), lists of N sentences; `success` (N,) about
      the scene's own instruction; `swapped_success` (N,) about the sentence given in its place.

    A copy depends on its seed alone, not on the others.

    Args:
        num_envs: N.
        tasks: the tasks to draw a scene's own instruction from; the swapped one is always the other.
        image_size: height and width of the camera's picture, in pixels.
        action_repeat: steps of Meta-World for each action; `fps` is 80 / action_repeat. The expert needs about
            65 steps with 1, and 16 with 4.
        max_steps: after so many steps an unfinished copy is truncated.

    Raises:
        ValueError: an argument is none of the above.
    """

    metadata: ClassVar = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}
    cameras: Sequence[str] = ["front"]
    state_names: Sequence[str] = ["x", "y", "z", "opening"]
    action_names: Sequence[str] = ["dx", "dy", "dz", "grip"]
    state_dim = action_dim = 4
    robot_type = "sawyer"

    def __init__(
        self,
        num_envs: int = 1,
        tasks: Sequence[str] = ("faucet-open-v3", "faucet-close-v3"),
        image_size: int = 64,
        action_repeat: int = 4,
        max_steps: int = 50,
    ):
        names = [task.name for task in TASKS]
        if not tasks or isinstance(tasks, str) or not set(tasks) <= set(names):
            raise ValueError(f"tasks={tasks!r}: give a list of one or more of {', '.join(names)}.")
        if num_envs < 1 or image_size < 1 or max_steps < 1:
            raise ValueError(
                f"Got num_envs={num_envs}, image_size={image_size}, max_steps={max_steps}: each must be 1 or more."
            )
        if action_repeat < 1 or CONTROL_RATE % action_repeat:
            raise ValueError(
                f"action_repeat={action_repeat}: use a divisor of {CONTROL_RATE}, so that there is a whole number of "
                "actions per second."
            )
        self.num_envs, self.image_size, self.max_steps = num_envs, image_size, max_steps
        self.drawn_tasks = [names.index(name) for name in tasks]
        self.action_repeat = action_repeat
        self.fps = CONTROL_RATE // action_repeat

        # One model for all scenes, a state for each.
        self.model = _load_model()
        self.data = [mujoco.MjData(self.model) for _ in range(num_envs)]
        self.renderer = mujoco.Renderer(self.model, image_size, image_size)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.renderer.scene.flags[flag] = False
        self.camera, self.view_options = _front_camera(), mujoco.MjvOption()
        self.view_options.sitegroup[:] = 0  # Meta-World marks its targets

        state = gymnasium.spaces.Box(-np.inf, np.inf, (self.state_dim,), np.float32)
        self._declare_spaces(image_size, state)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict, dict]:
        """Start a new episode in every copy, each in a new scene.

        Args:
            seed: one seed per copy, or an int s for s, s + 1, ...; None draws them.
            options: `{"instruction": [N sentences]}` tells these in place of the scenes' own, and the expert follows
                them. A sentence that is none of the two is told all the same: `swapped_success` then stays False.

        Raises:
            ValueError: the number of seeds or sentences is not N, or an option is unknown.
        """
        seed = self._seeds(seed)
        if unknown := set(options or ()) - {"instruction"}:
            raise ValueError(f"Unknown reset options {sorted(unknown)}: only 'instruction' is known.")
        told = (options or {}).get("instruction")
        for what, values in (("seeds", seed), ("instructions", told)):
            if values is not None and len(values) != self.num_envs:
                raise ValueError(f"Got {len(values)} {what} for {self.num_envs} scenes: give one for each.")

        generators = [np.random.default_rng(s) for s in seed]
        self.faucets = np.stack([generator.uniform(FAUCET_LOW, FAUCET_HIGH) for generator in generators])  # (N, 3)
        self.task = np.array([generator.choice(self.drawn_tasks) for generator in generators])  # decides success
        self.instructions = [TASKS[task].instruction for task in self.task] if told is None else list(told)
        sentences = [task.instruction for task in TASKS]
        # What the expert follows; -1 if it does not understand
        self.told_task = np.array([sentences.index(text) if text in sentences else -1 for text in self.instructions])
        self.fulfilled = np.full(self.num_envs, -1)  # the task that was done, -1 as long as there is none
        self.steps = np.zeros(self.num_envs, dtype=int)
        self.images = np.zeros((self.num_envs, self.image_size, self.image_size, 3), dtype=np.uint8)
        for i in range(self.num_envs):
            mujoco.mj_resetData(self.model, self.data[i])
            self.data[i].mocap_pos[0] = HAND_START
            self._simulate(i, np.array([0.0, 0.0, 0.0, -1.0]), steps=50)  # as Meta-World, until the hand is there
            self._render(i)
        return self._observe(), self._info()

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One step of every unfinished copy.

        Raises:
            ValueError: actions are not (N, 4), or not finite.
        """
        actions = self._checked(actions)
        active = np.flatnonzero(~(self._terminated() | self._truncated()))
        for i in active:
            self._simulate(i, np.clip(actions[i], -1, 1), self.action_repeat)
            self._render(i)
            self.fulfilled[i] = self._fulfilled(i)
        self.steps[active] += 1
        reward = np.zeros(self.num_envs)
        reward[active] = self.fulfilled[active] == self.task[active]
        return self._observe(), reward, self._terminated(), self._truncated(), self._info()

    def expert_actions(self) -> np.ndarray:
        """What Meta-World's scripted policies do about what each copy was told, (N, 4).

        Raises:
            ValueError: a copy was told something else than the two instructions.
        """
        if (self.told_task < 0).any():
            index = int(np.flatnonzero(self.told_task < 0)[0])
            raise ValueError(f"The expert cannot follow {self.instructions[index]!r}, told to copy {index}.")
        actions = np.zeros((self.num_envs, self.action_dim))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constant.s. may be too high")  # about actions to be clipped
            for i, task in enumerate(self.told_task):
                observation = np.zeros(39)  # of which the experts read the hand and the handle
                observation[:3] = self.data[i].body("hand").xpos
                observation[4:7] = self._handle(i, TASKS[task])
                actions[i] = TASKS[task].expert.get_action(observation)
        # So many of its steps, each a part of the way that then remains. Repeating the first would overshoot.
        repeated = (1 - (1 - EXPERT_GAIN) ** self.action_repeat) / EXPERT_GAIN
        actions[:, :3] *= repeated / self.action_repeat
        return np.clip(actions, -1, 1).astype(np.float32)

    def close_extras(self, **kwargs: Any) -> None:
        self.renderer.close()

    def _simulate(self, i: int, action: np.ndarray, steps: int) -> None:
        """Run a number of Meta-World's steps."""
        data = self.data[i]
        self.model.body("faucetBase").pos = self.faucets[i]  # the model is shared by all copies
        data.mocap_quat[0] = HAND_QUATERNION
        data.ctrl[:] = action[3], -action[3]
        for _ in range(steps):
            data.mocap_pos[0] = np.clip(data.mocap_pos[0] + ACTION_SCALE * action[:3], HAND_LOW, HAND_HIGH)
            mujoco.mj_step(self.model, data, SUBSTEPS)
        mujoco.mj_forward(self.model, data)  # positions of bodies and sites after the last step

    def _render(self, i: int) -> None:
        self.renderer.update_scene(self.data[i], self.camera, self.view_options)
        self.renderer.render(out=self.images[i])

    def _handle(self, i: int, task: Task) -> np.ndarray:
        """The place of the handle, as Meta-World observes it in this task."""
        return self.data[i].site(task.site).xpos - [0.0, 0.0, 0.01]

    def _fulfilled(self, i: int) -> int:
        """The index of the task whose criterion is met; -1 if none is."""
        for index, task in enumerate(TASKS):
            missing = self._handle(i, task) + task.offset - (self.faucets[i] + task.target)
            if np.linalg.norm(missing) <= TARGET_RADIUS:
                return index
        return -1

    def _terminated(self) -> np.ndarray:
        return self.fulfilled >= 0

    def _truncated(self) -> np.ndarray:
        return (self.steps >= self.max_steps) & ~self._terminated()

    def _observe(self) -> dict:
        state = np.zeros((self.num_envs, self.state_dim), dtype=np.float32)
        for i, data in enumerate(self.data):
            opening = np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos) / 0.1
            state[i] = *data.body("hand").xpos, min(opening, 1.0)
        return {"images": {"front": self.images.copy()}, "state": state}

    def _info(self) -> dict:
        return {
            "instruction": list(self.instructions),
            "swapped_instruction": [TASKS[1 - task].instruction for task in self.task],
            "success": self.fulfilled == self.task,
            "swapped_success": self._terminated() & (self.fulfilled == self.told_task),
        }


def _load_model() -> mujoco.MjModel:
    model = mujoco.MjModel.from_xml_path(full_V3_path_for("sawyer_xyz/sawyer_faucet.xml"))
    # As Meta-World: the weld between the hand and the point it follows, without offset
    model.eq_data[0] = [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5]
    # Most of the time of drawing without a GPU would be shadows and multisampling.
    model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
    return model


def _front_camera() -> mujoco.MjvCamera:
    """A camera so near that the handle is more than ten of 64 pixels long; in Meta-World's views it is two wide."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = 0.0, 0.62, 0.12
    camera.distance, camera.azimuth, camera.elevation = 0.76, 270.0, -45.0
    return camera

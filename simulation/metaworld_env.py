"""Meta-World's Sawyer: scenes with two instructions each, and only the sentence says which way to move the handle.

Needs `pip install "kivla[metaworld]"`. MuJoCo draws without a display: by EGL on Linux (Debian and Ubuntu:
`apt install libegl1 libgl1-mesa-dri`, enough without a GPU), or, with `MUJOCO_GL=osmesa` in the environment, by OSMesa
(`apt install libosmesa6`).
"""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

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
from metaworld import policies
from metaworld.asset_path_utils import full_V3_path_for

from .vector_env import OneCameraVectorEnv

# As in Meta-World's environments, in metres.
HAND_LOW, HAND_HIGH = np.array([-0.5, 0.4, -0.15]), np.array([0.5, 1.0, 0.5])
HAND_QUATERNION = np.array([1.0, 0.0, 1.0, 0.0])  # the gripper points down
HANDLE_JOINT = 9  # in MuJoCo's positions, after seven of the arm and two of the gripper
SUBSTEPS = 5  # of MuJoCo's 2.5 ms in a step of Meta-World
CONTROL_RATE = 80  # Meta-World's steps per second
ACTION_SCALE = 0.01  # metres that an action of size 1 moves the hand's target in a step of Meta-World
EXPERT_GAIN = 0.25  # of the way to its goal that Meta-World's expert goes in one of its steps

# Phases of an episode, about what the copy was told; the last is its success
PHASES = ("reached the handle", "moved it the right way", "did as told")
NEAR = 0.06  # metres between the fingers' tips and the point of the handle that the expert is shown: it is reached
TOUCHED, MOVED = 0.1, 1 / 3  # of the handle's way to where it is to go: it was touched, and moved the right way


class Expert(Protocol):
    """One of Meta-World's scripted policies, or our own: of its observations (39,) it reads the hand and the handle."""

    def get_action(self, obs: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Scene:
    """What two tasks have in common. Its handle starts between the ends that they ask for.

    Attributes:
        file: Meta-World's model.
        body: what is placed in it, uniformly between `low` and `high` (metres), as Meta-World does in both tasks.
        start: of the handle's joint, in metres or radians.
        hand: where the hand begins.
        lookat, distance, azimuth, elevation: of the camera, so near that the handle is seen.
    """

    file: str
    body: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    start: float
    hand: tuple[float, float, float] = (0.0, 0.6, 0.2)
    lookat: tuple[float, float, float] = (0.0, 0.74, 0.12)
    distance: float = 0.8
    azimuth: float = 130.0
    elevation: float = -35.0


SCENES = {
    # From the other side of the table. In Meta-World's views the handle is two of 64 pixels wide, here more than ten.
    "faucet": Scene(
        "sawyer_faucet", "faucetBase", (-0.05, 0.8, 0.0), (0.05, 0.85, 0.0), start=0.0, hand=(0.0, 0.4, 0.2),
        lookat=(0.0, 0.62, 0.12), distance=0.76, azimuth=270.0, elevation=-45.0,
    ),
    "drawer": Scene("sawyer_drawer", "drawer", (-0.1, 0.9, 0.0), (0.1, 0.9, 0.0), start=-0.08),
    "window": Scene(
        "sawyer_window_horizontal", "window", (-0.1, 0.75, 0.16), (0.0, 0.9, 0.16), start=0.1, hand=(0.0, 0.4, 0.2)
    ),
    "lock": Scene("sawyer_door_lock", "door", (-0.1, 0.8, 0.15), (0.1, 0.85, 0.15), start=0.785),
    "handle": Scene("sawyer_handle_press", "box", (-0.1, 0.8, 0.0), (0.1, 0.9, 0.0), start=-0.05),
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What may be asked of a scene.

    Attributes:
        name: Meta-World's name of the task.
        instruction: what the policy is told.
        scene: of `SCENES`.
        expert: who does it.
        handle: the point of the handle that this expert is shown, from MuJoCo's data.
        end: of the handle's joint: where it is to go, in metres or radians.
        done: the task is done when the joint is at least so near to this end, in its unit. In the faucet `target` is
            asked instead, Meta-World's own criterion.
        target: (3,) from the faucet's foot, where the point `offset` from the handle must come within `TARGET_RADIUS`.
    """

    name: str
    instruction: str
    scene: str
    expert: Expert
    handle: Callable[[mujoco.MjData], np.ndarray]
    end: float
    done: float | None = None
    target: tuple[float, float, float] | None = None
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


TARGET_RADIUS = 0.07


BEFORE, UNDER, LIFT = np.array([(0.0, -0.12, 0.0), (0.0, -0.04, 0.0), (0.0, 0.0, 0.1)])  # metres, from the handle


class _PullsHandle:
    """Takes the handle from below and lifts it. Meta-World's own expert comes from above, and would press it down."""

    def get_action(self, obs: np.ndarray) -> np.ndarray:
        hand, handle = obs[:3], obs[4:7]
        before, under = handle + BEFORE, handle + UNDER
        is_beside, is_high = abs(hand[0] - handle[0]) > 0.02, abs(hand[2] - handle[2]) > 0.02
        if hand[1] > handle[1] - 0.06 and hand[2] < handle[2] + 0.02 and abs(hand[0] - handle[0]) < 0.03:
            goal = under + LIFT
        elif is_beside or is_high:  # first before it, then down to its height
            is_far = abs(hand[1] - before[1]) > 0.04
            goal = np.array([*before[:2], max(hand[2], handle[2])]) if is_far else before
        else:
            goal = under
        return np.append(25.0 * (goal - hand), 1.0)


def _site(name: str, *offset: float) -> Callable[[mujoco.MjData], np.ndarray]:
    shift = np.array(offset or (0.0, 0.0, 0.0))
    return lambda data: data.site(name).xpos + shift


def _drawer(height: float) -> Callable[[mujoco.MjData], np.ndarray]:
    shift = np.array([0.0, -0.16, height])
    return lambda data: data.body("drawer_link").xpos + shift


TASKS = (
    Task(
        "faucet-open-v3", "open the faucet", "faucet", policies.SawyerFaucetOpenV3Policy(),
        _site("handleStartOpen", 0.0, 0.0, -0.01), end=1.4, target=(0.175, 0.0, 0.125), offset=(-0.04, 0.0, 0.03),
    ),
    Task(
        "faucet-close-v3", "close the faucet", "faucet", policies.SawyerFaucetCloseV3Policy(),
        _site("handleStartClose", 0.0, 0.0, -0.01), end=-1.4, target=(-0.175, 0.0, 0.125),
    ),
    Task(
        "drawer-open-v3", "open the drawer", "drawer", policies.SawyerDrawerOpenV3Policy(),
        _drawer(0.0), end=-0.16, done=0.02,
    ),
    Task(
        "drawer-close-v3", "close the drawer", "drawer", policies.SawyerDrawerCloseV3Policy(),
        _drawer(0.05), end=0.0, done=0.02,
    ),
    Task(
        "window-open-v3", "open the window", "window", policies.SawyerWindowOpenV3Policy(),
        _site("handleOpenStart"), end=0.2, done=0.04,
    ),
    Task(
        "window-close-v3", "close the window", "window", policies.SawyerWindowCloseV3Policy(),
        _site("handleCloseStart"), end=0.0, done=0.04,
    ),
    Task(
        "door-lock-v3", "lock the door", "lock", policies.SawyerDoorLockV3Policy(),
        _site("lockStartLock"), end=1.57, done=0.32,
    ),
    Task(
        "door-unlock-v3", "unlock the door", "lock", policies.SawyerDoorUnlockV3Policy(),
        _site("lockStartUnlock"), end=0.0, done=0.32,
    ),
    Task(
        "handle-press-v3", "press the handle down", "handle", policies.SawyerHandlePressV3Policy(),
        _site("handleStart"), end=-0.1, done=0.02,
    ),
    Task(
        "handle-pull-v3", "pull the handle up", "handle", _PullsHandle(),
        _site("handleRight"), end=0.0, done=0.02,
    ),
)  # fmt: skip
FAUCET = tuple(task.name for task in TASKS if task.scene == "faucet")
ALL = "all"
SWAPPED = [next(j for j, other in enumerate(TASKS) if other.scene == task.scene and other != task) for task in TASKS]


class MetaWorldVectorEnv(OneCameraVectorEnv):
    """N Sawyer arms, each before something with a handle that can be moved either way.

    Every scene has two tasks of Meta-World, which are two environments there: to open or to close the faucet, the
    drawer or the window, to lock or to unlock the door, to press the handle down or to pull it up. Here they are one.
    The handle starts between both ends; its place, start of the hand and picture are drawn in the same way for both
    instructions, and either can be followed. So the first picture and state tell nothing about the task, and a policy
    that does not read is right half of the time. (Meta-World's own tasks but the faucet's begin at the other end, where
    the picture tells the task, and the opposite is done already.)

    Both tasks' criteria are asked after every step, whatever the instruction, and the first that is met decides the
    episode: its task succeeded, the other failed. In the faucet they are Meta-World's: a point of the handle must come
    within 7 cm of a target ("open" lies on the side of +x; the handle has then turned by about 1.4 rad). In the other
    scenes the handle's joint must come within a fifth of its range of the end that is asked for (of the drawer's, an
    eighth).

    * action: float32 (N, 4), `dx`, `dy`, `dz` in [-1, 1] (`action_repeat` cm each) and `grip`: from open at -1 to
      closed at 1. It is repeated for `action_repeat` of Meta-World's steps of 1/80 s.
    * observation: `{"images": {"front": uint8 (N, size, size, 3)}, "state": float32 (N, 4)}`. The camera stands where
      the scene's handle is seen. The state is what the arm knows of itself: the hand's position in metres, and the
      gripper's opening in [0, 1].
    * reward: 1 at the step that fulfils the instruction, else 0.
    * terminated: one of the two criteria is met. A finished copy keeps its state and ignores actions until the next
      reset; there is no automatic reset.
    * info: `instruction` and `swapped_instruction` (the scene's other task), lists of N sentences; `success` (N,) about
      the scene's own instruction; `swapped_success` (N,) about the sentence given in its place; `phases`, N dicts: how
      far each copy has come with what it was told (`PHASES`); `task`, Meta-World's names.

    A copy depends on its seed alone, not on the others.

    Args:
        num_envs: N.
        tasks: the tasks to draw a scene's own instruction from, or "all"; the swapped one is always the other of the
            same scene.
        image_size: height and width of the camera's picture, in pixels.
        action_repeat: steps of Meta-World for each action; `fps` is 80 / action_repeat. The experts need about
            25 to 110 steps with 1, and 6 to 28 with 4.
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
        tasks: Sequence[str] | str = FAUCET,
        image_size: int = 64,
        action_repeat: int = 4,
        max_steps: int = 50,
    ):
        names = [task.name for task in TASKS]
        if tasks == ALL:
            tasks = names
        if not tasks or isinstance(tasks, str) or not set(tasks) <= set(names):
            raise ValueError(f"tasks={tasks!r}: give a list of one or more of {', '.join(names)}; or {ALL!r}.")
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

        # A model of each scene, shared by all copies, and a state of each copy.
        scenes = dict.fromkeys(TASKS[task].scene for task in self.drawn_tasks)
        self.models = {scene: _load_model(SCENES[scene].file) for scene in scenes}
        self.renderers = {scene: mujoco.Renderer(model, image_size, image_size) for scene, model in self.models.items()}
        for renderer in self.renderers.values():
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = False
        self.cameras_of = {scene: _camera(SCENES[scene]) for scene in scenes}
        self.view_options = mujoco.MjvOption()
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
                them. A sentence that is none of the scene's two is told all the same: `swapped_success` stays False.

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
        shares = np.stack([generator.random(3) for generator in generators])  # (N, 3) where in the range of its place
        self.task = np.array([generator.choice(self.drawn_tasks) for generator in generators])  # decides success
        self.scenes = [TASKS[task].scene for task in self.task]
        low, high = (np.array([getattr(SCENES[scene], end) for scene in self.scenes]) for end in ("low", "high"))
        self.places = low + shares * (high - low)  # (N, 3)
        self.instructions = [TASKS[task].instruction for task in self.task] if told is None else list(told)
        # What the expert follows; -1 if it does not understand
        self.told_task = np.array([self._understand(i) for i in range(self.num_envs)])
        self.fulfilled = np.full(self.num_envs, -1)  # the task that was done, -1 as long as there is none
        self.reached_phases = np.zeros((self.num_envs, len(PHASES)), dtype=bool)
        self.steps = np.zeros(self.num_envs, dtype=int)
        self.images = np.zeros((self.num_envs, self.image_size, self.image_size, 3), dtype=np.uint8)
        self.data = [mujoco.MjData(self.models[scene]) for scene in self.scenes]
        for i, (data, name) in enumerate(zip(self.data, self.scenes, strict=True)):
            data.mocap_pos[0] = SCENES[name].hand
            data.qpos[HANDLE_JOINT] = SCENES[name].start
            self._simulate(i, np.array([0.0, 0.0, 0.0, -1.0]), steps=50)  # as Meta-World, until the hand is there
            data.qpos[HANDLE_JOINT], data.qvel[HANDLE_JOINT] = SCENES[name].start, 0.0  # gravity may have moved it
            mujoco.mj_forward(self.models[name], data)
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
            self.reached_phases[i] |= self._phases_now(i)
        self.steps[active] += 1
        reward = np.zeros(self.num_envs)
        reward[active] = self.fulfilled[active] == self.task[active]
        return self._observe(), reward, self._terminated(), self._truncated(), self._info()

    def expert_actions(self) -> np.ndarray:
        """What Meta-World's scripted policies do about what each copy was told, (N, 4).

        Raises:
            ValueError: a copy was told something else than the two instructions of its scene.
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
                observation[4:7] = TASKS[task].handle(self.data[i])
                actions[i] = TASKS[task].expert.get_action(observation)
        # So many of its steps, each a part of the way that then remains. Repeating the first would overshoot.
        repeated = (1 - (1 - EXPERT_GAIN) ** self.action_repeat) / EXPERT_GAIN
        actions[:, :3] *= repeated / self.action_repeat
        return np.clip(actions, -1, 1).astype(np.float32)

    def close_extras(self, **kwargs: Any) -> None:
        for renderer in self.renderers.values():
            renderer.close()

    def _understand(self, i: int) -> int:
        """The index of the task that a copy was told; -1 if the sentence is none of its scene's two."""
        own = int(self.task[i])
        return next((task for task in (own, SWAPPED[own]) if TASKS[task].instruction == self.instructions[i]), -1)

    def _simulate(self, i: int, action: np.ndarray, steps: int) -> None:
        """Run a number of Meta-World's steps."""
        data, model = self.data[i], self.models[self.scenes[i]]
        model.body(SCENES[self.scenes[i]].body).pos = self.places[i]  # the model is shared by all copies
        data.mocap_quat[0] = HAND_QUATERNION
        data.ctrl[:] = action[3], -action[3]
        for _ in range(steps):
            data.mocap_pos[0] = np.clip(data.mocap_pos[0] + ACTION_SCALE * action[:3], HAND_LOW, HAND_HIGH)
            mujoco.mj_step(model, data, SUBSTEPS)
        mujoco.mj_forward(model, data)  # positions of bodies and sites after the last step

    def _render(self, i: int) -> None:
        renderer = self.renderers[self.scenes[i]]
        renderer.update_scene(self.data[i], self.cameras_of[self.scenes[i]], self.view_options)
        renderer.render(out=self.images[i])

    def _fulfilled(self, i: int) -> int:
        """The index of the task whose criterion is met; -1 if none is."""
        tasks = (int(self.task[i]), SWAPPED[self.task[i]])
        return next((index for index in tasks if self._is_done(i, TASKS[index])), -1)

    def _is_done(self, i: int, task: Task) -> bool:
        if task.target is None:
            return bool(abs(self.data[i].qpos[HANDLE_JOINT] - task.end) <= task.done)
        missing = task.handle(self.data[i]) + task.offset - (self.places[i] + task.target)
        return bool(np.linalg.norm(missing) <= TARGET_RADIUS)

    def _phases_now(self, i: int) -> list[bool]:
        """Which of `PHASES` the copy is in, or has behind it."""
        if self.told_task[i] < 0:
            return [False] * len(PHASES)
        task, data = TASKS[self.told_task[i]], self.data[i]
        fingers = (data.site("rightEndEffector").xpos + data.site("leftEndEffector").xpos) / 2
        way = task.end - SCENES[task.scene].start
        share = (data.qpos[HANDLE_JOINT] - SCENES[task.scene].start) / way
        # Some experts push with the back of the gripper, away from the fingers: what moved was reached.
        is_reached = np.linalg.norm(fingers - task.handle(data)) <= NEAR or abs(share) >= TOUCHED
        return [bool(is_reached), bool(share >= MOVED), bool(self.fulfilled[i] == self.told_task[i])]

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
            "swapped_instruction": [TASKS[SWAPPED[task]].instruction for task in self.task],
            "success": self.fulfilled == self.task,
            "swapped_success": self._terminated() & (self.fulfilled == self.told_task),
            "task": [TASKS[task].name for task in self.task],
            "phases": [
                dict(zip(PHASES, reached.tolist(), strict=True)) if task >= 0 else {}
                for task, reached in zip(self.told_task, self.reached_phases, strict=True)
            ],
        }


def _load_model(file: str) -> mujoco.MjModel:
    model = mujoco.MjModel.from_xml_path(full_V3_path_for(f"sawyer_xyz/{file}.xml"))
    # As Meta-World: the weld between the hand and the point it follows, without offset
    model.eq_data[0] = [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5]
    # Most of the time of drawing without a GPU would be shadows and multisampling.
    model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
    return model


def _camera(scene: Scene) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = scene.lookat
    camera.distance, camera.azimuth, camera.elevation = scene.distance, scene.azimuth, scene.elevation
    return camera

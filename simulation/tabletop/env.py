"""A fast tabletop that must be read: several objects, one gripper, and a sentence that says what to do.

`TabletopVectorEnv` steps and draws N tables with numpy, `TabletopEnv` is one of them for `gymnasium.make`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from ..vector_env import OneCameraVectorEnv
from . import phases, tasks
from .rendering import GRIPPER_COLOR, render
from .scenes import Scene
from .tasks import PRECISION, SPLITS, SWAPS, TASK_KINDS, TOUCHING, History, Task

STEP = 0.1  # table units that an action of size 1 moves the gripper, on each axis


class TabletopVectorEnv(OneCameraVectorEnv):
    """N tables that step together, each with objects, one gripper and a sentence.

    * action: float32 (N, 3), `dx`, `dy` in [-1, 1] (0.1 table units each) and `grip`: closed above 0. A gripper that
      closes within reach of an object holds the nearest one.
    * observation: `{"images": {"top": uint8 (N, size, size, 3)}, "state": float32 (N, 3)}`; the state is the gripper's
      x and y in [-1, 1], and 1 if it is closed.
    * reward: 1 at the step that fulfils the instruction, else 0.
    * terminated: the instruction is fulfilled, or can no longer be (see `tasks`). A finished table keeps its state and
      ignores actions until the next reset; there is no automatic reset.
    * info: `instruction` and `swapped_instruction` (another one for the same scene, see `swapped_by`), lists of N
      sentences; `success` (N,) about the scene's own instruction; `swapped_success` (N,) about the sentence given in
      its place; `phases`, N dicts: how far each copy has come with what it was told (see `phases`); `task`, the kinds.
      With "touch_then_touch" among the kinds also `subtask`, N sentences: the part of the instruction to be done now.
      In the split "synonyms" also `word`, the N synonyms, and `plain_instruction`, N sentences with the demonstrated
      words in their place.

    A table depends on its seed alone, not on the others: `reset(seed=[7, 8])` gives what two resets give.

    Args:
        num_envs: N.
        kinds: the kinds of task to draw from: "touch", "move", "push", "put", "touch_then_touch".
        split: "demonstrations", or what is held out from them: "held_out_pairs", "held_out_wordings",
            "held_out_relations", "synonyms" (words of `synonyms.py`).
        num_objects: objects on each table, 2 to 5.
        swapped_by: what the swapped instruction differs in. "target": it is about another object. "direction": it is
            about the same one and asks for the opposite direction, edge or side; for kinds that have one.
        expert_precision: how near the expert comes before it closes or opens its gripper, in table units; see
            `tasks.expert_actions`.
        image_size: height and width of the camera's picture, in pixels; 24 or more.
        max_steps: after so many steps an unfinished table is truncated. The expert needs at most 45.
        render_mode: "rgb_array" for `render()`.
        render_size: height and width of `render()`'s pictures.

    Raises:
        ValueError: an argument is none of the above.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10, "autoreset_mode": AutoresetMode.DISABLED}
    cameras: Sequence[str] = ["top"]
    state_names: Sequence[str] = ["x", "y", "closed"]
    action_names: Sequence[str] = ["dx", "dy", "grip"]
    state_dim = action_dim = 3
    fps = 10
    robot_type = "tabletop_gripper"

    def __init__(
        self,
        num_envs: int = 1,
        kinds: Sequence[str] = ("touch",),
        split: str = "demonstrations",
        num_objects: int = 3,
        swapped_by: str = "target",
        expert_precision: float = PRECISION,
        image_size: int = 48,
        max_steps: int = 60,
        render_mode: str | None = None,
        render_size: int = 192,
    ):
        unknown = [kind for kind in kinds if kind not in TASK_KINDS]
        if unknown or not kinds or isinstance(kinds, str):
            raise ValueError(f"kinds={kinds!r}: give a list of one or more of {', '.join(TASK_KINDS)}.")
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}. Splits: {', '.join(SPLITS)}.")
        if not 2 <= num_objects <= 5:
            raise ValueError(f"num_objects={num_objects}: a table holds 2 to 5 objects.")
        if swapped_by not in SWAPS:
            raise ValueError(f"swapped_by={swapped_by!r}: use {' or '.join(map(repr, SWAPS))}.")
        touching = [TASK_KINDS[kind] for kind in TOUCHING if TASK_KINDS[kind] in kinds]
        if swapped_by == "direction" and touching:
            raise ValueError(f"swapped_by='direction': {', '.join(touching)} has no direction; use 'target'.")
        if swapped_by == "direction" and "put" in kinds and split == "held_out_relations":
            raise ValueError(
                "swapped_by='direction': in the split held_out_relations objects are put above others alone, and the "
                "opposite is none of its tasks; use 'target'."
            )
        if not 0 < expert_precision < tasks.REACH:
            raise ValueError(f"expert_precision={expert_precision}: it lies between 0 and the reach, {tasks.REACH}.")
        if num_envs < 1 or max_steps < 1 or image_size < 24 or render_size < 24:
            raise ValueError(
                f"Got num_envs={num_envs}, max_steps={max_steps}, image_size={image_size}, render_size={render_size}: "
                "the first two must be 1 or more, the sizes 24 or more."
            )
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode={render_mode!r}: use 'rgb_array' or None.")
        self.num_envs = num_envs
        self.kinds, self.split, self.num_objects = tuple(kinds), split, num_objects
        self.swapped_by, self.expert_precision = swapped_by, expert_precision
        self.image_size, self.max_steps = image_size, max_steps
        self.render_mode, self.render_size = render_mode, render_size

        state = gymnasium.spaces.Box(np.array([-1, -1, 0], np.float32), np.ones(3, np.float32))
        self._declare_spaces(image_size, state)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict, dict]:
        """Start a new episode on every table, each with a new scene.

        Args:
            seed: one seed per table, or an int s for s, s + 1, ...; None draws them.
            options: `{"instruction": [N sentences]}` tells these in place of the scenes' own, as `set_instruction`.

        Raises:
            ValueError: the number of seeds or sentences is not N, or an option is unknown.
        """
        seed = self._seeds(seed)
        if len(seed) != self.num_envs:
            raise ValueError(f"Got {len(seed)} seeds for {self.num_envs} tables: give one for each.")
        unknown = set(options or ()) - {"instruction"}
        if unknown:
            raise ValueError(f"Unknown reset options {sorted(unknown)}: only 'instruction' is known.")

        episodes = [self._sample_episode(np.random.default_rng(s)) for s in seed]
        self.scene = Scene.stack([episode.scene for episode in episodes])
        self.task = Task(*np.array([episode.task for episode in episodes]).T)  # decides success
        self.told_task = Task(*(field.copy() for field in self.task))  # what the expert follows
        self.instructions = [episode.instruction for episode in episodes]
        self.swapped_instructions = [episode.swapped_instruction for episode in episodes]
        self.words = [episode.word for episode in episodes]
        self.plain_instructions = [episode.plain_instruction for episode in episodes]
        self.understood = np.ones(self.num_envs, dtype=bool)
        self.history = History(
            self.scene.positions.copy(),
            first_touched=np.full(self.num_envs, -1),
            second_touched=np.full(self.num_envs, -1),
            first_held=np.full(self.num_envs, -1),
            rested=np.zeros(self.num_envs, dtype=int),
        )
        self.steps = np.zeros(self.num_envs, dtype=int)
        self.decided, self.success, self.told_decided, self.told_success = np.zeros((4, self.num_envs), dtype=bool)
        self.reached_phases = np.zeros((self.num_envs, phases.MOST), dtype=bool)  # of what each table was told

        told = (options or {}).get("instruction")
        if told is not None:
            if len(told) != self.num_envs:
                raise ValueError(f"Got {len(told)} instructions for {self.num_envs} tables: give one for each.")
            for i, text in enumerate(told):
                self.set_instruction(i, text)
        return self._observe(), self._info()

    def set_instruction(self, index: int, text: str) -> None:
        """Tell table `index` another sentence, which the expert then follows.

        `success` stays about the scene's own; the table runs until both are decided. A sentence that fits nothing on
        the table is told all the same: `swapped_success` then stays False.
        """
        task = tasks.parse_instruction(self.scene[index], text)
        self.instructions[index] = text
        self.understood[index] = task is not None
        if task is not None:
            for field, value in zip(self.told_task, task, strict=True):
                field[index] = value

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Step every unfinished table once.

        Raises:
            ValueError: actions are not (N, 3), or not finite.
        """
        actions = self._checked(actions)
        active = ~(self._terminated() | self._truncated())
        before = self.success.copy()
        self._move(actions, active)
        self.steps += active

        decided, success = tasks.judge(self.task, self.scene, self.history)
        self.success |= success & ~self.decided & active
        self.decided |= decided & active
        # What each table was told, and how far it has come with it; after the decision nothing counts any more.
        decided, success = tasks.judge(self.told_task, self.scene, self.history)
        open_still = active & ~self.told_decided
        now = phases.phases_now(self.told_task, self.scene, self.history, success)
        self.reached_phases |= now & open_still[:, None]
        self.told_success |= success & open_still & self.understood
        self.told_decided |= decided & active

        reward = (self.success & ~before).astype(np.float64)
        return self._observe(), reward, self._terminated(), self._truncated(), self._info()

    def expert_actions(self) -> np.ndarray:
        """The scripted expert's actions (N, 3) for what each table was told."""
        if not self.understood.all():
            index = int(np.flatnonzero(~self.understood)[0])
            raise ValueError(f"The expert cannot follow {self.instructions[index]!r} on table {index}.")
        return tasks.expert_actions(self.told_task, self.scene, self.history, STEP, self.expert_precision)

    @property
    def num_touched(self) -> np.ndarray:
        """(N,): of the objects that the scenes' own instructions name, how many were touched so far, in this order."""
        first = self.history.first_touched == self.task.target
        second = first & (self.task.anchor != self.task.target) & (self.history.second_touched == self.task.anchor)
        return first.astype(int) + second

    def render(self) -> tuple[np.ndarray, ...]:
        """The tables from above, uint8 (render_size, render_size, 3) each."""
        return tuple(render(self.scene, self.render_size, self._ring_colors()))

    def _sample_episode(self, rng: np.random.Generator) -> tasks.Episode:
        return tasks.sample_episode(rng, self.kinds, self.split, self.num_objects, self.swapped_by)

    def _move(self, actions: np.ndarray, active: np.ndarray) -> None:
        scene, history, rows = self.scene, self.history, np.arange(self.num_envs)
        moved = np.clip(scene.gripper + STEP * np.clip(actions[:, :2], -1, 1), -tasks.LIMIT, tasks.LIMIT)
        moved = np.where(active[:, None], moved, scene.gripper)
        holding = scene.held >= 0
        scene.positions[rows[holding], scene.held[holding]] += (moved - scene.gripper)[holding]
        scene.gripper = moved

        nearest, within_reach = self._touch(active, tasks.REACH)
        closed = np.where(active, actions[:, 2] > 0, scene.closed)
        history.rested += active & ((holding & ~closed) | (history.rested > 0))
        scene.held = np.where(closed, np.where(~scene.closed & within_reach, nearest, scene.held), -1)
        history.first_held = np.where(history.first_held < 0, scene.held, history.first_held)
        scene.closed = closed

    def _touch(self, active: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
        """Note what is touched first; return the nearest object (N,) and whether it is within reach (N,)."""
        scene, history, rows = self.scene, self.history, np.arange(self.num_envs)
        distance = np.linalg.norm(scene.positions - scene.gripper[:, None], axis=-1)  # (N, K)
        nearest = distance.argmin(1)
        within_reach = (distance[rows, nearest] < reach) & active
        is_other = (history.first_touched >= 0) & (nearest != history.first_touched) & within_reach
        history.second_touched = np.where((history.second_touched < 0) & is_other, nearest, history.second_touched)
        history.first_touched = np.where((history.first_touched < 0) & within_reach, nearest, history.first_touched)
        return nearest, within_reach

    def _terminated(self) -> np.ndarray:
        return self.decided & (self.told_decided | ~self.understood)

    def _truncated(self) -> np.ndarray:
        return (self.steps >= self.max_steps) & ~self._terminated()

    def _observe(self) -> dict:
        state = np.concatenate([self.scene.gripper, self.scene.closed[:, None]], axis=1, dtype=np.float32)
        return {"images": {"top": render(self.scene, self.image_size, self._ring_colors())}, "state": state}

    def _ring_colors(self) -> np.ndarray:
        """(N,): where two objects are to be touched, the colour of the first one that was; else white."""
        touched = self.history.first_touched
        shows = (self.task.kind == tasks.TOUCH_TWICE) & (touched >= 0)
        return np.where(shows, self.scene.colors[np.arange(self.num_envs), touched], GRIPPER_COLOR)

    def _info(self) -> dict:
        info = {
            "instruction": list(self.instructions),
            "swapped_instruction": list(self.swapped_instructions),
            "success": self.success.copy(),
            "swapped_success": self.told_success.copy(),
            "task": [TASK_KINDS[kind] for kind in self.task.kind],
            # A sentence that fits nothing on the table has no phases
            "phases": [
                phases.by_name(kind, reached) if understood else {}
                for kind, reached, understood in zip(
                    self.told_task.kind, self.reached_phases, self.understood, strict=True
                )
            ],
        }
        if self.split == "synonyms":
            info |= {"word": list(self.words), "plain_instruction": list(self.plain_instructions)}
        if TASK_KINDS[tasks.TOUCH_TWICE] in self.kinds:
            done = (self.history.first_touched >= 0).astype(int).tolist()
            info["subtask"] = [tasks.subtask(*pair) for pair in zip(self.instructions, done, strict=True)]
        return info


class TabletopEnv(gymnasium.Env):
    """One table: `TabletopVectorEnv` with N = 1, without the leading dimension. `gymnasium.make("KIVLA/Tabletop-v0")`.

    Args:
        options: as `TabletopVectorEnv`'s.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": TabletopVectorEnv.fps}
    tables: ClassVar[type[TabletopVectorEnv]] = TabletopVectorEnv

    def __init__(self, render_mode: str | None = None, **options):
        self.table = self.tables(1, render_mode=render_mode, **options)
        self.render_mode = render_mode
        self.observation_space = self.table.single_observation_space
        self.action_space = self.table.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """As the vector environment's; `options={"instruction": "touch the blue star"}` takes one sentence."""
        super().reset(seed=seed)
        options = {key: [value] for key, value in (options or {}).items()}
        seeds = [int(self.np_random.integers(2**31)) if seed is None else seed]
        observation, info = self.table.reset(seed=seeds, options=options)
        return _first(observation), _first(info)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.table.step(np.asarray(action)[None])
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action (Da,)."""
        return self.table.expert_actions()[0]

    def render(self) -> np.ndarray:
        return self.table.render()[0]


def _first(batch: dict) -> dict:
    return {key: _first(value) if isinstance(value, dict) else value[0] for key, value in batch.items()}

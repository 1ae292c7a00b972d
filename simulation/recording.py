"""Records the demonstrations of an environment's scripted expert as a LeRobot dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..training.data.lerobot.writer import LeRobotWriter
from .environments import Demonstrator, check_environment, check_first

NOISE_STEPS = 3  # a disturbance of single steps would average out
GRIP = "grip"  # name of the action that closes a gripper, above 0
EMPTY_GRIP_WITHIN = 8  # steps from an episode's beginning: on the way, before there is anything to take


class ExpertFailedError(RuntimeError):
    """The scripted expert failed in too many episodes."""


@dataclass(frozen=True)
class Demonstration:
    """What the expert saw and did in one episode of T steps.

    Attributes:
        images: camera name → uint8 (T, H, W, 3).
        states: float32 (T, Ds).
        actions: float32 (T, Da); action t was taken after image and state t were observed.
        instruction: what it was asked to do.
        success: whether it did.
        subtasks: for each of the T steps the part of it that was then to be done; None where the environment says none.
    """

    images: dict[str, np.ndarray]
    states: np.ndarray
    actions: np.ndarray
    instruction: str
    success: bool
    subtasks: list[str] | None = None


def demonstrate(
    env: Demonstrator,
    seeds: list[int],
    action_noise: Sequence[float] | None = None,
    empty_grips: float = 0.0,
) -> list[Demonstration]:
    """Let the scripted expert of a vectorised environment run one episode for each seed to its end.

    Args:
        env: a vectorised environment with a scripted expert.
        seeds: N of them, one for each of the environment's copies.
        action_noise: (Da,) standard deviation of a disturbance that is added to what is executed, not to what is
            recorded, and changes every `NOISE_STEPS` steps. An expert that is never disturbed never shows how to get
            back from where a policy's small errors lead (DART, Laskey et al. 2017).
        empty_grips: in this share of the episodes the gripper closes on the way, for `NOISE_STEPS` steps, whatever the
            expert does: mostly on nothing. What is recorded is again what the expert does, which opens it and goes on.
            An expert that never takes hold of nothing never shows that a closed gripper can be empty.

    Raises:
        ValueError: `action_noise` has not one value for each action dimension, or a negative one; `empty_grips` is no
            share, or there is no action "grip".
    """
    if not 0 <= empty_grips <= 1:
        raise ValueError(f"empty_grips is a share of the episodes, from 0 to 1; got {empty_grips}.")
    if empty_grips > 0 and GRIP not in env.action_names:
        raise ValueError(
            f"empty_grips closes the gripper, the action named {GRIP!r}, but {type(env).__name__} has "
            f"{list(env.action_names)}. Leave it out."
        )
    if action_noise is not None and len(action_noise) != env.action_dim:
        raise ValueError(
            f"action_noise needs one standard deviation for each of {list(env.action_names)}, got {len(action_noise)} "
            "values."
        )
    if action_noise is not None and not np.all((np.asarray(action_noise) >= 0) & np.isfinite(action_noise)):
        raise ValueError(f"action_noise has standard deviations, each 0 or more; got {list(action_noise)}.")
    rngs = [np.random.default_rng(seed) for seed in seeds]
    empty_from = np.array([_empty_grip(seed, empty_grips) for seed in seeds])  # (N,) the first step of it
    obs, info = env.reset(seed=list(seeds))
    instructions = list(info["instruction"])
    steps, subtasks = [], []  # of all copies, by step
    lengths = np.zeros(env.num_envs, np.int64)
    running = np.ones(env.num_envs, bool)
    while running.any():
        actions = np.asarray(env.expert_actions(), np.float32)  # (N, Da)
        # Copies, because an environment may write the next observation into the same memory.
        steps.append(({name: obs["images"][name].copy() for name in env.cameras}, obs["state"].copy(), actions.copy()))
        subtasks.append(list(info["subtask"]) if "subtask" in info else None)
        lengths += running
        executed = actions
        if action_noise is not None:
            if (len(steps) - 1) % NOISE_STEPS == 0:
                disturbance = np.stack([rng.normal(0, action_noise) for rng in rngs])  # (N, Da)
            bounds = env.single_action_space
            executed = np.clip(actions + disturbance, bounds.low, bounds.high).astype(np.float32)
        since = len(steps) - 1 - empty_from
        if (closes := (since >= 0) & (since < NOISE_STEPS)).any():
            executed = executed.copy()
            executed[closes, list(env.action_names).index(GRIP)] = 1.0
        obs, _, terminated, truncated, info = env.step(executed)
        running &= ~(terminated | truncated)
    demonstrations = []
    for copy, length in enumerate(lengths):
        images, states, actions = zip(*steps[:length], strict=True)
        demonstrations.append(
            Demonstration(
                images={name: np.stack([image[name][copy] for image in images]) for name in env.cameras},
                states=np.stack([state[copy] for state in states]),
                actions=np.stack([action[copy] for action in actions]),
                instruction=instructions[copy],
                success=bool(info["success"][copy]),
                subtasks=[texts[copy] for texts in subtasks[:length]] if "subtask" in info else None,
            )
        )
    return demonstrations


def _empty_grip(seed: int, share: float) -> float:
    """The step at which the gripper of a seed's episode closes out of turn; infinity in most."""
    rng = np.random.default_rng([seed, 2])  # its own, so that scenes and noise are the same with and without
    return float(rng.integers(EMPTY_GRIP_WITHIN)) if rng.random() < share else np.inf


def record_demonstrations(
    env: Demonstrator,
    folder: str | Path,
    num_episodes: int,
    seed: int = 0,
    max_failures: int | None = None,
    image_format: str = "lossless_video",
    action_noise: Sequence[float] | None = None,
    empty_grips: float = 0.0,
) -> list[int]:
    """Write successful episodes of an environment's scripted expert as a LeRobot v3.0 dataset.

    Sub-tasks are written with them where the environment says them (`info["subtask"]`).

    Episodes have the seeds `seed`, `seed + 1`, ... and are written in this order without those that failed, so that
    the dataset does not depend on how many copies of the environment run at once. It appears in `folder` when it is
    complete; an error or an interrupt leaves nothing.

    Args:
        env: a vectorised environment with a scripted expert, see `demonstrate`.
        folder: where the dataset will be; must not exist, or be an empty folder.
        num_episodes: how many successful episodes to write.
        max_failures: give up when more episodes than this have failed; by default as many as `num_episodes`.
        image_format: see `LeRobotWriter`.
        action_noise, empty_grips: see `demonstrate`.

    Returns:
        The seeds of the written episodes. Take others for an evaluation.

    Raises:
        ValueError: `num_episodes` is less than 1.
        FileExistsError: there is something in `folder`.
        ExpertFailedError: too many episodes failed.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes must be at least 1, got {num_episodes}.")
    max_failures = num_episodes if max_failures is None else max_failures
    # What would fail after an hour is looked at first.
    check_environment(env, Demonstrator)
    obs, info = env.reset(seed=list(range(seed, seed + env.num_envs)))
    check_first(env, obs, info)
    recorded, failed, next_seed = [], 0, seed
    with (
        LeRobotWriter(
            folder,
            fps=env.fps,
            cameras={name: obs["images"][name].shape[1:3] for name in env.cameras},
            state_names=env.state_names,
            action_names=env.action_names,
            robot_type=env.robot_type,
            image_format=image_format,
            subtasks="subtask" in info,
        ) as writer,
        tqdm(total=num_episodes, desc="Recording demonstrations", unit="episode") as progress,
    ):
        # Rounds of fresh scenes, until there are enough in which the expert succeeded; others are left out.
        while len(recorded) < num_episodes:
            seeds = list(range(next_seed, next_seed + env.num_envs))
            next_seed += env.num_envs
            for episode_seed, episode in zip(seeds, demonstrate(env, seeds, action_noise, empty_grips), strict=True):
                if len(recorded) == num_episodes:
                    break  # of the last round not all are needed
                if episode.success:
                    writer.add_episode(
                        episode.images, episode.states, episode.actions, episode.instruction, episode.subtasks
                    )
                    recorded.append(episode_seed)
                    progress.update()
                    continue
                failed += 1
                if failed > max_failures:
                    raise ExpertFailedError(
                        f"The expert failed in {failed} of {failed + len(recorded)} episodes, and max_failures is "
                        f"{max_failures}; no dataset was written. Disturb it less (action_noise), check the "
                        "environment's expert, or give `record_demonstrations` more max_failures."
                    )
    return recorded

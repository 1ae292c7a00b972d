"""Roll-outs: a policy acts in many environments at once, with one forward pass for all of them.

All environments of a round start together, so they also plan together: whenever a new chunk is due, those that are
still running are handed to the policy as one batch. When that is, and which action of which chunk is executed, is said
by the `ChunkExecutor` that acts on robots, too. How long the policy thinks is simulated, in control steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from ..acting import ChunkExecutor
from ..acting.observation_memory import ObservationMemory, history_of
from ..acting.policy_facts import check_way
from ..modeling_kivla import actions_of
from ..processing.observation_history import ObservationHistory
from .environments import Environment, check_first

# A list of observations {"images": {camera: uint8 (height, width, 3)}, "text": str, "state": float32 (Ds,)}
# -> action chunks (n, H, Da) in robot units. Each has a `seed`, of its scene and step, for a policy that draws (not
# without `Acting.fresh_noise`). For a policy that says what it looks back on (`observation_history`) each has its
# `past`, the earlier ones that belong to it.
Policy = Callable[[list[dict]], np.ndarray]


@dataclass(frozen=True)
class Acting:
    """How chunks become actions, beside how often the policy looks; see `ChunkExecutor`.

    Attributes:
        way: "sync", "naive", "ensemble", "rtc" or "rtc-trained". The last two ask the policy to go on from what is left
            of its last chunk: observations have `previous_actions` (n, Da), and `delay`, the latency.
        latency_steps: control steps that pass from an observation until its chunk can be used. An episode begins when
            its first chunk is there.
        fresh_noise: give every observation a `seed` of its own, so that each chunk starts from new noise, as on a
            robot. What happens in an episode is still the same whichever others run beside it. False: all chunks of all
            episodes start from the same noise, by which a policy's success may be half or twice what it is.
    """

    way: str = "sync"
    latency_steps: int = 0
    fresh_noise: bool = True


AT_ONCE = Acting()  # chunks that take no time, one after another


class PipelinePolicy:
    """`pipeline("action-prediction")` as a policy.

    Args:
        pipe: the pipeline.
        seed: of the noise. Where observations have a `seed` (`Acting.fresh_noise`) chunks start from the noise of both,
            else all from the same. What happens in an episode does not depend on which others run beside it.
        num_steps: Euler steps; by default the model's.
        clip_actions: hold actions within the range of the policy's data; by default what its processor says.
        respond: whether a policy that was taught to say a sub-task first says it, at every plan anew, and acts on it.
        cameras: where the environment has other names: the policy's camera → the environment's.
        rtc: of the pipeline: "guidance" or "trained", for observations with what is left of the last chunk.
        acts_by: of the pipeline: "flow" or "tokens"; by default as the policy's recipe has it.
        noise_scale: of the pipeline; by default the model's.

    Raises:
        ValueError: `respond` is False for a policy that says nothing anyway.
    """

    def __init__(
        self,
        pipe,
        seed: int = 0,
        num_steps: int | None = None,
        clip_actions: bool | None = None,
        respond: bool = True,
        cameras: Mapping[str, str | None] | None = None,
        rtc: str | None = None,
        acts_by: str | None = None,
        noise_scale: float | None = None,
    ):
        if not respond and not (pipe.processor.expert_reads_response or pipe.processor.responds_first):
            raise ValueError(
                "This policy was not taught to say anything before it acts: leave out respond=False (--respond false)."
            )
        self.pipe = pipe
        self.respond = respond
        self.options: dict = {"seed": seed, "num_steps": num_steps, "clip_actions": clip_actions}
        told = {"rtc": rtc, "acts_by": acts_by, "noise_scale": noise_scale}
        self.options |= {name: value for name, value in told.items() if value is not None}
        if cameras is not None:
            pipe.processor.check_cameras(cameras)
            self.options["cameras"] = cameras
        self._clipped_values = self._values = 0

    @property
    def clipped_share(self) -> float | None:
        """Share of all predicted values so far that were clipped to the range of the data; None without clipping."""
        return self._clipped_values / self._values if self._values else None

    def check_options(self) -> None:
        """
        Raises:
            ValueError: the policy cannot act with these options.
        """
        self.pipe.check_options(**self.options)

    @property
    def acts_with(self) -> dict:
        """`dtype`, `num_steps` and `noise_scale`: told or its own; the last two None where it acts by tokens."""
        config = self.pipe.model.config
        acts = {"num_steps": config.num_inference_steps, "noise_scale": config.noise_scale}
        acts |= {name: self.options[name] for name in acts if self.options.get(name) is not None}
        if self.pipe.acts_by_tokens(self.options.get("acts_by")):
            acts = dict.fromkeys(acts)
        return {"dtype": str(self.pipe.model.dtype).removeprefix("torch."), **acts}

    def __call__(self, observations: list[dict]) -> np.ndarray:
        said = {} if self.respond else {"response": ""}
        observations = [
            {**self._placed(observation), **said, **self._seed(observation)} for observation in observations
        ]
        results = self.pipe(observations, **self.options)
        chunks = np.stack([actions_of(result) for result in results])  # (n, H, Da)
        for result in results:
            if "clipped" in result:
                self._clipped_values += result["clipped"]["values"]
                self._values += result["clipped"]["of"]
        return chunks

    def _seed(self, observation: dict) -> dict:
        if "seed" not in observation:
            return {}
        both = np.random.SeedSequence([self.options["seed"], observation["seed"]])
        return {"seed": int(both.generate_state(1)[0])}

    @property
    def observation_history(self) -> ObservationHistory:
        """What it looks back on."""
        return self.pipe.observation_history

    def check_averaging(self) -> None:
        """
        Raises:
            ValueError: chunks of this policy have no mean.
        """
        self.pipe.check_averaging()

    def _placed(self, observation: dict) -> dict:
        """The observation and its past with the images as the policy takes them."""
        past = {"past": [self._placed(earlier) for earlier in observation["past"]]} if "past" in observation else {}
        return {**observation, **past, "images": self._images(observation["images"])}

    def _images(self, images: dict[str, np.ndarray]) -> dict | list:
        """By the environment's names, which the pipeline matches; of a policy without names, the only one there is."""
        is_certain = self.pipe.processor.cameras is None and len(images) == 1
        return list(images.values()) if is_certain and "cameras" not in self.options else images


@dataclass
class Episode:
    """One episode of a roll-out.

    Attributes:
        seed: of its scene.
        instruction: what the policy was told.
        success: whether the scene's original instruction was fulfilled, whatever the policy was told.
        swapped_success: whether the swapped instruction was fulfilled; None where there was none.
        steps: actions executed.
        held_steps: of these, how many repeated the last one because there was no new one yet.
        jerk: mean squared jerk of the actions, (robot units / second³)²; None with fewer than four steps.
        frames: (steps + 1, height, width, 3) uint8 of the first camera, from before the first action to after the
            last; None if not recorded.
        phases: how far it came with what the policy was told: each phase, in order, and whether it was reached; None
            where the environment does not say (see `Environment`).
        timed_out: whether it was over before the environment said that it was decided.
        task: of the scene, where the environment names it.
        word, plain_instruction: where the scene's instruction has a word that was never demonstrated, that word, and
            the instruction in demonstrated words; else None.
    """

    seed: int
    instruction: str
    success: bool
    swapped_success: bool | None
    steps: int
    frames: np.ndarray | None = None
    held_steps: int = 0
    jerk: float | None = None
    phases: dict[str, bool] | None = None
    timed_out: bool = False
    task: str | None = None
    word: str | None = None
    plain_instruction: str | None = None

    @property
    def stopped_before(self) -> str | None:
        """The first phase that was not reached; None where all were, or the environment does not say."""
        return next((name for name, reached in (self.phases or {}).items() if not reached), None)


@dataclass
class RolloutResult:
    """Episodes in the order of their seeds, and how often the policy was called."""

    episodes: list[Episode]
    policy_calls: int

    @property
    def success(self) -> np.ndarray:
        """Whether each episode succeeded, (n,) bool."""
        return np.array([episode.success for episode in self.episodes])

    @property
    def steps(self) -> np.ndarray:
        """Actions executed in each episode, (n,) int."""
        return np.array([episode.steps for episode in self.episodes])


def rollout(
    policy: Policy,
    env: Environment,
    seeds: Sequence[int],
    replan_every: int,
    max_steps: int,
    instructions: Sequence[str] | None = None,
    record: int = 0,
    description: str = "Roll-outs",
    acting: Acting = AT_ONCE,
) -> RolloutResult:
    """Run one episode for each seed, `env.num_envs` at a time.

    An episode ends when the environment says so, or after `max_steps` actions.

    Args:
        policy: from observations to action chunks; asked only about episodes that are still running.
        env: see `Environment`.
        seeds: one scene for each.
        replan_every: steps from one observation that a chunk is planned from to the next.
        max_steps: longest episode.
        instructions: what to tell the policy in each scene instead of the scene's own instruction. Success is about
            the scene's own one all the same.
        record: keep the frames of the first so many episodes.
        description: what stands at the progress bar.
        acting: how late chunks come, and how they are executed; by default at once, and one after another.

    Raises:
        ValueError: no seeds, numbers that are not positive, another number of instructions than of seeds, or a policy
            that cannot act this way, or whose chunks are too short, not of the environment's action size, or not
            finite.
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds or replan_every < 1 or max_steps < 1:
        raise ValueError(
            f"A roll-out needs seeds, replan_every and max_steps of at least 1; got {len(seeds)} seeds, replan_every="
            f"{replan_every}, max_steps={max_steps}."
        )
    if instructions is not None and len(instructions) != len(seeds):
        raise ValueError(f"Got {len(instructions)} instructions for {len(seeds)} seeds: give one for each.")
    check_way(policy, acting.way)
    episodes, calls = [], 0
    with tqdm(total=len(seeds), desc=description, unit="episode", leave=False) as progress:
        for start in range(0, len(seeds), env.num_envs):
            scenes = slice(start, start + env.num_envs)
            told = None if instructions is None else list(instructions[scenes])
            recorded = max(record - start, 0)
            done, asked = _run_round(
                policy, env, seeds[scenes], told, replan_every, max_steps, acting, recorded, progress
            )
            episodes += done
            calls += asked
    return RolloutResult(episodes, calls)


def swapped_instructions(env: Environment, seeds: Sequence[int]) -> list[str]:
    """Ask the environment for a sentence about another object of each seed's scene: the control.

    Tell them to `rollout(..., instructions=...)` with the same seeds. A policy that reads then does something else; one
    that found its target without reading does the same as before.

    Raises:
        ValueError: the environment has no such sentences.
    """
    sentences = []
    for start in range(0, len(seeds), env.num_envs):
        scenes = list(seeds[start : start + env.num_envs])
        _, info = env.reset(seed=_repeat_last(scenes, env.num_envs))
        if "swapped_instruction" not in info:
            raise ValueError(
                f"{type(env).__name__} gives no info['swapped_instruction'] at reset, so there is no control with "
                "swapped instructions for it. Run without the control: --swapped false."
            )
        sentences += list(info["swapped_instruction"])[: len(scenes)]
    return sentences


def _run_round(
    policy: Policy,
    env: Environment,
    seeds: list[int],
    instructions: list[str] | None,
    replan_every: int,
    max_steps: int,
    acting: Acting,
    record: int,
    progress: tqdm,
) -> tuple[list[Episode], int]:
    """Run at most `env.num_envs` episodes together; return them, and the number of calls of the policy."""
    # All copies start their scenes. A round with fewer scenes than copies repeats the last, and does not look at it.
    count, camera = len(seeds), env.cameras[0]
    options = None if instructions is None else {"instruction": _repeat_last(instructions, env.num_envs)}
    observation, info = env.reset(seed=_repeat_last(seeds, env.num_envs), options=options)
    check_first(env, observation, info)
    memory = ObservationMemory(history_of(policy))  # of all copies: their episodes begin together
    seen = memory(observation)
    told = list(info["instruction"])[:count]
    named = ("word", "plain_instruction", "task")
    words, plain, tasks = (list(info.get(name, [None] * count))[:count] for name in named)
    frames = [[image.copy()] for image in observation["images"][camera][: min(record, count)]]
    running = np.arange(env.num_envs) < count
    decided = np.zeros(env.num_envs, dtype=bool)
    steps, held_steps = np.zeros((2, env.num_envs), dtype=int)
    executed: list[np.ndarray] = []  # (N, Da) of each step

    def plan(of_batch: dict, rtc: str | None = None) -> dict:
        """Ask the policy about all that are still running at once; the others' actions, which nobody needs, are 0."""
        asked = np.flatnonzero(running)
        observations = [_observation(seen, info, i) for i in asked]
        for i, own in zip(asked, observations, strict=True):
            if "previous_actions" in of_batch:
                own |= {"previous_actions": of_batch["previous_actions"][:, i], "delay": of_batch["delay"]}
            if acting.fresh_noise:
                own["seed"] = int(np.random.SeedSequence([seeds[i], len(executed)]).generate_state(1)[0])
        planned = _plan(policy, observations, replan_every, env.action_dim)
        chunks = np.zeros((planned.shape[1], env.num_envs, env.action_dim), dtype=np.float32)  # (H, N, Da)
        chunks[:, asked] = planned.swapaxes(0, 1)
        return {"actions": chunks}

    # The copies are one robot with N times the joints: so they act by the code that acts on a robot.
    hold = getattr(env, "hold", None)
    act = ChunkExecutor(plan, replan_every, way=acting.way, latency_steps=acting.latency_steps, hold=hold)
    for _ in range(max_steps):
        held = act.counts.held
        executed.append(act({}))
        held_steps += running & (act.counts.held > held)
        observation, _, terminated, truncated, info = env.step(executed[-1])
        seen = memory(observation)
        # Note who is done: finished copies ignore actions, and are asked about no more.
        steps += running
        for i, film in enumerate(frames):
            if running[i]:
                film.append(observation["images"][camera][i].copy())
        decided |= running & np.asarray(terminated)
        still_running = running & ~(np.asarray(terminated) | np.asarray(truncated))
        progress.update(int(running.sum() - still_running.sum()))
        running = still_running
        if not running.any():
            break
    progress.update(int(running.sum()))
    # Finished environments have kept their state, and successes with it.
    swapped = [None] * count
    if instructions is not None and "swapped_success" in info:
        swapped = [bool(value) for value in info["swapped_success"][:count]]
    phases = info.get("phases")
    episodes = [
        Episode(
            seed=seeds[i],
            instruction=told[i],
            success=bool(info["success"][i]),
            swapped_success=swapped[i],
            steps=int(steps[i]),
            held_steps=int(held_steps[i]),
            jerk=_mean_squared_jerk(np.stack(executed)[: steps[i], i], env.fps),
            phases={name: bool(reached) for name, reached in phases[i].items()} if phases is not None else None,
            timed_out=not decided[i],
            task=tasks[i],
            frames=np.stack(frames[i]) if i < len(frames) else None,
            word=words[i],
            plain_instruction=plain[i],
        )
        for i in range(count)
    ]
    return episodes, act.counts.requests


def _mean_squared_jerk(actions: np.ndarray, fps: float) -> float | None:
    """Of one episode's actions (T, Da), as `metrics.Smoothness` has it; None with fewer than four."""
    return float(np.square(np.diff(actions, n=3, axis=0) * fps**3).mean()) if len(actions) > 3 else None


def _repeat_last(values: list, size: int) -> list:
    """Repeat the last value until there are `size`: one for every copy, where a last round has fewer."""
    return values + values[-1:] * (size - len(values))


def _observation(observation: dict, info: dict, i: int) -> dict:
    seen = {
        "images": {camera: images[i] for camera, images in observation["images"].items()},
        "text": info["instruction"][i],
        "state": observation["state"][i],
    }
    if "past" in observation:
        seen["past"] = [_observation(earlier, info, i) for earlier in observation["past"]]
    return seen


def _plan(policy: Policy, observations: list[dict], replan_every: int, action_dim: int) -> np.ndarray:
    """The chunks that the policy gives, (n, H, Da), checked."""
    chunks = np.asarray(policy(observations), dtype=np.float32)
    if chunks.ndim != 3 or chunks.shape[::2] != (len(observations), action_dim):
        raise ValueError(
            f"The policy gave actions of shape {chunks.shape} for {len(observations)} observations; the environment "
            f"takes {action_dim} values an action, so ({len(observations)}, H, {action_dim}) was expected. Was the "
            "policy trained for this environment?"
        )
    if chunks.shape[1] < replan_every:
        raise ValueError(
            f"replan_every = {replan_every}, but the policy predicts only {chunks.shape[1]} actions at a time. Re-plan "
            f"at least every {chunks.shape[1]} steps."
        )
    if not np.isfinite(chunks).all():
        raise ValueError("The policy gave actions that are NaN or infinite: did its training diverge?")
    return chunks

"""Which action is for which control step: what is left of an old chunk, and what of a late new one is still ahead.

Time is counted in control steps. A chunk that was planned from the observation of step t has the action of step t + i
in its row i. Here is neither policy nor clock nor thread: `ChunkExecutor` and `RealTimeExecutor` both act by this.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..modeling_kivla.real_time_chunking import whole_number

# Ways of acting with chunks that take time to compute, see `ChunkSchedule`
WAYS = ("sync", "naive", "ensemble", "rtc", "rtc-trained")
# Of those that plan a chunk as the continuation of the one before: the pipeline's option `rtc`
RTC_METHODS = {"rtc": "guidance", "rtc-trained": "trained"}
# Temporal ensembling: the weight of the i-th oldest chunk is exp(-decay · i) (ACT, Zhao et al. 2023, arXiv 2304.13705)
ENSEMBLE_DECAY = 0.01


@dataclass(frozen=True)
class Chunk:
    """Actions of consecutive control steps, in robot units.

    Attributes:
        start: the control step of the first action.
        actions: (H, D), or (H, N, D) for N robots that step together: time comes first.
    """

    start: int
    actions: np.ndarray

    @property
    def end(self) -> int:
        """The first step that the chunk does not reach."""
        return self.start + len(self.actions)

    def rest(self, step: int) -> np.ndarray:
        """What is still ahead at `step`: the actions of step, step + 1, ...; (n, D), n may be 0."""
        return self.actions[max(step - self.start, 0) :]


def _resolve(way: str | None, ensemble_decay: float | None) -> tuple[str, float | None]:
    """The way and its decay: by default "ensemble" if there is a decay, else "sync".

    Raises:
        ValueError: there is no such way, or a decay that is negative, infinite or of another way.
    """
    way = way or ("sync" if ensemble_decay is None else "ensemble")
    if way not in WAYS:
        raise ValueError(f"There is no way of acting {way!r}. Ways: {', '.join(WAYS)}.")
    if ensemble_decay is not None and way != "ensemble":
        raise ValueError(f'ensemble_decay is for way="ensemble"; with way="{way}" nothing is averaged: leave it out.')
    if ensemble_decay is not None and not 0 <= ensemble_decay < np.inf:
        raise ValueError(f"ensemble_decay must be a finite number that is not negative, got {ensemble_decay}.")
    return way, ENSEMBLE_DECAY if way == "ensemble" and ensemble_decay is None else ensemble_decay


class ChunkSchedule:
    """The chunks of an episode that were answered, and the action of each control step.

    | way | what is executed |
    |---|---|
    | sync | a chunk from its first action on, when it is there; nothing while the next one is computed |
    | naive | the newest chunk, from the action of the present step on |
    | ensemble | at each step the mean of all chunks that reach it, older ones weighing more |
    | rtc, rtc-trained | as naive; but the policy was told what was left of the chunk before, and continues it |

    Where the robot has stood still since the observation (it waits, it was held, or an episode begins), nothing of a
    chunk is past: it is executed from its first action on, whatever the way.

    Args:
        way: one of `WAYS`; by default "ensemble" if there is an `ensemble_decay`, else "sync".
        replan_every: control steps from one observation that is planned from to the next (sync: actions of a chunk that
            are executed). By default as many as a chunk has for it: all (sync), or those before the next one must be
            asked for, so that it comes in time.
        latency_steps: steps that pass before an answer can be used, where they are known.
        ensemble_decay: of `way="ensemble"`; 0.01 by default.

    Raises:
        ValueError: there is no such way, `replan_every` is not positive, `latency_steps` or `ensemble_decay` is
            negative, one of the first two is no whole number, or there is a decay where nothing is averaged.
    """

    def __init__(
        self,
        way: str | None = None,
        replan_every: int | None = None,
        latency_steps: int = 0,
        ensemble_decay: float | None = None,
    ):
        if replan_every is not None and whole_number("replan_every", replan_every) < 1:
            raise ValueError(f"replan_every must be at least 1, got {replan_every}.")
        if whole_number("latency_steps", latency_steps) < 0:
            raise ValueError(f"latency_steps must not be negative, got {latency_steps}.")
        self.way, self.ensemble_decay = _resolve(way, ensemble_decay)
        self.replan_every = replan_every
        self.latency_steps = latency_steps
        self.reset()

    def reset(self) -> None:
        """Forget every chunk, and count steps from 0: a new episode begins."""
        self.step = 0  # the control step whose action comes next
        self._moved_at = -1  # the last step that had an action
        self.clear()

    def clear(self) -> None:
        """Forget every chunk, in the midst of an episode."""
        self._chunks: list[Chunk] = []  # oldest first; only the newest one counts unless they are averaged

    def is_due(self) -> bool:
        """Whether it is time to ask the policy, with the observation of this step."""
        return not self._chunks or self.step >= self._chunks[-1].start + self._period(len(self._chunks[-1].actions))

    def left_over(self) -> np.ndarray | None:
        """What is left of the newest chunk: the actions of this step and those after it, (n, D); None if nothing is."""
        rest = self._chunks[-1].rest(self.step) if self._chunks else ()
        return rest if len(rest) else None

    def continuation(self, delay: int) -> dict:
        """What a policy is told of the chunk before, to go on from it; nothing if nothing is left of that.

        Args:
            delay: steps until the new chunk can be used.
        """
        left_over = self.left_over()
        return {} if left_over is None else {"previous_actions": left_over, "delay": min(delay, len(left_over))}

    def add(self, actions: np.ndarray, asked_at: int) -> int:
        """Take an answer that came in time for this step's action.

        Args:
            actions: (H, D).
            asked_at: the step of the observation from which they were planned.

        Returns:
            How many of them are still ahead. A chunk that is wholly in the past, or older than one that is here, is
            dropped.

        Raises:
            ValueError: a chunk is too short for `replan_every` and the latency, or another number of values
                than the one before.
        """
        self._check_length(len(actions))
        if self._chunks and self._chunks[-1].actions.shape[1:] != actions.shape[1:]:
            before, now = self._chunks[-1].actions.shape[1:], actions.shape[1:]
            raise ValueError(f"The actions of the chunk before have the shape {before}, those of this one {now}.")
        has_stood_still = self._moved_at < asked_at
        chunk = Chunk(self.step if has_stood_still else asked_at, actions)
        if chunk.end <= self.step or (self._chunks and chunk.start < self._chunks[-1].start):
            return 0
        self._chunks = [*(self._chunks if self.way == "ensemble" else ()), chunk]
        return chunk.end - self.step

    def next_action(self) -> np.ndarray | None:
        """The action of this step, (D,), or None if there is none; then the next step begins."""
        is_waiting = self.way == "sync" and self.is_due()
        reaching = [] if is_waiting else [chunk for chunk in self._chunks if chunk.end > self.step]
        action = _average([chunk.rest(self.step)[0] for chunk in reaching], self.ensemble_decay) if reaching else None
        self._chunks = [chunk for chunk in self._chunks if chunk.end > self.step + 1]
        self._moved_at = self._moved_at if action is None else self.step
        self.step += 1
        return action

    def _period(self, chunk_size: int) -> int:
        return self.replan_every or chunk_size - (0 if self.way == "sync" else self.latency_steps)

    def _check_length(self, chunk_size: int) -> None:
        """Refuse chunks that leave steps without an action although all answers come when they should."""
        if self.way == "sync" or not self.latency_steps:
            if (self.replan_every or 0) > chunk_size:
                raise ValueError(
                    f"replan_every = {self.replan_every}, but the policy's chunks have {chunk_size} actions."
                )
            return
        # The policy is asked again when it has answered, and a chunk must last until the answer after that one.
        needed = max(self.replan_every or 0, self.latency_steps) + self.latency_steps
        if needed > chunk_size:
            every = "" if self.replan_every is None else f", asked every {self.replan_every} steps,"
            is_too_slow = 2 * self.latency_steps > chunk_size  # however often it is asked
            advice = "Act" if is_too_slow else "Ask more often, or act"
            raise ValueError(
                f"A policy that answers {self.latency_steps} steps late{every} needs chunks of {needed} actions, this "
                f'one\'s have {chunk_size}. {advice} by way of "sync", which waits.'
            )


def _average(actions: Sequence[np.ndarray], decay: float | None) -> np.ndarray:
    """The mean of a step's actions, oldest chunk first, weighted by exp(-decay · i)."""
    weights = np.exp(-(decay or 0.0) * np.arange(len(actions)))
    return np.tensordot(weights / weights.sum(), np.stack(actions), axes=1).astype(actions[0].dtype)


__all__ = ["ENSEMBLE_DECAY", "RTC_METHODS", "WAYS", "Chunk", "ChunkSchedule"]

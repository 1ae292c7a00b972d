"""Turn chunks into one action at a time, in simulated time: the policy's latency is a number of control steps."""

from collections.abc import Callable
from typing import cast

import numpy as np

from ..modeling_kivla.action_checks import actions_of
from ..processing.observation_history import ObservationHistory
from .chunk_schedule import RTC_METHODS, ChunkSchedule
from .execution_counts import ExecutionCounts
from .limits import ActionLimits
from .observation_memory import ObservationMemory, history_of
from .policy_facts import check_settings


class ChunkExecutor:
    """Acts step by step with a policy that predicts chunks.

    ```python
    act = ChunkExecutor(pipe, replan_every=10)
    for each episode:
        act.reset()
        while not done:
            action = act({"images": [...], "text": "...", "state": [...]})   # (action_dim,), robot units
    ```

    The policy is asked every `replan_every` steps; the observations between are not looked at, but those of a policy
    with a history are kept (`ObservationMemory`): it needs one at every step, and `reset` between episodes. It computes
    while the caller waits. `latency_steps` is the time that this would take on a robot: what is asked at step k is used
    from step k + latency_steps on, and until then the way decides what is executed:

    * "sync": nothing. The robot is held, and the chunk is then executed from its first action on;
    * "naive": the chunk before; then the new one, from the action of the present step on;
    * "ensemble": as naive, but each action is the mean over all chunks that reach its step, weighted by
      `exp(-ensemble_decay · i)` for the i-th oldest (temporal ensembling of ACT, Zhao et al. 2023, arXiv 2304.13705);
    * "rtc", "rtc-trained": as naive, but the new chunk continues the one before (real-time chunking, arXiv 2506.07339
      and 2512.05964). The observation then has `previous_actions`, what is left of the chunk before from this step on,
      and `delay`, the steps until the new one can be used; the policy is called with the option `rtc`.

    The first chunk of an episode is there when the episode begins: until then a robot stands, whatever the way.

    Args:
        pipe: `pipeline("action-prediction", ...)`, or anything that maps an observation to `{"actions": (H, D)}`. Of N
            robots that step together it may be (H, N, D); actions are then (N, D).
        replan_every: steps from one observation that is planned from to the next. By default the whole chunk, or what
            can be executed of it until the next one must be asked for.
        ensemble_decay: of "ensemble"; 0.01 by default.
        way: one of `WAYS`; by default "ensemble" if there is an `ensemble_decay`, else "sync".
        latency_steps: control steps that pass before an answer can be used.
        hold: from the last command to the one that keeps the robot where it is. By default the same again, which is
            right for targets; a robot that is commanded by offsets or speeds needs zeros.
        limits: what to hold commands to, last of all.
        history: what the policy looks back on; by default what the `pipe` says (`observation_history`), or nothing.
        **options: of every call of the pipeline (`seed`, `num_steps`, `acts_by`, `clip_actions`, `execution_horizon`).

    Attributes:
        clipped: of the newest chunk, what was clipped to the range of the robot's data (see the pipeline); None where
            nothing is clipped.
        counts: an `ExecutionCounts`.

    Raises:
        ValueError: `replan_every` is not positive or longer than the policy's chunk, the policy says that it cannot
            act this way, `limits` do not know which of its angles wrap, a chunk does not last until the next one
            comes, or it did not decode (`UndecodableActionsError`).
        TypeError: the policy has no such option.
        NonFiniteActionsError: a chunk is not finite.
    """

    def __init__(
        self,
        pipe,
        replan_every: int | None = None,
        ensemble_decay: float | None = None,
        *,
        way: str | None = None,
        latency_steps: int = 0,
        hold: Callable[[np.ndarray], np.ndarray] | None = None,
        limits: ActionLimits | None = None,
        history: ObservationHistory | None = None,
        **options,
    ):
        self.pipe = pipe
        self.memory = ObservationMemory(history or history_of(pipe))
        self.schedule = ChunkSchedule(way, replan_every, latency_steps, ensemble_decay)
        self.options = options
        if self.schedule.way in RTC_METHODS:
            self.options = {**options, "rtc": RTC_METHODS[self.schedule.way]}
        check_settings(pipe, self.schedule.way, hold, limits, self.options)
        self.hold = hold or np.copy
        self.limits = limits
        self.counts = ExecutionCounts()
        self.reset()

    def reset(self, position: np.ndarray | None = None) -> None:
        """Forget every chunk: a new episode begins.

        Args:
            position: of the robot, (action_dim,), from which `limits` count; without it the first command is not held
                to them.
        """
        self.schedule.reset()
        self.memory.reset()
        self.clipped: dict | None = None
        self._answer: tuple[int, int, np.ndarray] | None = None  # usable at, asked at, actions
        self._last: np.ndarray | None = None
        if self.limits is not None:
            self.limits.reset(position)

    def __call__(self, observation: dict) -> np.ndarray:
        """The action of this step, (action_dim,), in robot units."""
        observation = self.memory(observation)
        self._take_answer()
        if self._answer is None and self.schedule.is_due():
            self._ask(observation)
            self._take_answer()
        action = self.schedule.next_action()
        if action is None:
            action = np.asarray(self.hold(cast(np.ndarray, self._last)))  # an episode's first chunk is there at once
            self.counts.held += 1
        if self.limits is not None:
            action = self.limits(action)
        self.counts.steps += 1
        self._last = action
        return action

    def _ask(self, observation: dict) -> None:
        """Compute a chunk now, to be used when it would have come."""
        step = self.schedule.step
        if "rtc" in self.options:
            observation = {**observation, **self.schedule.continuation(self.schedule.latency_steps)}
        result = self.pipe(observation, **self.options)
        actions, self.clipped = actions_of(result), result.get("clipped")
        self.counts.requests += 1
        self._answer = (step + self.schedule.latency_steps if step else step), step, actions

    def _take_answer(self) -> None:
        if self._answer is not None and self._answer[0] <= self.schedule.step:
            _, asked_at, actions = self._answer
            self._answer = None
            self.schedule.add(actions, asked_at)
            self.counts.chunks += 1


__all__ = ["ChunkExecutor"]

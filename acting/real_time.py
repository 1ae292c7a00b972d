"""Act at a fixed rate while the next chunk is computed: the control loop never waits for the policy."""

import logging
import time
from collections.abc import Callable
from typing import Literal

import numpy as np

from ..modeling_kivla.real_time_chunking import whole_number
from ..processing.observation_history import ObservationHistory
from .chunk_schedule import RTC_METHODS, ChunkSchedule
from .execution_counts import ExecutionCounts
from .latency import LatencyEstimate
from .limits import ActionLimits
from .observation_memory import ObservationMemory, history_of
from .policy_facts import check_settings, max_delay_of
from .policy_thread import Answer, PolicyThread, Request

log = logging.getLogger(__name__)


class RealTimeExecutor:
    """Gives one command per control step, at once, and asks the policy in another thread meanwhile.

    ```python
    with RealTimeExecutor(pipe, rate=50, way="rtc") as act:
        for each episode:
            act.reset()
            for _ in ticks(rate=50):
                command = act(observe)          # (action_dim,), robot units; None: send nothing
                if command is not None:
                    robot.send(command)
    ```

    At each step: take the answer that has come, if one has; ask again, if it is time; and give the action of this step.
    An answer that was asked at step k and comes at step k + n begins with its action n: what is past is cut off, and
    nothing is executed twice or out of order. (Unless the robot has stood still since step k: then nothing of it is
    past, and it begins with its first action.) One request runs at a time. The ways of acting are those of
    `ChunkExecutor`. The delay that a policy is told is measured, see `LatencyEstimate`.

    Without an action for a step, the robot gets the *safe answer*: it is held, or stopped. That happens when a chunk
    ends before the next one is there, and after every exception of the policy: what is left of the chunk before it is
    dropped, the exception is kept (`last_error`), logged and counted, and the policy is asked again.

    Args:
        policy: `pipeline("action-prediction", ...)`, a `RemotePolicy`, or anything that maps an observation to
            `{"actions": (H, D)}`.
        rate: control steps per second, those of the policy's data.
        way: one of `WAYS`. "rtc" needs a policy that acts by flow, "rtc-trained" one that was trained with delays.
        replan_every: least number of steps between two questions. By default the policy is asked again as soon as it
            has answered (sync: when a chunk is over).
        ensemble_decay: of "ensemble"; 0.01 by default.
        out_of_actions: the safe answer. "hold": the robot is held where it is until there are actions again. "stop":
            there are no more commands until `reset`.
        hold: from the last command to the one that keeps the robot where it is. By default the same again, which is
            right for targets; a robot that is commanded by offsets or speeds needs zeros.
        limits: what to hold commands to, last of all.
        latency: how the delay is estimated.
        max_delay: the largest delay that the policy is told. A policy that was trained with delays knows none above
            its `rtc_max_delay`; by default it is what the policy says itself (`max_delay`), or there is none.
        answer_timeout: seconds after which an answer is given up as lost. The policy is then asked again in a new
            thread; the old call cannot be ended, so a policy that may hang has to bear two calls at once.
        clock: seconds that only go forward.
        thread: what asks the policy, a `PolicyThread` but in tests.
        history: what the policy looks back on; by default what it says itself (`observation_history`), or nothing. With
            a history it needs an observation at every step, not a function that looks when it is asked.
        **options: of every call of the policy (`seed`, `num_steps`, `acts_by`, `clip_actions`, `execution_horizon`).

    Attributes:
        counts: an `ExecutionCounts`.
        last_error: the last exception of the policy, or None.
        is_stopped: whether the robot was stopped; until `reset`.
        clipped: of the newest chunk, what was clipped to the range of the robot's data (see the pipeline).

    Raises:
        ValueError: an argument makes no sense, or the policy says that it cannot act this way.
    """

    def __init__(
        self,
        policy: Callable[..., dict],
        rate: float,
        way: str = "naive",
        *,
        replan_every: int | None = None,
        ensemble_decay: float | None = None,
        out_of_actions: Literal["hold", "stop"] = "hold",
        hold: Callable[[np.ndarray], np.ndarray] | None = None,
        limits: ActionLimits | None = None,
        latency: LatencyEstimate | None = None,
        max_delay: int | None = None,
        answer_timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        thread: Callable[..., PolicyThread] = PolicyThread,
        history: ObservationHistory | None = None,
        **options,
    ):
        if not 0 < rate < np.inf or not answer_timeout > 0:
            raise ValueError(f"rate and answer_timeout must be positive, got {rate} and {answer_timeout}.")
        if limits is not None and limits.rate != rate:
            raise ValueError(
                f"The limits count on {limits.rate:g} commands per second, and the executor gives {rate:g}: what they "
                f"call the largest speed would be another. Make both with the same rate."
            )
        if out_of_actions not in ("hold", "stop"):
            raise ValueError(f'out_of_actions must be "hold" or "stop", got {out_of_actions!r}.')
        if max_delay is not None and whole_number("max_delay", max_delay) < 1:
            raise ValueError(f"max_delay must be at least 1, got {max_delay}: no answer comes at once.")
        if replan_every is None and way != "sync":
            replan_every = 1
        self.schedule = ChunkSchedule(way, replan_every, ensemble_decay=ensemble_decay)
        self.options = {**options, "rtc": RTC_METHODS[way]} if way in RTC_METHODS else options
        check_settings(policy, way, hold, limits, self.options)
        self.policy = policy
        self.memory = ObservationMemory(history or history_of(policy))
        self.rate = rate
        self.out_of_actions = out_of_actions
        self.hold = hold or np.copy
        self.limits = limits
        self.latency = latency or LatencyEstimate()
        self.max_delay = max_delay_of(policy, way) if max_delay is None else max_delay
        self.answer_timeout = answer_timeout
        self.clock = clock
        self.counts = ExecutionCounts()
        self.last_error: Exception | None = None
        self._make_thread = thread
        self._thread: PolicyThread | None = None
        self._has_answered = False
        self._asked: Request | None = None  # the one that is not answered yet
        self.reset()

    # ------------------------------------------------------------------------------------------- start, stop, reset
    def start(self) -> "RealTimeExecutor":
        """Begin to ask the policy; `with` does it."""
        if self._thread is None:
            self._thread = self._make_thread(self.policy, self.options, self.clock)
        return self

    def stop(self) -> None:
        """Ask no more. Waits for the call that runs, no longer than `answer_timeout`; `with` does it."""
        if self._thread is not None:
            self._thread.close(self.answer_timeout)
        self._thread = self._asked = None
        self.reset()

    def __enter__(self) -> "RealTimeExecutor":
        return self.start()

    def __exit__(self, *error) -> None:
        self.stop()

    def reset(self, position: np.ndarray | None = None) -> None:
        """A new episode: nothing of the last one is executed any more, not even an answer that is still to come.

        Args:
            position: of the robot, (action_dim,), from which `limits` count; without it the first command is not held
                to them.
        """
        self.schedule.reset()
        self.memory.reset()
        self.is_stopped = False
        self.clipped: dict | None = None
        self._last: np.ndarray | None = None
        self._is_old = self._asked is not None  # the answer that is awaited belongs to the last episode
        if self.limits is not None:
            self.limits.reset(position)

    # ------------------------------------------------------------------------------------------------ control steps
    def __call__(self, observation: dict | Callable[[], dict]) -> np.ndarray | None:
        """The command of this step, at once.

        Args:
            observation: what is seen now; or a function that looks, which is called only when the policy is asked, in
                the policy's thread: cameras then cost the control loop nothing.

        Returns:
            (action_dim,), or None: there is no command (none yet, or the robot was stopped).

        Raises:
            RuntimeError: the executor was not started.
            ValueError: a function in place of an observation, for a policy with a history.
        """
        if self._thread is None:
            raise RuntimeError("The executor is not started: use it in a `with` statement, or call start().")
        if not callable(observation):
            observation = self.memory(observation)
        elif self.memory.history.frames > 1:
            raise ValueError(
                f"This policy sees {self.memory.history}: give the observation of every step, and not a function, "
                "which would be called only when the policy is asked."
            )
        self._take_answers()
        if self._asked is not None and self.clock() - self._asked.time > self.answer_timeout:
            self._give_up()
        if self._asked is None and not self.is_stopped and self.schedule.is_due():
            self._ask(observation)
        action = self.schedule.next_action()
        self.counts.steps += 1
        if action is None or self.is_stopped:
            action = self._safe_answer()
        if action is not None and self.limits is not None:
            action = self.limits(action)
        self._last = action
        return action

    def _safe_answer(self) -> np.ndarray | None:
        if self._last is not None and self.out_of_actions == "stop":
            self.is_stopped = True
            log.warning("There is no action for step %d: the robot gets no more commands.", self.schedule.step - 1)
        if self.is_stopped:
            self.counts.stopped += 1
            return None
        if self._last is None:
            self.counts.before_first += 1
            return None
        self.counts.held += 1
        return np.asarray(self.hold(self._last))

    # ------------------------------------------------------------------------------------------ questions and answers
    def _ask(self, observation: dict | Callable[[], dict]) -> None:
        step, delay = self.schedule.step, self.latency.steps(self.rate)
        told = min(delay, self.max_delay or delay)
        extra = self.schedule.continuation(told) if "rtc" in self.options else {}
        self._asked = Request(observation, step, step + delay, self.clock(), extra)
        self.counts.requests += 1
        self._thread.ask(self._asked)

    def _take_answers(self) -> None:
        for answer in self._thread.answers():
            is_old, self._asked, self._is_old = self._is_old, None, False
            self._measure(answer)
            if is_old:
                self.counts.old += 1
            elif isinstance(answer.outcome, Exception):
                self._fail(answer.outcome)
            else:
                self._use(answer)

    def _measure(self, answer: Answer) -> None:
        """Not the first call of all, which loads kernels, and none that failed."""
        if isinstance(answer.outcome, Exception):
            return
        if self._has_answered:
            self.latency.add(answer.time - answer.request.time)
        self._has_answered = True

    def _use(self, answer: Answer) -> None:
        try:
            num_ahead = self.schedule.add(answer.outcome, answer.request.step)
            if self.limits is not None:
                self.limits.check(answer.outcome.shape[1:])
        except ValueError as error:  # a chunk that does not fit `replan_every`, the one before, or the limits
            self._fail(error)
            return
        self.clipped = answer.clipped
        self.counts.chunks += num_ahead > 0
        self.counts.too_late += num_ahead == 0
        self.counts.late += num_ahead > 0 and self.schedule.step > answer.request.due

    def _fail(self, error: Exception) -> None:
        """The policy failed: what it said before is not trusted either."""
        if type(error) is not type(self.last_error) or str(error) != str(self.last_error):  # each one once
            log.error("The policy failed: %s: %s", type(error).__name__, error)
        self.last_error = error
        self.counts.errors += 1
        self.schedule.clear()
        if self.out_of_actions == "stop":
            self.is_stopped = True

    def _give_up(self) -> None:
        log.warning("No answer within %g s: it is given up, and the policy is asked anew.", self.answer_timeout)
        self.last_error = TimeoutError(f"The policy did not answer within {self.answer_timeout:g} s.")
        self.counts.lost += 1
        self._thread.close()
        self._thread = self._make_thread(self.policy, self.options, self.clock)
        self._asked, self._is_old = None, False


__all__ = ["RealTimeExecutor"]

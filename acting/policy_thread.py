"""A policy in a thread of its own: questions in, answers out, and nobody waits."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np

from ..modeling_kivla.action_checks import actions_of


@dataclass(frozen=True)
class Request:
    """A question to the policy.

    Attributes:
        observation: a dict, or a function that gives one: it is called in the policy's thread, just before the policy.
        extra: what is added to it: `previous_actions` and `delay`.
        step: the control step at which it was asked.
        due: the control step from which the answer is expected to be usable.
        time: when it was asked, by the executor's clock.
    """

    observation: dict | Callable[[], dict]
    step: int
    due: int
    time: float
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        request: it.
        outcome: actions (H, D), checked; or the exception that came in their place.
        clipped: what was clipped to the range of the robot's data (see the pipeline), or None.
        time: when the policy was done, by the executor's clock.
    """

    request: Request
    outcome: np.ndarray | Exception
    time: float
    clipped: dict | None = None


class PolicyThread:
    """Asks a policy, one request after the other. Both sides only ever touch two queues, and never a lock.

    Args:
        policy: maps an observation to `{"actions": (H, D)}`; called as `policy(observation, **options)`.
        options: of every call.
        clock: seconds.
    """

    def __init__(self, policy: Callable[..., dict], options: dict, clock: Callable[[], float]):
        self._policy, self._options, self._clock = policy, options, clock
        self._requests: SimpleQueue[Request | None] = SimpleQueue()
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        # A daemon: a policy that never returns must not keep the program alive.
        self._thread = threading.Thread(target=self._run, name="kivla-policy", daemon=True)
        self._thread.start()

    def ask(self, request: Request) -> None:
        """Hand it over, and return at once."""
        self._requests.put(request)

    def answers(self) -> Iterator[Answer]:
        """Those that have come since the last time."""
        while True:
            try:
                yield self._answers.get_nowait()
            except Empty:
                return

    def close(self, timeout: float = 0.0) -> None:
        """Take no more requests, and wait so many seconds for the one that runs."""
        self._requests.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            self._answers.put(self._answer(request))

    def _answer(self, request: Request) -> Answer:
        """Every exception is an answer, too: the robot must hear of it."""
        try:
            observation = request.observation() if callable(request.observation) else request.observation
            result = self._policy({**observation, **request.extra}, **self._options)
            actions = actions_of(result)
            if np.ndim(actions) != 2 or not len(actions):
                raise ValueError(f"A chunk of actions must be (H, action_dim), got the shape {np.shape(actions)}.")
            return Answer(request, np.asarray(actions), self._clock(), result.get("clipped"))
        except Exception as error:
            return Answer(request, error, self._clock())


__all__ = ["Answer", "PolicyThread", "Request"]

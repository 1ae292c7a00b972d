"""What a client has shown of an episode, for policies with a history: a robot sends one frame with each request."""

import logging
from numbers import Integral

import numpy as np

from ..acting.observation_memory import ObservationMemory
from ..processing.observation_history import ObservationHistory, is_clip

logger = logging.getLogger(__name__)

_KEPT = ("images", "state")  # of an observation, for later ones
MAX_STEP = 1 << 40


class ClientMemory:
    """The ring buffer of one client: an observation -> the same with its `past`, as the pipeline takes it.

    A request of a policy with a history has either its own `past` or clips (clients that keep what they saw, such as
    our executors), or `step`: the control step of the episode, counted from 0. With `reset` an episode begins, and
    nothing of the last one is seen any more; so does a new connection. Robots of different names are kept apart. What
    was not sent for a step is missing. That is said once in the log, and in every answer (`history`: `seen` frames of
    `of`).

    Of a policy without a history nothing is kept, and `step` and `reset` change nothing.

    Args:
        history: what the policy looks back on.
    """

    def __init__(self, history: ObservationHistory):
        self.history = history
        self._memories: dict[str | None, ObservationMemory] = {}  # by the robot's name
        self._has_warned = False

    def __call__(self, observation: dict) -> dict:
        """
        Raises:
            ValueError: a policy with a history is told neither a past nor a step; a step that is none, or before the
                last one without a `reset`.
        """
        observation = dict(observation)
        step, reset = observation.pop("step", None), observation.pop("reset", False)
        if not isinstance(reset, bool | np.bool_):
            raise ValueError(f"'reset' is true where an episode begins, got {reset!r:.80}.")
        if step is not None and (isinstance(step, bool) or not isinstance(step, Integral) or not 0 <= step <= MAX_STEP):
            raise ValueError(f"'step' is the control step of the episode, a whole number from 0 on, got {step!r:.80}.")
        memory = self._memories.setdefault(observation.get("robot"), ObservationMemory(self.history))
        if reset:
            memory.reset()
        images = observation["images"]
        has_clips = any(map(is_clip, images.values() if isinstance(images, dict) else images))
        if self.history.frames == 1 or "past" in observation or has_clips:
            return observation
        if step is None and reset:
            step = 0
        if step is None:
            raise ValueError(
                f"This policy sees {self.history}: send with each observation 'step', the control step of the episode "
                "(from 0), and 'reset': true where one begins; or its 'past', the earlier observations."
            )
        kept = {name: observation[name] for name in _KEPT if name in observation}
        past = memory(kept, int(step))["past"]
        if None in past and not self._has_warned:
            self._has_warned = True
            wanted = self.history.steps(step)[:-1]
            logger.warning(
                "The policy sees %s. At step %d it looks for the steps %s, and %s were never sent: it acts without "
                "what was before them. Send an observation at these steps, or with each its 'past'. (Said once.)",
                self.history,
                step,
                wanted,
                [number for number, earlier in zip(wanted, past, strict=True) if earlier is None],
            )
        return {**observation, "past": past}


def frames_seen(past: list) -> int:
    """How many moments a policy sees of an observation with this past: it and those before it without a gap."""
    gaps = [i for i, earlier in enumerate(past) if earlier is None]
    return 1 + len(past) - (gaps[-1] + 1 if gaps else 0)


__all__ = ["ClientMemory", "frames_seen"]

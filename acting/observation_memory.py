"""What a robot has seen in this episode, as far back as its policy looks."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image

from ..processing.observation_history import NO_HISTORY, ObservationHistory


class ObservationMemory:
    """Keeps the observations of an episode, and adds to each the earlier ones that a policy sees beside it.

    ```python
    memory = ObservationMemory(pipe.observation_history)
    for each episode:
        memory.reset()
        at each control step:
            observation = memory(observation)  # with "past": [older, ...], which the pipeline makes clips of
    ```

    It holds `history.reach` observations at most, copies of their pictures and states. Of a policy without a history it
    holds none, and gives observations back as they are.

    Args:
        history: what the policy looks back on.
    """

    def __init__(self, history: ObservationHistory):
        self.history = history
        self.reset()

    def reset(self) -> None:
        """A new episode begins: nothing of the last one is seen any more."""
        self._step = -1
        self._seen: dict[int, dict] = {}

    def __call__(self, observation: dict, step: int | None = None) -> dict:
        """Remember an observation, and return it with its `past`.

        Args:
            step: the control step of the episode, counted from 0; by default the one after the last.

        Returns:
            The observation with `past`: the earlier ones that belong to it, oldest first; None for one that was not
            there. At the beginning of an episode there are fewer, or none.

        Raises:
            ValueError: a step that is before the last one.
        """
        if self.history.frames == 1:
            return observation
        step = self._step + 1 if step is None else step
        if step < self._step:
            raise ValueError(
                f"step {step} of the episode comes after step {self._step}. Where a new episode begins, say so (reset)."
            )
        earlier = self.history.steps(step)[:-1]
        past = [self._seen.get(step) for step in earlier]
        self._step = step
        self._seen = {number: seen for number, seen in self._seen.items() if number > step - self.history.reach}
        self._seen[step] = {name: _copied(value) for name, value in observation.items()}
        return {**observation, "past": past}


def history_of(policy) -> ObservationHistory:
    """What a policy looks back on by its own word, `policy.observation_history`; of a plain function nothing."""
    return getattr(policy, "observation_history", NO_HISTORY)


def _copied(value):
    """A copy of what cameras and simulators may write their next picture into."""
    if isinstance(value, np.ndarray | Image.Image):
        return value.copy()
    if torch.is_tensor(value):
        return value.detach().clone()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        return {name: _copied(inner) for name, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list | tuple) else value


__all__ = ["ObservationMemory", "history_of"]

"""Turn chunks into one action at a time: a queue, re-planning, and temporal ensembling."""

import numpy as np

from ..modeling_kivla.action_checks import actions_of


class ChunkExecutor:
    """Acts step by step with a policy that predicts chunks.

    ```python
    act = ChunkExecutor(pipe, replan_every=10)
    for each episode:
        act.reset()
        while not done:
            action = act({"images": [...], "text": "...", "state": [...]})   # (action_dim,), robot units
    ```

    The policy is asked when the queue is empty, that is every `replan_every` steps; the observations between are not
    looked at. With `ensemble_decay` the action of a step is the average over all chunks that reach it, weighted by
    `exp(-ensemble_decay · i)` for the i-th oldest (temporal ensembling of ACT, Zhao et al. 2023, arXiv 2304.13705:
    0.01 with `replan_every=1`).

    Args:
        pipe: `pipeline("action-prediction", ...)`, or anything that maps an observation to `{"actions": (H, D)}`.
        replan_every: actions to execute before the policy looks again; the whole chunk by default.
        ensemble_decay: average over chunks; None executes the newest chunk alone.
        **options: of every call of the pipeline (`seed`, `num_steps`, `acts_by`, `clip_actions`).

    Attributes:
        clipped: of the newest chunk, what was clipped to the range of the robot's data (see the pipeline); None where
            nothing is clipped.

    Raises:
        ValueError: `replan_every` is not positive or longer than the policy's chunk, or a chunk did not decode
            (`UndecodableActionsError`).
        NonFiniteActionsError: a chunk is not finite.
    """

    def __init__(self, pipe, replan_every: int | None = None, ensemble_decay: float | None = None, **options):
        if replan_every is not None and replan_every < 1:
            raise ValueError(f"replan_every must be at least 1, got {replan_every}.")
        if ensemble_decay is not None and not ensemble_decay >= 0:
            raise ValueError(f"ensemble_decay must not be negative, got {ensemble_decay}.")
        self.pipe = pipe
        self.replan_every = replan_every
        self.ensemble_decay = ensemble_decay
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Forget every chunk: a new episode begins."""
        self.clipped: dict | None = None
        self._step = 0
        self._chunks: list[tuple[int, np.ndarray]] = []  # (step at which it begins, (H, D)), oldest first

    def __call__(self, observation: dict) -> np.ndarray:
        """The action of this step, (action_dim,), in robot units."""
        if not self._chunks or self._step >= self._chunks[-1][0] + self._length(self._chunks[-1][1]):
            self._chunks.append((self._step, self._plan(observation)))
        if self.ensemble_decay is None:
            self._chunks = self._chunks[-1:]
        self._chunks = [(start, chunk) for start, chunk in self._chunks if start + len(chunk) > self._step]
        actions = np.stack([chunk[self._step - start] for start, chunk in self._chunks])  # (n, D)
        weights = np.exp(-(self.ensemble_decay or 0.0) * np.arange(len(actions)))
        self._step += 1
        return (weights / weights.sum() @ actions).astype(actions.dtype)

    def _length(self, chunk: np.ndarray) -> int:
        return self.replan_every or len(chunk)

    def _plan(self, observation: dict) -> np.ndarray:
        result = self.pipe(observation, **self.options)
        actions, self.clipped = actions_of(result), result.get("clipped")
        if self._length(actions) > len(actions):
            raise ValueError(
                f"replan_every = {self.replan_every}, but the policy's chunks have {len(actions)} actions."
            )
        return actions


__all__ = ["ChunkExecutor"]

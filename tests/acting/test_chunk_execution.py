"""Chunks become actions in the right order, and are averaged as ACT says."""

import numpy as np
import pytest

from kivla import ActionDecodingFailure, ChunkExecutor
from kivla.modeling_kivla import NonFiniteActionsError, UndecodableActionsError

H = 4


class Policy:
    """Chunk k is 100·k + (0, 1, 2, 3) in both dimensions; remembers what it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, observation, **options):
        self.seen.append((observation, options))
        steps = np.arange(H, dtype=np.float32)[:, None]
        return {"actions": np.repeat(100 * (len(self.seen) - 1) + steps, 2, axis=1)}


def run(executor, steps):
    return [executor(step)[0] for step in range(steps)]


def test_whole_chunks_one_after_the_other():
    policy = Policy()
    assert run(ChunkExecutor(policy, seed=3), 6) == [0, 1, 2, 3, 100, 101]
    assert policy.seen == [(0, {"seed": 3}), (4, {"seed": 3})]


def test_replanning_drops_the_rest_of_a_chunk():
    policy = Policy()
    assert run(ChunkExecutor(policy, replan_every=2), 5) == [0, 1, 100, 101, 200]
    assert [observation for observation, _ in policy.seen] == [0, 2, 4]


def test_ensembling_weighs_old_chunks_most():
    decay = 0.5
    actions = run(ChunkExecutor(Policy(), replan_every=1, ensemble_decay=decay), 6)
    weights = np.exp(-decay * np.arange(4))
    # At step 5 the chunks of steps 2, 3, 4 and 5 reach it, with their fourth, third, second and first action.
    expected = weights @ np.array([203, 302, 401, 500]) / weights.sum()
    assert actions[0] == 0 and actions[5] == pytest.approx(expected)
    assert actions[1] == pytest.approx((1 * weights[0] + 100 * weights[1]) / weights[:2].sum())


def test_a_reset_forgets_everything():
    policy = Policy()
    executor = ChunkExecutor(policy)
    run(executor, 2)
    executor.reset()
    assert run(executor, 2) == [100, 101]


def test_bad_settings_and_bad_chunks():
    with pytest.raises(ValueError, match="replan_every must be at least 1, got 0"):
        ChunkExecutor(Policy(), replan_every=0)
    with pytest.raises(ValueError, match="ensemble_decay must not be negative"):
        ChunkExecutor(Policy(), ensemble_decay=-1.0)
    with pytest.raises(ValueError, match="replan_every = 9, but the policy's chunks have 4 actions"):
        ChunkExecutor(Policy(), replan_every=9)(0)
    failure = ActionDecodingFailure("value_count", 8, 3)
    with pytest.raises(UndecodableActionsError, match="do not decode: no action chunk"):
        ChunkExecutor(lambda observation: {"actions": None, "failure": failure})(0)
    for value in (np.nan, np.inf):
        with pytest.raises(NonFiniteActionsError, match="not all finite: they are not sent to a robot"):
            ChunkExecutor(lambda observation, value=value: {"actions": np.array([[0.0, value]])})(0)

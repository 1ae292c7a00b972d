"""Chunks become actions in the right order, and are averaged as ACT says."""

import numpy as np
import pytest

from kivla import ActionDecodingFailure, ChunkExecutor
from kivla.acting import ActionLimits
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
    for decay in (-1.0, np.inf, np.nan):  # an infinite one would make every mean NaN
        with pytest.raises(ValueError, match="ensemble_decay must be a finite number that is not negative"):
            ChunkExecutor(Policy(), ensemble_decay=decay)
    with pytest.raises(ValueError, match="replan_every = 9, but the policy's chunks have 4 actions"):
        ChunkExecutor(Policy(), replan_every=9)(0)
    failure = ActionDecodingFailure("value_count", 8, 3)
    with pytest.raises(UndecodableActionsError, match="do not decode: no action chunk"):
        ChunkExecutor(lambda observation: {"actions": None, "failure": failure})(0)
    for value in (np.nan, np.inf):
        with pytest.raises(NonFiniteActionsError, match="not all finite: they are not sent to a robot"):
            ChunkExecutor(lambda observation, value=value: {"actions": np.array([[0.0, value]])})(0)


# ------------------------------------------------------------------------------------------- ways, in simulated time
class Clocked:
    """The chunk that is asked for at step k has 100·k + i in row i; remembers what it was asked with."""

    def __init__(self, chunk_size: int = 12):
        self.chunk_size, self.asked_at, self.previous = chunk_size, [], []

    def __call__(self, observation: dict, **options) -> dict:
        self.asked_at.append(observation["step"])
        self.previous.append((observation.get("previous_actions"), observation.get("delay"), options.get("rtc")))
        return {"actions": 100.0 * observation["step"] + np.arange(float(self.chunk_size))[:, None]}


def acted(policy, steps: int = 40, **options) -> tuple[list, ChunkExecutor]:
    act = ChunkExecutor(policy, **options)
    return [act({"step": step})[0] for step in range(steps)], act


@pytest.mark.parametrize("way", ["naive", "rtc", "rtc-trained"])
@pytest.mark.parametrize(("latency", "every"), [(0, 4), (1, 4), (3, 4), (4, 2), (6, None), (2, None), (0, None)])
def test_the_newest_chunk_that_has_come_goes_on_at_the_present_step(way, latency, every):
    policy = Clocked()
    actions, act = acted(policy, way=way, latency_steps=latency, replan_every=every)
    asked_at = [0]
    while asked_at[-1] < 40:  # asked again when it is time, but not before it has answered; it has, the first time
        asked_at.append(asked_at[-1] + max(every or 12 - latency, latency if asked_at[-1] else 1))
    del asked_at[-1]
    for step, action in enumerate(actions):
        newest = max(k for k in asked_at if k == 0 or k + latency <= step)  # the first one is waited for
        assert action == 100 * newest + step - newest, f"step {step}"
    assert policy.asked_at == asked_at and act.counts.held == 0
    assert act.counts.requests == len(asked_at) and act.counts.steps == 40


@pytest.mark.parametrize("latency", [0, 1, 5])
def test_sync_holds_the_last_command_until_the_chunk_has_come(latency):
    policy = Clocked()
    actions, act = acted(policy, way="sync", latency_steps=latency, replan_every=4)
    expected, k = [0.0, 1, 2, 3], 4
    while len(expected) < 40:
        expected += [expected[-1]] * latency + [100.0 * k + i for i in range(4)]
        k += latency + 4
    assert actions == expected[:40]
    assert policy.asked_at == [0, *range(4, 40, latency + 4)] and act.counts.held == len(
        [step for step in range(4, 40) if (step - 4) % (latency + 4) < latency]
    )


@pytest.mark.parametrize("latency", [0, 3])
def test_the_ensemble_has_every_chunk_that_has_come_and_reaches_the_step(latency):
    actions, _ = acted(Clocked(), way="ensemble", latency_steps=latency, replan_every=3, ensemble_decay=0.2)
    for step, action in enumerate(actions):
        chunks = [k for k in range(0, 40, 3) if (k == 0 or k + latency <= step) and k <= step < k + 12]
        weights = np.exp(-0.2 * np.arange(len(chunks)))
        assert action == pytest.approx(weights @ [100 * k + step - k for k in chunks] / weights.sum()), f"step {step}"


def test_real_time_chunking_is_told_what_is_left_and_how_long_it_takes():
    policy = Clocked()
    acted(policy, way="rtc", latency_steps=3, replan_every=4)
    assert policy.previous[0] == (None, None, "guidance"), "an episode begins with an ordinary chunk"
    for asked_at, (previous, delay, _) in zip(policy.asked_at[1:], policy.previous[1:], strict=True):
        before = asked_at - 4
        assert previous[:, 0].tolist() == [100 * before + i for i in range(4, 12)], "shifted to the new observation"
        assert delay == 3
    policy = Clocked()
    acted(policy, way="rtc-trained", latency_steps=3)
    assert policy.previous[1][1:] == (3, "trained")
    policy = Clocked()
    acted(policy, way="naive", latency_steps=3)
    assert set(policy.previous) == {(None, None, None)}


def test_a_robot_that_is_commanded_by_offsets_is_held_with_zeros():
    actions, _ = acted(Clocked(), 8, way="sync", latency_steps=2, replan_every=3, hold=np.zeros_like)
    assert actions == [0, 1, 2, 0, 0, 300, 301, 302]


def test_what_holds_a_robot_may_be_a_list():
    limits = ActionLimits(50, max_speed=1e6, offsets=True)
    actions, act = acted(Clocked(), 6, way="sync", latency_steps=2, replan_every=3, hold=lambda _: [0.0], limits=limits)
    assert actions == [0, 1, 2, 0, 0, 300] and act.counts.held == 2


def test_robots_that_step_together():
    """Time comes first: (H, N, D)."""

    def policy(observation, **options):
        one = Clocked()(observation)["actions"]
        return {"actions": np.stack([one, one + 0.5], axis=1)}

    act = ChunkExecutor(policy, way="ensemble", latency_steps=2, replan_every=3)
    together = [act({"step": step}) for step in range(40)]  # each (N, D)
    alone, _ = acted(Clocked(), way="ensemble", latency_steps=2, replan_every=3)
    np.testing.assert_allclose(together, np.add.outer(alone, [0.0, 0.5])[..., None])


def test_ways_that_cannot_be():
    with pytest.raises(ValueError, match=r"no way of acting 'fast'\. Ways: sync, naive, ensemble, rtc, rtc-trained"):
        ChunkExecutor(Clocked(), way="fast")
    with pytest.raises(ValueError, match='with way="rtc" nothing is averaged'):
        ChunkExecutor(Clocked(), way="rtc", ensemble_decay=0.1)
    with pytest.raises(ValueError, match="latency_steps must not be negative, got -1"):
        ChunkExecutor(Clocked(), latency_steps=-1)
    for name in ("latency_steps", "replan_every"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number, got 1.5"):
            ChunkExecutor(Clocked(), **{name: 1.5})
    with pytest.raises(ValueError, match="hold must be a function of the last command, got 0"):
        ChunkExecutor(Clocked(), hold=0)
    with pytest.raises(ValueError, match=r"4 steps late, asked every 9 steps, needs chunks of 13 .* Ask more often"):
        acted(Clocked(), way="naive", latency_steps=4, replan_every=9)
    with pytest.raises(ValueError, match=r"7 steps late needs chunks of 14 actions, this one's have 12\. Act by way"):
        acted(Clocked(), way="rtc", latency_steps=7)

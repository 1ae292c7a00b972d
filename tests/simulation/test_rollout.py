"""Roll-outs on an environment whose outcomes are known beforehand."""

import numpy as np
import pytest

from kivla.simulation.environments import make_env
from kivla.simulation.rollout import Acting, PipelinePolicy, rollout, swapped_instructions
from tests.helpers.fake_reach import FakeReachVectorEnv, ReachPolicy

SEEDS = range(100, 140)
SETTINGS = {"replan_every": 3, "max_steps": 20}


def outcomes(result) -> list[tuple]:
    return [(e.seed, e.instruction, e.success, e.swapped_success, e.steps) for e in result.episodes]


def test_a_policy_that_reads_and_sees_always_succeeds():
    result = rollout(ReachPolicy(), FakeReachVectorEnv(16), SEEDS, **SETTINGS)
    assert [episode.seed for episode in result.episodes] == list(SEEDS)
    assert result.success.all() and (result.steps < 8).all()


def test_a_policy_that_does_not_read_succeeds_by_half():
    result = rollout(ReachPolicy("red"), FakeReachVectorEnv(16), SEEDS, **SETTINGS)
    assert result.success.mean() == 0.5
    assert [e.success for e in result.episodes] == [e.instruction == "touch red" for e in result.episodes]


def test_swapped_control_tells_reading_from_guessing():
    env = FakeReachVectorEnv(16)
    sentences = swapped_instructions(env, SEEDS)
    true = rollout(ReachPolicy(), env, SEEDS, **SETTINGS)
    assert all({a, e.instruction} == {"touch red", "touch blue"} for a, e in zip(sentences, true.episodes, strict=True))

    reads = rollout(ReachPolicy(), env, SEEDS, **SETTINGS, instructions=sentences)
    assert [e.instruction for e in reads.episodes] == sentences
    assert not reads.success.any() and all(e.swapped_success for e in reads.episodes)

    blind = rollout(ReachPolicy("red"), env, SEEDS, **SETTINGS, instructions=sentences)
    np.testing.assert_array_equal(blind.success, [s % 2 == 0 for s in SEEDS], "as without the swap")
    assert [e.swapped_success for e in blind.episodes] == [not value for value in blind.success]
    assert all(e.swapped_success is None for e in true.episodes)


@pytest.mark.parametrize("num_envs", [1, 7, 40, 64])
def test_results_do_not_depend_on_the_number_of_environments(num_envs):
    expected = rollout(ReachPolicy(), FakeReachVectorEnv(16), SEEDS, **SETTINGS, record=20)
    result = rollout(ReachPolicy(), FakeReachVectorEnv(num_envs), SEEDS, **SETTINGS, record=20)
    assert outcomes(result) == outcomes(expected)
    for a, b in zip(result.episodes, expected.episodes, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)


def test_one_call_per_plan_for_those_that_still_run():
    env, policy = FakeReachVectorEnv(len(SEEDS)), ReachPolicy()
    result = rollout(policy, env, SEEDS, **SETTINGS)
    assert len(np.unique(result.steps)) > 1, "otherwise this shows nothing"
    plans = -(-result.steps.max() // 3)
    assert result.policy_calls == len(policy.calls) == plans
    for i, call in enumerate(policy.calls):
        assert len(call) == (result.steps > 3 * i).sum(), "finished episodes ask for no more actions"
    np.testing.assert_array_equal(result.steps, env.steps_taken)


def test_left_over_environments_are_not_observed():
    policy = ReachPolicy()
    result = rollout(policy, FakeReachVectorEnv(8), range(3), **SETTINGS)
    assert len(result.episodes) == 3 and len(policy.calls[0]) == 3


@pytest.mark.parametrize("replan_every", [1, 2, 4])
def test_chunks_are_executed_as_predicted_until_the_next_plan(replan_every):
    """A policy that numbers its actions, too slow to ever arrive."""
    calls = []

    def policy(observations):
        calls.append(len(observations))
        chunk = np.stack([np.full(4, 100 * len(calls)), np.arange(4)], axis=-1) * 1e-6
        return np.repeat(chunk[None], len(observations), axis=0)

    env = FakeReachVectorEnv(2)
    result = rollout(policy, env, [0, 1], replan_every, max_steps=7)
    assert (result.steps == 7).all() and not result.success.any()
    plan, index = np.divmod(np.arange(7), replan_every)
    expected = np.stack([100 * (plan + 1), index], axis=-1) * 1e-6
    np.testing.assert_allclose(np.stack(env.actions)[:, 0], expected, rtol=1e-6)
    assert calls == [2] * (plan[-1] + 1)


class NumberedPolicy:
    """Says in each action from which call it is, and which row: (100 · call, row), too small to ever arrive."""

    def __init__(self, horizon: int = 8):
        self.horizon, self.calls = horizon, []

    def __call__(self, observations):
        self.calls.append(observations)
        chunk = np.stack([np.full(self.horizon, 100 * len(self.calls)), np.arange(self.horizon)], axis=-1) * 1e-6
        return np.repeat(chunk[None], len(observations), axis=0)


def executed(acting, replan_every, max_steps):
    """What copy 0 executes, (call, row) for each step, and the policy."""
    env, policy = FakeReachVectorEnv(2), NumberedPolicy()
    result = rollout(policy, env, [7, 8], replan_every, max_steps, acting=acting)
    call, row = np.stack(env.actions)[:, 0].T * 1e6
    pairs = [(round(float(a) / 100), round(float(b))) for a, b in zip(call, row, strict=True)]
    return pairs, policy, result


def test_a_late_chunk_is_used_from_the_present_step_on():
    pairs, _, result = executed(Acting("naive", latency_steps=2), replan_every=3, max_steps=9)
    # The first one is there when the episode begins. The second is planned from step 3, and used from step 5 on.
    assert pairs == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4), (3, 2)]
    assert result.policy_calls == 3 and [episode.held_steps for episode in result.episodes] == [0, 0]


def test_who_waits_for_a_chunk_is_held_and_begins_with_its_first_action():
    pairs, _, result = executed(Acting("sync", latency_steps=2), replan_every=3, max_steps=9)
    assert pairs == [(1, 0), (1, 1), (1, 2), (1, 2), (1, 2), (2, 0), (2, 1), (2, 2), (2, 2)], "the last one again"
    assert [episode.held_steps for episode in result.episodes] == [3, 3]


def test_an_environment_of_offsets_is_held_by_none():
    class Offsets(FakeReachVectorEnv):
        def hold(self, actions):
            return np.zeros_like(actions)

    env = Offsets(1)
    rollout(NumberedPolicy(), env, [7], 3, 6, acting=Acting("sync", latency_steps=2))
    assert not np.stack(env.actions)[3:5].any() and np.stack(env.actions)[5].any()


def test_a_policy_that_goes_on_is_given_what_is_left_of_its_chunk():
    _, policy, _ = executed(Acting("rtc", latency_steps=2), replan_every=3, max_steps=7)
    first, second, third = policy.calls
    assert all("previous_actions" not in observation and "delay" not in observation for observation in first)
    for observation in second:
        assert observation["delay"] == 2
        np.testing.assert_allclose(
            observation["previous_actions"] * 1e6, [(100, row) for row in range(3, 8)], rtol=1e-5
        )
    np.testing.assert_allclose(third[0]["previous_actions"] * 1e6, [(200, row) for row in range(3, 8)], rtol=1e-5)


def test_no_latency_is_the_ordinary_roll_out():
    plain = rollout(ReachPolicy(), FakeReachVectorEnv(16), SEEDS, **SETTINGS)
    for way in ("sync", "naive"):
        same = rollout(ReachPolicy(), FakeReachVectorEnv(16), SEEDS, **SETTINGS, acting=Acting(way))
        assert outcomes(same) == outcomes(plain)
        assert [episode.jerk for episode in same.episodes] == [episode.jerk for episode in plain.episodes]


def test_fresh_noise_is_of_the_scene_and_the_step():
    def seeds(num_envs):
        policy = NumberedPolicy()
        rollout(policy, FakeReachVectorEnv(num_envs), [7, 8], 3, 5)
        return policy.calls

    (a, b), (c, d) = ([observation["seed"] for observation in call] for call in seeds(2))
    assert len({a, b, c, d}) == 4
    assert [call[0]["seed"] for call in seeds(1)] == [a, c, b, d]


def test_one_noise_for_all_where_it_is_asked_for():
    policy = NumberedPolicy()
    rollout(policy, FakeReachVectorEnv(2), [7, 8], 3, 5, acting=Acting(fresh_noise=False))
    assert not any("seed" in observation for call in policy.calls for observation in call)


def test_jerk_is_the_third_difference_of_what_was_executed():
    _, _, result = executed(Acting("naive", latency_steps=2), replan_every=3, max_steps=9)
    rows = np.array([(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4), (3, 2)]) * [100, 1] * 1e-6
    expected = np.square(np.diff(rows, n=3, axis=0) * 10**3).mean()
    assert result.episodes[0].jerk == pytest.approx(expected, rel=1e-4)
    _, _, short = executed(Acting(), replan_every=3, max_steps=3)
    assert short.episodes[0].jerk is None


def test_observations_are_those_of_the_right_episode():
    policy = ReachPolicy()
    env = FakeReachVectorEnv(4)
    rollout(policy, env, SEEDS[:4], **SETTINGS)
    observation, info = FakeReachVectorEnv(4).reset(seed=list(SEEDS[:4]))
    for i, seen in enumerate(policy.calls[0]):
        assert set(seen) == {"images", "text", "state", "seed"} and seen["text"] == info["instruction"][i]
        np.testing.assert_array_equal(seen["images"]["front"], observation["images"]["front"][i])
        np.testing.assert_array_equal(seen["state"], observation["state"][i])


def test_recorded_frames_are_the_whole_episode():
    result = rollout(ReachPolicy(), FakeReachVectorEnv(4), SEEDS, **SETTINGS, record=6)
    assert [e.frames is not None for e in result.episodes] == [True] * 6 + [False] * 34
    for episode in result.episodes[:6]:
        assert episode.frames.shape == (episode.steps + 1, 32, 32, 3) and episode.frames.dtype == np.uint8
        moved = (episode.frames[1:] != episode.frames[:-1]).any(axis=(1, 2, 3))
        assert moved.all(), "the hand moves in every step"


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 4, 3), r"shape \(2, 4, 3\) for 2 observations.*\(2, H, 2\) was expected"),
        ((1, 4, 2), r"\(2, H, 2\) was expected"),
        ((2, 2), r"\(2, H, 2\) was expected"),
        ((2, 2, 2), r"replan_every = 3, but the policy predicts only 2"),
    ],
)
def test_policies_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        rollout(lambda observations: np.zeros(shape), FakeReachVectorEnv(2), [0, 1], **SETTINGS)


def test_actions_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        rollout(lambda observations: np.full((1, 4, 2), np.nan), FakeReachVectorEnv(1), [0], **SETTINGS)


def test_noise_is_of_the_policy_s_seed_and_the_observation_s():
    def noise(seed, of_observation):
        pipe = FakePipeline(["front"])
        observation = {"images": {"front": None}, "text": "", "state": None, **of_observation}
        PipelinePolicy(pipe, seed=seed, rtc="guidance")([observation])
        ((seen,), options) = pipe.calls[0]
        assert options["rtc"] == "guidance" and options["seed"] == seed
        return seen.get("seed")

    assert noise(0, {}) is None
    assert len({noise(0, {"seed": 1}), noise(1, {"seed": 1}), noise(0, {"seed": 2})}) == 3
    assert noise(0, {"seed": 1}) == noise(0, {"seed": 1})


def test_settings_that_make_no_sense_are_refused():
    env = FakeReachVectorEnv(1)
    with pytest.raises(ValueError, match="got 0 seeds"):
        rollout(ReachPolicy(), env, [], **SETTINGS)
    with pytest.raises(ValueError, match="replan_every=0"):
        rollout(ReachPolicy(), env, [0], replan_every=0, max_steps=3)
    with pytest.raises(ValueError, match="Got 1 instructions for 2 seeds"):
        rollout(ReachPolicy(), env, [0, 1], **SETTINGS, instructions=["touch red"])


class FakePipeline:
    """What `PipelinePolicy` uses of `pipeline("action-prediction")`."""

    def __init__(self, cameras, responds=False):
        settings = {"cameras": cameras, "expert_reads_response": responds, "responds_first": responds}
        self.processor = type("Processor", (), settings)
        self.calls = []

    def __call__(self, observations, **options):
        self.calls.append((observations, options))
        return [{"actions": np.full((4, 2), i)} for i in range(len(observations))]


def test_pipeline_policy_hands_images_on_by_name():
    """The pipeline knows which is which. A policy without names takes the only image there is."""
    both, one = {"base": "BASE", "wrist": "WRIST"}, {"base": "BASE"}
    for cameras, images, expected in ((["wrist", "base"], both, both), (None, both, both), (None, one, ["BASE"])):
        pipe = FakePipeline(cameras)
        observations = [{"images": images, "text": "go", "state": None}] * 3
        actions = PipelinePolicy(pipe, seed=5, num_steps=2)(observations)
        np.testing.assert_array_equal(actions[:, 0, 0], [0, 1, 2])
        ((seen, options),) = pipe.calls
        assert [o["images"] for o in seen] == [expected] * 3
        assert options == {"seed": 5, "num_steps": 2, "clip_actions": None}


def test_pipeline_policy_can_be_silent():
    """A response of no words is what a pipeline takes for "act at once"."""
    observations = [{"images": {"base": "BASE"}, "text": "go", "state": None}] * 2
    for respond in (True, False):
        pipe = FakePipeline(["base"], responds=True)
        PipelinePolicy(pipe, respond=respond)(observations)
        ((seen, _),) = pipe.calls
        assert [o.get("response") for o in seen] == [None if respond else ""] * 2
    with pytest.raises(ValueError, match="was not taught to say anything"):
        PipelinePolicy(FakePipeline(["base"]), respond=False)


def test_pipeline_policy_counts_what_was_clipped():
    """Over all chunks, of 8 values each; None where the policy's statistics do not allow to clip."""
    observations = [{"images": {"base": "BASE"}, "text": "go", "state": None}] * 2
    pipe = FakePipeline(None)
    policy = PipelinePolicy(pipe)
    policy(observations)
    assert policy.clipped_share is None
    answers = pipe(observations)
    for answer, values in zip(answers, (1, 3), strict=True):
        answer["clipped"] = {"values": values, "of": 8, "share": values / 8, "largest": 0.5, "dimension": 1}
    policy.pipe = type("Clipping", (), {"processor": pipe.processor, "__call__": lambda self, *_, **__: answers})()
    policy(observations)
    policy(observations)
    assert policy.clipped_share == 8 / 32


def test_environments_by_name():
    assert make_env("fake-reach", 3, camera="top").cameras == ["top"]
    with pytest.raises(ValueError, match=r"Unknown environment 'kitchen', expected one of .*tabletop"):
        make_env("kitchen", 1)


def test_control_needs_swapped_sentences():
    class Silent(FakeReachVectorEnv):
        def reset(self, seed, options=None):
            observation, info = super().reset(seed, options)
            del info["swapped_instruction"]
            return observation, info

    with pytest.raises(ValueError, match="Silent gives no info"):
        swapped_instructions(Silent(2), [0, 1])

"""The hidden tabletop: what is asked for is seen, then covered, then needed; and what roll-outs give a policy of it."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from kivla.processing.observation_history import ObservationHistory
from kivla.simulation import HiddenTabletopVectorEnv, TabletopVectorEnv, make_env
from kivla.simulation.hidden_tabletop import HELD, SHOWN
from kivla.simulation.recording import demonstrate
from kivla.simulation.rollout import Acting, rollout

SEEDS = list(range(40))


def pictures(env, seeds, steps: int) -> list[np.ndarray]:
    """What is seen at every step while the expert acts, (N, H, W, 3) each."""
    seen = [env.reset(seed=seeds)[0]["images"]["top"]]
    return seen + [env.step(env.expert_actions())[0]["images"]["top"] for _ in range(steps)]


def test_gymnasium_checks_the_environment():
    check_env(gymnasium.make("KIVLA/HiddenTabletop-v0", render_mode="rgb_array").unwrapped)
    assert make_env("hidden", 2, image_size=32).reset(seed=[3, 4])[0]["images"]["top"].shape == (2, 32, 32, 3)


def test_the_expert_succeeds_and_acts_as_on_the_tabletop():
    hidden, plain = (demonstrate(kind(len(SEEDS)), SEEDS) for kind in (HiddenTabletopVectorEnv, TabletopVectorEnv))
    for one, other in zip(hidden, plain, strict=True):
        assert one.success and one.instruction == other.instruction
        np.testing.assert_array_equal(one.states[:HELD], one.states[:1].repeat(HELD, 0))  # whatever it is told
        np.testing.assert_array_equal(one.actions[HELD:], other.actions)  # and then the same way
        np.testing.assert_array_equal(one.images["top"][0], other.images["top"][0])


def test_covers_hide_colour_and_shape():
    """After the covers two scenes with the same places look the same, whatever lies under them."""
    env = HiddenTabletopVectorEnv(2)
    env.reset(seed=[1, 1])
    scene = env.scene
    scene.colors[1] = (scene.colors[0] + 1) % 8
    scene.shapes[1] = (scene.shapes[0] + 1) % 4
    for step in range(1, HELD):
        top = env.step(np.zeros((2, 3)))[0]["images"]["top"]
        assert (top[0] == top[1]).all() == (step >= SHOWN), step


def test_a_reset_shows_them_again():
    env = HiddenTabletopVectorEnv(2)
    covered = pictures(env, [1, 2], SHOWN)[-1]
    assert np.ptp(covered.astype(int), axis=-1).max() < 10  # white discs and a white ring: no colour
    np.testing.assert_array_equal(pictures(env, [1, 2], 0)[0], pictures(TabletopVectorEnv(2), [1, 2], 0)[0])


def test_same_seed_same_pixels_alone_and_among_others():
    together = pictures(HiddenTabletopVectorEnv(3), [11, 12, 13], HELD + 3)
    alone = pictures(HiddenTabletopVectorEnv(1), [12], HELD + 3)
    for frame, own in zip(together, alone, strict=True):
        np.testing.assert_array_equal(frame[1], own[0])


class Witness:
    """Acts with zeros, and keeps what it was given."""

    def __init__(self, history: ObservationHistory | None):
        self.asked = []
        if history is not None:
            self.observation_history = history

    def __call__(self, observations: list[dict]) -> np.ndarray:
        self.asked.append(observations)
        return np.zeros((len(observations), 6, 3))


@pytest.mark.parametrize("latency_steps", [0, 2])
def test_a_rollout_gives_a_policy_its_past(latency_steps):
    history, env, every = ObservationHistory(3, 5), HiddenTabletopVectorEnv(2, max_steps=17), 4
    policy = Witness(history)
    acting = Acting("naive" if latency_steps else "sync", latency_steps)
    rollout(policy, env, [1, 2, 3], every, 17, acting=acting)
    steps = list(range(0, 17, every))
    assert len(policy.asked) == 2 * len(steps)  # two rounds
    seen = {seeds: pictures_still(seeds) for seeds in ((1, 2), (3, 3))}
    for number, observations in enumerate(policy.asked):
        step, seeds = steps[number % len(steps)], (1, 2) if number < len(steps) else (3, 3)
        for i, observation in enumerate(observations):
            wanted = history.steps(step)
            given = [*observation["past"], observation]
            assert len(given) == len(wanted)
            for moment, earlier in zip(wanted, given, strict=True):
                np.testing.assert_array_equal(earlier["images"]["top"], seen[seeds][moment][i])
                assert earlier["state"].shape == (3,)


def pictures_still(seeds) -> list[np.ndarray]:
    env = HiddenTabletopVectorEnv(2)
    seen = [env.reset(seed=list(seeds))[0]["images"]["top"]]
    return seen + [env.step(np.zeros((2, 3)))[0]["images"]["top"] for _ in range(17)]


def test_a_policy_that_says_nothing_gets_the_present_alone():
    policy = Witness(None)
    rollout(policy, HiddenTabletopVectorEnv(2, max_steps=8), [1, 2], 4, 8)
    assert all("past" not in observation for observations in policy.asked for observation in observations)

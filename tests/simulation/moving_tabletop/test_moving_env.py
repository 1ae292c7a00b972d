"""The moving tabletop: gymnasium's checks, determinism, how things move, the expert, and that time matters."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from kivla.simulation import MovingTabletopVectorEnv, make_env
from kivla.simulation.moving_tabletop.motion import MAX_ACCELERATION, MAX_SPEED, TRACKS, drift, glide
from kivla.simulation.recording import demonstrate

OBSTACLE = 0


def run(env, policy):
    """Step until every table is done; returns the last info."""
    while True:
        _, _, terminated, truncated, info = env.step(policy(env))
        if (terminated | truncated).all():
            return info


def expert(env):
    return env.expert_actions()


def test_gymnasium_checks_the_environment():
    check_env(gymnasium.make("KIVLA/MovingTabletop-v0", render_mode="rgb_array").unwrapped)


def test_it_is_made_by_its_name():
    env = make_env("moving", 2, image_size=32)
    observation, info = env.reset(seed=[3, 4])
    assert observation in env.observation_space and observation["images"]["top"].shape == (2, 32, 32, 3)
    assert all(sentence.startswith(("touch", "reach", "go to")) for sentence in info["instruction"])


def test_same_seed_same_pixels_alone_and_among_others():
    seeds = [11, 12, 13]
    together = MovingTabletopVectorEnv(3)
    observation, info = together.reset(seed=seeds)
    frames, states, texts = [observation["images"]["top"]], [observation["state"]], info["instruction"]
    for _ in range(15):
        observation, *_ = together.step(together.expert_actions())
        frames.append(observation["images"]["top"])
        states.append(observation["state"])
    for i, seed in enumerate(seeds):
        alone = gymnasium.make("KIVLA/MovingTabletop-v0").unwrapped
        observation, info = alone.reset(seed=seed)
        assert info["instruction"] == texts[i]
        for frame, state in zip(frames, states, strict=True):
            np.testing.assert_array_equal(observation["images"]["top"], frame[i])
            np.testing.assert_array_equal(observation["state"], state[i])
            observation, *_ = alone.step(alone.expert_action())


def test_demonstrations_depend_on_their_seed_alone():
    together = demonstrate(MovingTabletopVectorEnv(3), [4, 5, 6], [0.4, 0.4])
    alone = demonstrate(MovingTabletopVectorEnv(1), [5], [0.4, 0.4])[0]
    np.testing.assert_array_equal(alone.actions, together[1].actions)
    np.testing.assert_array_equal(alone.images["top"], together[1].images["top"])


def test_objects_drift_and_turn_back_at_the_ends_of_their_tracks():
    positions = np.array([[[0.19, 0.0], [-0.5, 0.7], [0.31, 0.7]]])
    velocities = np.array([[0.02, 0.01, -0.02]])
    moved, now = drift(positions, velocities)
    np.testing.assert_allclose(moved[0, :, 0], [0.19, -0.49, 0.31])  # 0.21 and 0.29 are as far outside as these inside
    np.testing.assert_allclose(now, [[-0.02, 0.01, 0.02]])
    np.testing.assert_array_equal(moved[..., 1], positions[..., 1])
    # Many steps are as many single ones, and back again.
    many, then = drift(positions, velocities, 77)
    for _ in range(77):
        positions, velocities = drift(positions, velocities)
        assert (TRACKS[:, 0] <= positions[0, :, 0]).all() and (positions[0, :, 0] <= TRACKS[:, 1]).all()
    np.testing.assert_allclose(many, positions)
    np.testing.assert_allclose(then, velocities)
    back, _ = drift(many, then, -77)
    np.testing.assert_allclose(back[0, :, 0], [0.19, -0.5, 0.31])


def test_the_gripper_has_inertia():
    gripper, velocity, speeds = np.array([[-0.5, 0.0]]), np.zeros((1, 2)), [0.0]
    for told in [1.0] * 20 + [-1.0] * 20:
        before = gripper
        gripper, velocity = glide(gripper, velocity, np.array([[told, 0.0]]))
        np.testing.assert_allclose(velocity, gripper - before)
        speeds.append(velocity[0, 0])
    assert np.abs(np.diff(speeds)).max() <= MAX_ACCELERATION + 1e-12
    assert speeds[20] == pytest.approx(MAX_SPEED, rel=0.01) and speeds[40] == pytest.approx(-MAX_SPEED, rel=0.01)
    assert speeds[21] > 0, "it cannot turn at once"
    _, stopped = glide(np.array([[0.94, 0.0]]), np.array([[0.06, 0.0]]), np.array([[1.0, 0.0]]))
    assert stopped[0, 0] == pytest.approx(0.01), "at the edge it stops"


def test_the_picture_shows_which_way_things_go():
    env = MovingTabletopVectorEnv(1)
    first, _ = env.reset(seed=[0])
    env.velocities = -env.velocities
    assert (env._observe()["images"]["top"] != first["images"]["top"]).any()


@pytest.mark.slow
def test_the_expert_succeeds_and_follows_the_sentence():
    env = MovingTabletopVectorEnv(1000, image_size=24)
    _, info = env.reset(seed=range(1000))
    swapped = info["swapped_instruction"]
    assert run(env, expert)["success"].mean() >= 0.99
    env.reset(seed=range(1000), options={"instruction": swapped})
    info = run(env, expert)
    assert info["swapped_success"].mean() >= 0.99 and not info["success"].any()


def test_the_expert_goes_round_the_obstacle_on_either_side():
    env = MovingTabletopVectorEnv(200, image_size=24)
    env.reset(seed=range(200))
    side = np.zeros(200)
    for _ in range(env.max_steps):
        env.step(env.expert_actions())
        offset = env.scene.gripper - env.scene.positions[:, OBSTACLE]
        side = np.where((side == 0) & (offset[:, 1] >= 0), np.sign(offset[:, 0]), side)
    assert 0.4 < (side > 0).mean() < 0.6


def test_an_expert_that_acts_late_fails():
    def success(latency):
        env = MovingTabletopVectorEnv(200, image_size=24)
        env.reset(seed=range(200))
        waiting = [np.zeros((200, 2)) for _ in range(latency)]

        def late(env):
            waiting.append(env.expert_actions())
            return waiting.pop(0)

        return run(env, late)["success"].mean()

    assert success(0) > 0.99 > success(4) + 0.2


def test_an_episode_may_begin_midway():
    env = MovingTabletopVectorEnv(300, midway=True, image_size=24)
    env.reset(seed=range(300))
    assert (env.scene.gripper[:, 1] > 0.2).mean() > 0.2 and np.abs(env.gripper_velocity).max() > 0.05
    assert run(env, expert)["success"].mean() > 0.8, "some begin on a way that ends at the obstacle"


def test_what_is_tracked_is_where_things_are_and_where_they_go():
    env = MovingTabletopVectorEnv(40, tracked=True, image_size=24)
    before, _ = env.reset(seed=range(40))
    rows, target = np.arange(40), env.told_task.target
    assert before in env.observation_space and before["state"].shape == (40, env.state_dim) == (40, 10)
    for _ in range(5):
        before, *_ = env.step(env.expert_actions())
    state = dict(zip(env.state_names, before["state"].T, strict=True))
    np.testing.assert_allclose(state["x"], env.scene.gripper[:, 0], atol=1e-6)
    np.testing.assert_allclose(state["y_velocity"], env.gripper_velocity[:, 1], atol=1e-6)
    np.testing.assert_allclose(state["obstacle_y"], env.scene.positions[:, OBSTACLE, 1], atol=1e-6)
    np.testing.assert_allclose(state["target_x"], env.scene.positions[rows, target, 0], atol=1e-6)
    assert len({tuple(row) for row in before["state"][:, 5:8].tolist()}) == 40
    # A velocity is what a place changes by in the next step, where nothing turns back meanwhile.
    after, *_ = env.step(np.zeros((40, 2)))
    for name in ("obstacle_x", "target_x"):
        moved = after["state"][:, env.state_names.index(name)] - state[name]
        assert np.isclose(moved, state[f"{name}_velocity"], atol=1e-6).mean() > 0.9


def test_it_can_be_held():
    env = MovingTabletopVectorEnv(5, max_steps=100)
    env.reset(seed=range(5))
    for _ in range(5):
        env.step(env.expert_actions())
    for _ in range(30):
        env.step(env.hold(env.expert_actions()))
    assert np.abs(env.gripper_velocity).max() < 1e-6

import json

import numpy as np
import pytest

from kivla.simulation.recording import demonstrate, record_demonstrations
from kivla.simulation.tabletop.env import STEP, TabletopVectorEnv
from kivla.training.data.lerobot.dataset import LeRobotDataset
from tests.helpers.fake_environment import INSTRUCTIONS, FakeVectorEnv


def files(root):
    """Path → content of every file, without what is not reproducible about parquet and MP4 files: nothing."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_demonstration_is_what_the_environment_showed_and_the_expert_did():
    env = FakeVectorEnv(3, failing_seeds=[11])
    episodes = demonstrate(env, [10, 11, 12])
    assert [episode.success for episode in episodes] == [True, False, True]
    assert len(episodes[1].actions) == env.max_steps
    for seed, episode in zip([10, 11, 12], episodes, strict=True):
        alone = FakeVectorEnv(1, failing_seeds=[11])
        obs, info = alone.reset([seed])
        assert episode.instruction == info["instruction"][0]
        for step, action in enumerate(episode.actions):
            for name in env.cameras:
                np.testing.assert_array_equal(episode.images[name][step], obs["images"][name][0])
            np.testing.assert_array_equal(episode.states[step], obs["state"][0])
            np.testing.assert_array_equal(action, alone.expert_actions()[0])
            obs, _, terminated, truncated, info = alone.step(action[None])
            assert (terminated | truncated)[0] == (step == len(episode.actions) - 1)


def test_noise_disturbs_what_is_executed_and_not_what_is_recorded():
    env = TabletopVectorEnv(3, kinds=["move"])
    noise = [0.6, 0.6, 0.0]
    episodes = demonstrate(env, [4, 5, 6], noise)
    clean = demonstrate(env, [4, 5, 6])
    alone = demonstrate(TabletopVectorEnv(1, kinds=["move"]), [5], noise)[0]
    np.testing.assert_array_equal(alone.states, episodes[1].states, err_msg="an episode depends on its seed alone")
    for disturbed, undisturbed in zip(episodes, clean, strict=True):
        moved, told = np.diff(disturbed.states[:, :2], axis=0), STEP * disturbed.actions[:-1, :2]
        assert np.abs(moved - told).max() > 0.02, "what happened is not what the expert did"
        moved, told = np.diff(undisturbed.states[:, :2], axis=0), STEP * undisturbed.actions[:-1, :2]
        np.testing.assert_allclose(moved, told, atol=1e-6)  # of a table that is 1 wide
        np.testing.assert_array_equal(disturbed.states[1:, 2] > 0, disturbed.actions[:-1, 2] > 0)
        np.testing.assert_array_equal(disturbed.actions[0], undisturbed.actions[0])


def test_subtasks_are_recorded_where_the_environment_says_them(tmp_path):
    env = TabletopVectorEnv(3, kinds=["touch", "touch_then_touch"])
    record_demonstrations(env, tmp_path / "demos", num_episodes=6, image_format="image")
    data = LeRobotDataset(tmp_path / "demos", 1, subtask_key="language_persistent")
    kinds = set()
    for episode in range(6):
        items = [data[item] for item in data.episode_range(episode)]
        parts = items[0]["text"].split(", then ")
        assert list(dict.fromkeys(item["response"] for item in items)) == parts
        kinds.add(len(parts))
    assert kinds == {1, 2}, "otherwise this shows nothing of one of the kinds"


def test_an_empty_grip_is_executed_and_not_recorded():
    """The expert opens and goes on; scenes and noise are those of the same seeds without it."""
    env, seeds = TabletopVectorEnv(30, kinds=["move"]), list(range(30))
    episodes = demonstrate(env, seeds, empty_grips=0.5)
    as_without = []
    for episode, plain in zip(episodes, demonstrate(env, seeds), strict=True):
        assert episode.instruction == plain.instruction
        as_without.append(np.array_equal(episode.actions, plain.actions))
        is_closed, opens = episode.states[:, 2] > 0, episode.actions[:, 2] < 0
        if not (is_closed & opens).any():
            continue  # none, or there was an object to take
        first = int(np.flatnonzero(is_closed)[0])
        assert opens[: first + 1].all(), "closing out of turn was recorded"
        assert not episode.actions[first, :2].any(), "it opens first"
    empty = [((one.states[:, 2] > 0) & (one.actions[:, 2] < 0)).any() for one in episodes]
    assert 8 < sum(empty) < 22 and 8 < sum(as_without) < 22
    assert np.mean([one.success for one in episodes]) > 0.9
    alone = demonstrate(TabletopVectorEnv(1, kinds=["move"]), [int(np.flatnonzero(empty)[0])], empty_grips=0.5)[0]
    np.testing.assert_array_equal(alone.states, episodes[int(np.flatnonzero(empty)[0])].states)


def test_empty_grips_need_a_gripper_and_a_share():
    with pytest.raises(ValueError, match=r"the action named 'grip', but FakeVectorEnv has \['dx'\]"):
        demonstrate(FakeVectorEnv(1), [0], empty_grips=0.1)
    with pytest.raises(ValueError, match="from 0 to 1; got 30"):
        demonstrate(TabletopVectorEnv(1), [0], empty_grips=30)


def test_noise_of_another_robot_is_refused():
    with pytest.raises(ValueError, match=r"one standard deviation for each of \['dx'\], got 2 values"):
        demonstrate(FakeVectorEnv(1), [0], [0.1, 0.1])
    for noise in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="standard deviations, each 0 or more; got"):
            demonstrate(FakeVectorEnv(1), [0], [noise])


def test_recorded_episodes_are_read_as_a_dataset(tmp_path):
    env = FakeVectorEnv(2)
    seeds = record_demonstrations(env, tmp_path / "demos", num_episodes=5, seed=3)
    assert seeds == [3, 4, 5, 6, 7]
    data = LeRobotDataset(tmp_path / "demos", chunk_size=4)
    assert (data.fps, data.robot_type, data.num_episodes) == (5, "dot", 5)
    assert data.cameras == ["observation.images.front", "observation.images.wrist"]
    assert (data.state_names, data.action_names) == (["x", "speed"], ["dx"])
    assert set(data.tasks.values()) <= set(INSTRUCTIONS)
    for number, seed in enumerate(seeds):
        episode = demonstrate(FakeVectorEnv(1), [seed])[0]
        items = [data[index] for index in data.episode_range(number)]
        np.testing.assert_array_equal([item["state"] for item in items], episode.states, strict=True)
        np.testing.assert_array_equal([item["actions"][0] for item in items], episode.actions, strict=True)
        for camera, name in enumerate(env.cameras):
            np.testing.assert_array_equal([item["images"][camera] for item in items], episode.images[name])
        assert {item["text"] for item in items} == {episode.instruction}


def test_failed_episodes_are_left_out_and_the_number_of_copies_does_not_matter(tmp_path):
    seeds = [
        record_demonstrations(
            FakeVectorEnv(num_envs, failing_seeds=[1, 2]), tmp_path / str(num_envs), 4, image_format="image"
        )
        for num_envs in (1, 3, 8)
    ]
    assert seeds == [[0, 3, 4, 5]] * 3
    assert files(tmp_path / "1") == files(tmp_path / "3") == files(tmp_path / "8")
    assert json.loads((tmp_path / "1/meta/info.json").read_text())["total_episodes"] == 4


def test_an_expert_that_fails_ends_with_an_error_and_no_dataset(tmp_path):
    env = FakeVectorEnv(2, failing_seeds=range(1, 100))
    with pytest.raises(RuntimeError, match="failed in 4 of 5 episodes, and max_failures is 3"):
        record_demonstrations(env, tmp_path / "demos", num_episodes=3)
    assert list(tmp_path.iterdir()) == []
    assert record_demonstrations(FakeVectorEnv(2, failing_seeds=[0]), tmp_path / "demos", 1, max_failures=1) == [1]
    with pytest.raises(RuntimeError, match="failed in 1 of 1 episodes"):
        record_demonstrations(FakeVectorEnv(2, failing_seeds=[0]), tmp_path / "more", 1, max_failures=0)


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    env = FakeVectorEnv(1)
    step, count = env.step, iter(range(100))

    def interrupted(actions):
        if next(count) == 20:
            raise KeyboardInterrupt
        return step(actions)

    monkeypatch.setattr(env, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record_demonstrations(env, tmp_path / "demos", num_episodes=10)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        record_demonstrations(FakeVectorEnv(1), tmp_path, num_episodes=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="num_episodes must be at least 1, got 0"):
        record_demonstrations(FakeVectorEnv(1), tmp_path / "demos", num_episodes=0)


def test_progress_is_shown(tmp_path, capsys):
    record_demonstrations(FakeVectorEnv(1), tmp_path / "demos", num_episodes=2, image_format="image")
    assert "Recording demonstrations: 100%" in capsys.readouterr().err

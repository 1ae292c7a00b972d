"""Meta-World's scenes: determinism, that only the sentence tells the task, the experts, and what decides success."""

import numpy as np
import pytest

metaworld_env = pytest.importorskip("kivla.simulation.metaworld_env", exc_type=ImportError)

import mujoco  # noqa: E402

from kivla.simulation import make_env  # noqa: E402
from kivla.simulation.recording import record_demonstrations  # noqa: E402
from kivla.simulation.rollout import rollout, swapped_instructions  # noqa: E402
from kivla.training.data.lerobot.dataset import LeRobotDataset  # noqa: E402

FAUCET = metaworld_env.TASKS[:2]
OPEN, CLOSE = (task.instruction for task in FAUCET)
SEEDS = [3, 4, 5, 6]


@pytest.fixture(scope="module", autouse=True)
def graphics():
    try:
        mujoco.GLContext(8, 8).free()
    except (ImportError, RuntimeError) as error:  # which of them, depends on the backend
        pytest.skip(f"MuJoCo cannot draw here (see kivla.simulation.metaworld_env for what to install): {error}")


@pytest.fixture(scope="module")
def env(graphics):
    env = make_env("metaworld", len(SEEDS))
    yield env
    env.close()


def run(env, actions=None):
    """Step until every copy is done, by default as the expert; returns the last info and the lengths (N,)."""
    lengths, running = np.zeros(env.num_envs, int), np.ones(env.num_envs, bool)
    while running.any():
        lengths += running
        _, _, terminated, truncated, info = env.step(env.expert_actions() if actions is None else actions)
        running &= ~(terminated | truncated)
    return info, lengths


def test_interface(env):
    observation, info = env.reset(seed=SEEDS)
    assert observation in env.observation_space
    assert observation["images"]["front"].shape == (4, 64, 64, 3)
    assert env.cameras == ["front"] and env.fps == 20
    assert len(env.state_names) == env.state_dim == 4 and len(env.action_names) == env.action_dim == 4
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert observation in env.observation_space
    assert reward.shape == terminated.shape == truncated.shape == info["success"].shape == (4,)
    assert not (terminated | truncated | info["success"] | info["swapped_success"]).any(), "done after one step"
    assert set(info["instruction"] + info["swapped_instruction"]) == {OPEN, CLOSE}
    np.testing.assert_allclose(
        observation["state"][:, :3], [metaworld_env.SCENES["faucet"].hand] * 4, atol=0.05
    )  # metres


def test_same_seed_same_pixels_alone_and_among_others(env):
    frames, info = [], env.reset(seed=SEEDS)[1]
    for _ in range(3):
        frames.append(env.step(env.expert_actions())[0])
    alone = make_env("metaworld", 1)
    for i, seed in list(enumerate(SEEDS))[:2]:
        assert alone.reset(seed=[seed])[1]["instruction"] == info["instruction"][i : i + 1]
        for frame in frames:
            observation = alone.step(alone.expert_actions())[0]
            np.testing.assert_array_equal(observation["images"]["front"][0], frame["images"]["front"][i])
            np.testing.assert_array_equal(observation["state"][0], frame["state"][i])
    alone.close()
    assert not np.array_equal(frames[0]["images"]["front"][0], frames[0]["images"]["front"][1]), "seeds look alike"


def test_only_the_sentence_tells_the_task(env):
    first = {text: env.reset(seed=SEEDS, options={"instruction": [text] * 4})[0] for text in (OPEN, CLOSE)}
    np.testing.assert_array_equal(first[OPEN]["images"]["front"], first[CLOSE]["images"]["front"])
    np.testing.assert_array_equal(first[OPEN]["state"], first[CLOSE]["state"])
    one_task = {task.name: make_env("metaworld", 1, tasks=[task.name]) for task in FAUCET}
    observations, infos = zip(*(other.reset(seed=[3]) for other in one_task.values()), strict=True)
    assert [info["instruction"] for info in infos] == [[OPEN], [CLOSE]]
    assert [info["swapped_instruction"] for info in infos] == [[CLOSE], [OPEN]]
    np.testing.assert_array_equal(*(observation["images"]["front"] for observation in observations))
    for other in one_task.values():
        other.close()


@pytest.mark.parametrize("sentence", [OPEN, CLOSE])
def test_the_expert_does_what_it_is_told(env, sentence):
    env.reset(seed=SEEDS, options={"instruction": [sentence] * 4})
    info, lengths = run(env)
    assert info["swapped_success"].all(), f"the expert failed to {sentence}"
    own = [task == sentence for task in (metaworld_env.TASKS[index].instruction for index in env.task)]
    assert info["success"].tolist() == own, "success is about the scene's own instruction"
    assert lengths.max() <= 20
    angles = [data.joint("knob_Joint_1").qpos[0] for data in env.data]
    assert (np.array(angles) * (1 if sentence == OPEN else -1) > 1.2).all(), "the handle was turned the other way"


@pytest.mark.parametrize("task", FAUCET, ids=lambda task: task.name)
def test_scene_motion_and_success_are_metaworlds_own(task):
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = make_env("metaworld", 1, tasks=[task.name], action_repeat=1, max_steps=150, image_size=8)
    env.reset(seed=[9])
    original = ALL_V3_ENVIRONMENTS[task.name]()
    original._set_task_called, original._last_rand_vec = True, env.places[0]
    original.reset()
    done = False
    while not done:
        action = env.expert_actions()[0]
        observation, _, terminated, truncated, info = env.step(action[None])
        expected, _, _, _, expected_info = original.step(action)
        np.testing.assert_allclose(observation["state"][0], expected[:4], atol=1e-6)  # metres
        np.testing.assert_allclose(task.handle(env.data[0]), expected[4:7], atol=1e-6)
        assert info["success"][0] == bool(expected_info["success"])
        done = (terminated | truncated)[0]
    assert info["success"][0], "the expert failed"
    env.close()


def test_all_tasks_are_told_by_the_sentence_alone():
    """Of every scene: the same picture whatever is told, either task by the expert, never both, and its phases."""
    tasks, count = metaworld_env.TASKS, 20
    env = make_env("metaworld", count, tasks="all", image_size=16)
    first, info = env.reset(seed=range(count))
    assert set(env.task.tolist()) == set(range(len(tasks))), "a task is not drawn"
    own, other = info["instruction"], info["swapped_instruction"]
    assert own == [tasks[task].instruction for task in env.task]
    assert all(
        {a, b} == {t.instruction for t in tasks if t.scene == s} for a, b, s in zip(own, other, env.scenes, strict=True)
    )
    assert info["phases"] == [dict.fromkeys(metaworld_env.PHASES, False)] * count
    for told in (own, other):
        again, info = env.reset(seed=range(count), options={"instruction": told})
        np.testing.assert_array_equal(again["images"]["front"], first["images"]["front"])
        np.testing.assert_array_equal(again["state"], first["state"])
        assert not (info["success"] | info["swapped_success"]).any(), "done before it began"
        info, lengths = run(env)
        assert info["swapped_success"].all(), np.array(told)[~info["swapped_success"]]
        assert info["success"].all() if told is own else not info["success"].any()
        assert lengths.max() <= 40
        assert info["phases"] == [dict.fromkeys(metaworld_env.PHASES, True)] * count
    env.close()


def test_a_sentence_of_another_scene_is_not_understood():
    env = make_env("metaworld", 1, tasks=["drawer-open-v3"], image_size=24)
    _, info = env.reset(seed=[0], options={"instruction": [OPEN]})
    assert info["phases"] == [{}] and env.told_task.tolist() == [-1]
    with pytest.raises(ValueError, match="cannot follow 'open the faucet'"):
        env.expert_actions()
    env.close()


def test_a_finished_copy_freezes(env):
    env.reset(seed=SEEDS, options={"instruction": [OPEN, "fly", "fly", "fly"]})
    assert not env.step(np.zeros((4, 4)))[4]["swapped_success"].any()
    with pytest.raises(ValueError, match="cannot follow 'fly', told to copy 1"):
        env.expert_actions()
    env.reset(seed=SEEDS, options={"instruction": [OPEN] * 4})
    run(env)
    observation, _, terminated, _, info = env.step(np.zeros((4, 4)))
    later, reward, still_terminated, truncated, later_info = env.step(np.ones((4, 4)))
    np.testing.assert_array_equal(later["images"]["front"], observation["images"]["front"])
    np.testing.assert_array_equal(later["state"], observation["state"])
    assert terminated.all() and still_terminated.all() and not truncated.any() and not reward.any()
    np.testing.assert_array_equal(later_info["success"], info["success"])


def test_who_does_nothing_runs_out_of_time():
    env = make_env("metaworld", 1, max_steps=4, image_size=8)
    env.reset(seed=[0])
    info, lengths = run(env, np.zeros((1, 4), np.float32))
    assert lengths.tolist() == [4] and env.step(np.zeros((1, 4)))[3].all()
    assert not info["success"].any() and not info["swapped_success"].any()
    env.close()


def test_demonstrations_and_rollouts(tmp_path, env):
    assert record_demonstrations(env, tmp_path / "demos", num_episodes=2) == [0, 1]
    data = LeRobotDataset(tmp_path / "demos", chunk_size=4)
    assert (data.fps, data.robot_type, data.num_episodes) == (20, "sawyer", 2)
    assert set(data.tasks.values()) <= {OPEN, CLOSE}
    images = env.reset(seed=[0, 1, 2, 3])[0]["images"]["front"]
    np.testing.assert_array_equal(data[0]["images"][0], images[0])

    def idle(observations):
        return np.zeros((len(observations), 4, 4), np.float32)

    sentences = swapped_instructions(env, SEEDS)
    result = rollout(idle, env, SEEDS, replan_every=4, max_steps=8, instructions=sentences, record=1)
    assert [episode.instruction for episode in result.episodes] == sentences
    assert not result.success.any() and result.episodes[0].frames.shape == (9, 64, 64, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["faucet-melt-v3"]}, "faucet-melt-v3"),
        ({"tasks": "every"}, "or 'all'"),
        ({"tasks": []}, "one or more of faucet-open-v3, faucet-close-v3"),
        ({"action_repeat": 3}, "action_repeat=3"),
        ({"max_steps": 0}, "max_steps=0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_env("metaworld", 1, **options)


def test_wrong_seeds_instructions_and_actions_are_named(env):
    with pytest.raises(ValueError, match="Got 1 seeds for 4"):
        env.reset(seed=[1])
    with pytest.raises(ValueError, match="Got 2 instructions for 4"):
        env.reset(seed=SEEDS, options={"instruction": [OPEN] * 2})
    with pytest.raises(ValueError, match="'task'"):
        env.reset(seed=SEEDS, options={"task": OPEN})
    env.reset(seed=SEEDS)
    with pytest.raises(ValueError, match=r"\(4, 4\) \(dx, dy, dz, grip\), got shape \(4, 3\)"):
        env.step(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="NaN"):
        env.step(np.full((4, 4), np.nan))

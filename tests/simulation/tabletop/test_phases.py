"""The phases of a task: how far an episode came is what its deeds say, also about another instruction."""

import numpy as np
import pytest

from kivla.simulation import TASK_KINDS, TabletopVectorEnv
from kivla.simulation.rollout_evaluation import count_phases, evaluate
from kivla.simulation.tabletop.phases import PHASES

REACHED, CLOSED, HELD, CARRIED, DONE = PHASES["move"]


def phases_after(env, policy):
    """Step until every table is done; which phases each copy reached."""
    done = np.zeros(env.num_envs, dtype=bool)
    while not done.all():
        *_, terminated, truncated, info = env.step(policy(env))
        done = terminated | truncated
    return info["phases"]


def share(phases, name):
    return np.mean([of_copy[name] for of_copy in phases])


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_the_expert_reaches_every_phase_of_what_it_is_told(kind):
    env = TabletopVectorEnv(40, [kind], image_size=24)
    _, info = env.reset(seed=range(40))
    assert info["phases"] == [dict.fromkeys(PHASES[kind], False)] * 40, "nothing has happened yet"
    swapped = info["swapped_instruction"]
    assert phases_after(env, TabletopVectorEnv.expert_actions) == [dict.fromkeys(PHASES[kind], True)] * 40
    env.reset(seed=range(40), options={"instruction": swapped})
    assert phases_after(env, TabletopVectorEnv.expert_actions) == [dict.fromkeys(PHASES[kind], True)] * 40


def test_who_closes_on_nothing_reaches_the_target_and_holds_nothing():
    env = TabletopVectorEnv(40, ["move"], image_size=24)
    env.reset(seed=range(40))

    def closed(env):
        actions = env.expert_actions()
        actions[:, :2] = np.clip((env.scene.positions[np.arange(40), env.task.target] - env.scene.gripper) / 0.1, -1, 1)
        actions[:, 2] = 1
        return actions

    phases = phases_after(env, closed)
    assert [share(phases, name) for name in PHASES["move"]] == [1, 0, 0, 0, 0]


def test_who_takes_another_object_never_reaches_the_target():
    env = TabletopVectorEnv(40, ["push"], image_size=24)
    _, info = env.reset(seed=range(40))
    env.reset(seed=range(40), options={"instruction": info["swapped_instruction"]})
    told, own = env.told_task, env.task
    env.told_task = own  # phases are about the scene's own task
    phases = phases_after(env, lambda env: _expert(env, told))
    assert share(phases, CLOSED) == 1 and share(phases, HELD) == 0 and share(phases, DONE) == 0


def _expert(env, task):
    env.told_task, kept = task, env.told_task
    actions = env.expert_actions()
    env.told_task = kept
    return actions


def test_who_carries_it_the_other_way_held_the_target():
    env = TabletopVectorEnv(40, ["move"], swapped_by="direction", image_size=24)
    _, info = env.reset(seed=range(40))
    own = env.task
    env.reset(seed=range(40), options={"instruction": info["swapped_instruction"]})
    told, env.told_task = env.told_task, own
    phases = phases_after(env, lambda env: _expert(env, told))
    assert [share(phases, name) for name in PHASES["move"]] == [1, 1, 1, 0, 0]


def test_a_sentence_that_is_not_understood_has_no_phases():
    env = TabletopVectorEnv(2, image_size=24)
    _, info = env.reset(seed=[0, 1], options={"instruction": ["sing", "touch it"]})
    assert info["phases"] == [{}, {}]


def test_kinds_that_are_mixed_have_each_their_own_phases():
    """And where an episode stopped does not depend on how many run at once."""

    def idle(observations):
        return np.zeros((len(observations), 4, 3))

    counted = []
    for num_envs in (4, 12):
        env = TabletopVectorEnv(num_envs, ["touch", "move"], max_steps=8, image_size=24)
        figures, result = evaluate(idle, env, range(12), replan_every=4, max_steps=8)
        counted.append((figures["phases"], figures["swapped"]["phases"]))
        kinds = [tuple(episode.phases) for episode in result.episodes]
        assert set(kinds) == {PHASES["touch"], PHASES["move"]}
        for phase in figures["phases"]:
            assert phase["reached"]["episodes"] == sum(phase["name"] in kind for kind in kinds)
        assert sum(phase["stopped"] for phase in figures["phases"]) == 12
    assert counted[0] == counted[1]
    assert count_phases([]) is None

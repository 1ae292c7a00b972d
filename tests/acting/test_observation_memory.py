"""What executors keep of an episode for a policy with a history."""

import numpy as np
import pytest
import torch
from PIL import Image

from kivla.acting import ChunkExecutor, RealTimeExecutor, RemotePolicy
from kivla.acting.observation_memory import ObservationMemory
from kivla.processing.observation_history import NO_HISTORY, ObservationHistory

HISTORY = ObservationHistory(3, 2)


def observation(number: int) -> dict:
    return {"images": {"front": np.full((2, 2, 3), number, np.uint8)}, "state": np.array([float(number)])}


def numbers(past: list) -> list:
    return [None if earlier is None else int(earlier["state"][0]) for earlier in past]


class Policy:
    """Remembers what it is asked, and says so far it looks back."""

    def __init__(self, history: ObservationHistory = HISTORY):
        self.observation_history = history
        self.asked = []

    def __call__(self, observation: dict, **options) -> dict:
        self.asked.append(observation)
        return {"actions": np.zeros((6, 2))}


def test_each_observation_comes_with_those_that_belong_to_it():
    memory = ObservationMemory(HISTORY)
    for step in range(12):
        seen = memory(observation(step))
        assert numbers(seen["past"]) == HISTORY.steps(step)[:-1]
        assert seen["state"][0] == step
    assert len(memory._seen) <= HISTORY.reach
    memory.reset()  # nothing of the last episode
    assert memory(observation(50))["past"] == []


def test_what_was_not_seen_is_missing():
    memory = ObservationMemory(HISTORY)
    for step in (0, 4, 5):
        seen = memory(observation(step), step)
    assert numbers(seen["past"]) == [None, None]  # steps 1 and 3
    assert numbers(memory(observation(6), 6)["past"]) == [None, 4]  # step 2
    assert numbers(memory(observation(7), 6)["past"]) == [None, 4]  # the same step again
    with pytest.raises(ValueError, match=r"step 5 of the episode comes after step 6.*reset"):
        memory(observation(5), 5)


def test_it_keeps_copies():
    """Cameras write their next picture into the same memory."""
    memory, picture = ObservationMemory(ObservationHistory(2, 1)), np.zeros((2, 2, 3), np.uint8)
    memory({"images": {"front": picture}})
    picture[:] = 1
    assert not memory({"images": {"front": picture}})["past"][0]["images"]["front"].any()


@pytest.mark.parametrize("form", [torch.from_numpy, memoryview, lambda x: Image.fromarray(x[..., 0])])
def test_it_keeps_copies_of_pictures_in_other_forms(form):
    """All of them share their memory with an array that a camera writes into."""
    memory, written = ObservationMemory(ObservationHistory(2, 1)), np.zeros((8, 8, 3), np.uint8)
    shown = form(written)
    memory({"images": [shown]})
    written[:] = 1
    if isinstance(shown, Image.Image):  # whose memory Pillow shares only in some modes
        shown.paste(1, (0, 0, 8, 8))
    (kept,) = memory({"images": [shown]})["past"][0]["images"]
    kept = np.frombuffer(kept, np.uint8) if isinstance(kept, bytes) else np.asarray(kept)
    assert not kept.any()


def test_without_a_history_nothing_is_kept():
    memory, seen = ObservationMemory(NO_HISTORY), observation(0)
    assert memory(seen) is seen and not memory._seen


def test_a_chunk_executor_remembers_the_steps_between():
    policy = Policy()
    act = ChunkExecutor(policy, replan_every=3)
    for episode in range(2):
        act.reset()
        for step in range(9):
            act(observation(100 * episode + step))
    firsts = [int(asked["state"][0]) for asked in policy.asked]
    assert firsts == [0, 3, 6, 100, 103, 106]
    assert [numbers(asked["past"]) for asked in policy.asked] == [[], [1], [2, 4], [], [101], [102, 104]]
    plain = ChunkExecutor(lambda observation: {"actions": np.zeros((6, 2))}, history=HISTORY)
    assert plain.memory.history == HISTORY
    assert ChunkExecutor(Policy(NO_HISTORY)).memory.history == NO_HISTORY


class Answers:
    """In the place of a thread: answers at once."""

    def __init__(self, policy, options, clock):
        self.policy, self.waiting = policy, []

    def ask(self, request):
        self.policy({**request.observation, **request.extra})

    def answers(self):
        return iter(())

    def close(self, timeout=0.0):
        pass


def test_a_real_time_executor_remembers_and_refuses_to_look_late():
    policy = Policy()
    with RealTimeExecutor(policy, rate=10, thread=Answers, answer_timeout=1e9) as act:
        act(observation(0))
        assert numbers(policy.asked[-1]["past"]) == []
        with pytest.raises(ValueError, match="This policy sees 3 frames, 2 control steps apart: give the observation"):
            act(lambda: observation(1))
        for step in range(1, 5):
            act(observation(step))
        assert act.memory._step == 4
        act.reset()
        assert act.memory._seen == {}


def test_a_remote_policy_tells_its_history():
    class Client:
        def __init__(self, metadata):
            self.get_server_metadata = lambda: metadata

        def infer(self, obs):
            return {"actions": np.zeros((6, 2))}

    assert RemotePolicy(Client({"history": 3, "history_stride": 2})).observation_history == HISTORY
    assert RemotePolicy(Client({})).observation_history == NO_HISTORY

"""Policies with a history behind a server: what each client has shown, gaps and restarts, and the same as elsewhere."""

import asyncio
import logging

import numpy as np
import pytest
from transformers import pipeline

from kivla.acting import ChunkExecutor, RemotePolicy
from kivla.processing.observation_history import NO_HISTORY, ObservationHistory
from kivla.serving.client_memory import ClientMemory, frames_seen
from kivla.serving.msgpack_numpy import packb
from kivla.serving.observation_presets import ObservationReader
from kivla.serving.served_policy import ServeArguments, make_server
from tests.helpers.policies import dataset
from tests.serving.test_policy_server import ask, connect, refusal
from tests.serving.test_serve import frame, save_policy, several_through_a_server, through_a_server

HISTORY = ObservationHistory(3, 4)


@pytest.fixture(scope="module")
def pipe(vlm, tmp_path_factory):
    folder = save_policy(vlm, tmp_path_factory.mktemp("policy"), history=HISTORY.frames, history_stride=HISTORY.stride)
    return pipeline("action-prediction", model=str(folder), seed=3)


def clips(item: int) -> dict:
    """What a policy sees at a frame of the dataset's first episode."""
    moments = [frame(step) for step in HISTORY.steps(item)]
    images = [[moment["images"][camera] for moment in moments] for camera in range(len(dataset().cameras))]
    return {**moments[-1], "images": images, "state": np.stack([moment["state"] for moment in moments])}


def single(item: int) -> dict:
    """A frame as an episode's first."""
    return {**frame(item), "images": [[image] for image in frame(item)["images"]]}


def assert_answers(answers: list[dict], expected: list[dict]) -> None:
    for answer, result in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer["actions"], result["actions"], rtol=1e-4, atol=1e-5)


def test_a_robot_sends_one_frame_with_each_request(pipe):
    steps = [0, 4, 8, 12, 16]
    requests = [{**frame(step), "step": step, "reset": step == 0} for step in steps]
    metadata, answers = through_a_server(pipe, requests)
    assert (metadata["history"], metadata["history_stride"]) == (3, 4)
    expected = [pipe(clips(step)) for step in steps]
    assert_answers(answers, expected)
    assert [answer["history"]["seen"] for answer in answers] == [1, 2, 3, 3, 3]
    assert np.abs(expected[-1]["actions"] - pipe(single(16))["actions"]).max() > 1e-4, "the past makes no difference"


def test_an_episode_begins_anew_with_a_reset_and_with_a_connection(pipe):
    requests = [{**frame(0), "step": 0}, {**frame(4), "step": 4}, {**frame(8), "reset": True}]
    _, answers = through_a_server(pipe, requests)
    assert [answer["history"]["seen"] for answer in answers] == [1, 2, 1]
    assert_answers(answers[2:], [pipe(single(8))])
    _, (again,) = through_a_server(pipe, [{**frame(8), "step": 8}])
    assert again["history"]["seen"] == 1


def test_a_gap_is_said_and_not_filled(pipe, caplog):
    steps = [0, 4, 12, 16]  # 8 is missing
    with caplog.at_level(logging.WARNING, logger="kivla"):
        _, answers = through_a_server(pipe, [{**frame(step), "step": step} for step in steps])
    assert [answer["history"] for answer in answers] == [{"seen": n, "of": 3} for n in (1, 2, 1, 2)]
    assert_answers(answers[2:3], [pipe(single(12))])
    said = [record.getMessage() for record in caplog.records if "were never sent" in record.getMessage()]
    assert len(said) == 1 and "At step 12 it looks for the steps [4, 8], and [8] were never sent" in said[0]


def test_clients_do_not_see_each_others_frames(pipe):
    memories = [ClientMemory(HISTORY) for _ in range(2)]
    for step in (0, 4):
        seen = [memory({**frame(step + 60 * i), "step": step}) for i, memory in enumerate(memories)]
    for i, one in enumerate(seen):
        np.testing.assert_array_equal(one["past"][0]["images"][0], frame(60 * i)["images"][0])
    requests = [{**frame(0), "step": 0}, {**frame(70), "step": 0}]
    _, answers = several_through_a_server(pipe, requests)
    assert [answer["history"]["seen"] for answer in answers] == [1, 1]


def test_robots_that_share_a_connection_do_not_see_each_others_frames():
    """A program on the robots' side may speak for several of them."""
    memory = ClientMemory(HISTORY)
    for name, item in (("left", 0), ("right", 60)):
        memory({**frame(item), "robot": name, "step": 0, "reset": True})
    for name, item in (("right", 60), ("left", 0)):
        seen = memory({**frame(item + 4), "robot": name, "step": 4})
        np.testing.assert_array_equal(seen["past"][0]["images"][0], frame(item)["images"][0])
    again = memory({**frame(8), "robot": "left", "step": 0, "reset": True})
    assert again["past"] == []
    assert len(memory({**frame(68), "robot": "right", "step": 8})["past"]) == 2


def test_what_a_client_does_not_say_is_asked_for():
    memory = ClientMemory(HISTORY)
    with pytest.raises(
        ValueError, match="This policy sees 3 frames, 4 control steps apart: send with each observation"
    ):
        memory(frame(0))
    for wrong in ({"step": -1}, {"step": 1.5}, {"step": True}, {"reset": 1, "step": 0}):
        with pytest.raises(ValueError, match=f"'{next(iter(wrong))}' is"):
            memory({**frame(0), **wrong})
    memory({**frame(5), "step": 5})
    with pytest.raises(ValueError, match="step 4 of the episode comes after step 5"):
        memory({**frame(4), "step": 4})
    # Whoever says it all the same is understood, and a policy without a history needs nothing
    plain = ClientMemory(NO_HISTORY)
    assert plain({**frame(0), "step": 3, "reset": True}).keys() == plain(frame(0)).keys() == frame(0).keys()
    assert frames_seen([]) == 1 and frames_seen([None, {}]) == 2 and frames_seen([{}, None]) == 1


def test_a_restart_without_a_word_is_refused_over_the_socket(pipe):
    server = make_server(pipe, ServeArguments(model="tiny"))

    async def client():
        async with server.listen(port=0) as port, connect(port) as robot:
            await robot.recv()
            await ask(robot, {**frame(9), "step": 9})
            await robot.send(packb({**frame(0), "step": 0}))
            return await refusal(robot)

    text, _ = asyncio.run(client())
    assert "step 0 of the episode comes after step 9" in text


@pytest.mark.parametrize("preset", ["plain", "libero"])
def test_a_past_is_read_in_the_form_of_the_preset(preset):
    if preset == "plain":
        reader = ObservationReader()
        now = {"images": {"front": np.ones((4, 4, 3), np.uint8)}, "text": "go", "state": [1.0, 2.0]}
    else:
        reader = ObservationReader("libero", ["base_0_rgb"], names=None)
        now = {"observation/image": np.ones((4, 4, 3), np.uint8), "prompt": "go", "observation/state": np.ones(2)}
    earlier = {**now, "timestamp": 1.0, "step": 3}
    seen = reader({**now, "past": [earlier, None]})
    assert seen["past"][1] is None and seen["past"][0].keys() == {"images", "state"}
    np.testing.assert_array_equal(seen["past"][0]["state"], seen["state"])
    for wrong in ("yesterday", [1], [{1: 2}], [now] * 65):
        with pytest.raises(ValueError, match="'past' is a list of earlier observations"):
            reader({**now, "past": wrong})


def test_an_executor_sends_what_it_saw(pipe):
    """A remote policy acts as the pipeline does, from what the robot's side remembers."""
    server = make_server(pipe, ServeArguments(model="tiny"))

    class Client:
        """A client without a socket: what the server reads, keeps and answers."""

        def __init__(self):
            self.session = server.open_session()

        def get_server_metadata(self):
            return server.metadata

        def infer(self, obs):
            return server.infer(self.session(server.read(obs)))

    remote, local = ChunkExecutor(RemotePolicy(Client()), replan_every=3), ChunkExecutor(pipe, replan_every=3)
    for step in range(10):
        np.testing.assert_allclose(remote(frame(step)), local(frame(step)), rtol=1e-4, atol=1e-5)
    assert local.memory.history == HISTORY == remote.memory.history

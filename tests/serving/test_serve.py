"""`kivla serve`: what a robot receives is what the pipeline gives, whichever recipe trained the policy."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, contextmanager

import numpy as np
import pytest
import torch
from transformers import pipeline

from kivla import BinningActionTokenizer, KIVLAForActionPrediction, KIVLAProcessor
from kivla.cli import main
from kivla.serving.msgpack_numpy import packb, unpackb
from kivla.serving.served_policy import ServeArguments, make_server
from kivla.training.recipes import RECIPES, get_recipe, set_stage
from tests.helpers.patience import PATIENCE
from tests.helpers.policies import CHUNK, SIZES, _action_tokenizer, awaken, dataset
from tests.serving.test_policy_server import ask, connect, refusal

# What a server says of a policy that acts by flow
WAYS = {"rtc": "guidance", "ways": ["sync", "naive", "ensemble", "rtc"]}


def save_policy(vlm, folder, recipe_name: str = "insulated", **options):
    """A policy with random weights and the settings of a recipe, as `kivla train` would leave it in `folder`."""
    recipe = get_recipe(recipe_name)
    tokenizer = {"fast": _action_tokenizer(), "bins": BinningActionTokenizer(64), "none": None}[recipe.action_tokenizer]
    sizes = {**SIZES, "state_encoding": recipe.state_encoding}
    data = {"statistics": dataset().statistics, "cameras": dataset().cameras}
    processor = KIVLAProcessor.from_vlm(vlm, action_tokenizer=tokenizer, **data, **sizes, **options)
    torch.manual_seed(0)
    expert = {"hidden_size": 32, "intermediate_size": 64}
    model = KIVLAForActionPrediction.from_vlm(vlm, expert_config=expert, **sizes)
    model.resize_token_embeddings(processor.vocab_size)
    awaken(model)
    set_stage(model, recipe.stages[-1])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(vlm, tmp_path_factory):
    return save_policy(vlm, tmp_path_factory.mktemp("policy"))


def frame(index: int) -> dict:
    return {key: dataset()[index][key] for key in ("images", "text", "state")}


def through_a_server(pipe, requests: list[dict], **arguments) -> tuple[dict, list[dict]]:
    """Metadata and answers."""
    server = make_server(pipe, ServeArguments(model="tiny", **arguments))

    async def client():
        async with server.listen(port=0) as port, connect(port) as robot:
            return unpackb(await robot.recv()), [await ask(robot, request) for request in requests]

    return asyncio.run(client())


@contextmanager
def kivla_serve(*arguments):
    """The command in a process of its own; yields process and port."""
    command = [sys.executable, "-m", "kivla.cli", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        line = process.stdout.readline()
        yield process, int(re.fullmatch(r"Serving .* on ws://127\.0\.0\.1:(\d+)\n", line)[1])
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_served(vlm, tmp_path, recipe):
    pipe = pipeline("action-prediction", model=str(save_policy(vlm, tmp_path, recipe)), seed=3)
    frames = [frame(0), frame(70)]
    expected = [pipe(one) for one in frames]
    _, answers = through_a_server(pipe, [frames[0], frames[1], frames[0]])
    for answer, result in zip(answers, [*expected, expected[0]], strict=True):
        assert answer["actions"].shape == (CHUNK, 4)
        np.testing.assert_array_equal(answer["actions"], result["actions"], strict=True)
    assert np.abs(expected[0]["actions"] - expected[1]["actions"]).max() > 1e-4, "the same for every observation"


def test_a_policy_that_says_what_it_does(vlm, tmp_path):
    pipe = pipeline("action-prediction", model=str(save_policy(vlm, tmp_path, expert_reads_response=True)), seed=3)
    told = {**frame(0), "response": "open the drawer"}
    _, answers = through_a_server(pipe, [frame(0), told])
    for answer, request in zip(answers, (frame(0), told), strict=True):
        expected = pipe(request)
        np.testing.assert_array_equal(answer["actions"], expected["actions"], strict=True)
        assert answer["response"] == expected["response"]
    assert answers[1]["response"] == "open the drawer"


def test_a_robot_with_keys_of_its_own(policy):
    pipe = pipeline("action-prediction", model=str(policy), seed=3)
    ours, (image,) = frame(0), frame(0)["images"]
    libero = {
        "observation/image": image,
        "observation/wrist_image": np.zeros_like(image),  # which this policy does not look at
        "observation/state": ours["state"].astype(np.float64),
        "prompt": ours["text"],
    }
    mapping = ["corner2=observation/image"]  # of all of the policy's cameras: other images are left out
    metadata, (answer,) = through_a_server(pipe, [libero], preset="libero", cameras=mapping)
    expected = pipe(ours)["actions"]
    np.testing.assert_array_equal(answer["actions"], expected)
    cameras = {dataset().cameras[0]: "observation/image"}
    about = {"policy": "tiny", "preset": "libero", "chunk_size": CHUNK, "clips_actions": True, **WAYS}
    assert metadata == {**about, "cameras": cameras}
    # ALOHA's images have their channels first
    aloha = {"images": {"cam_high": image.transpose(2, 0, 1)}, "state": ours["state"], "prompt": ours["text"]}
    _, (answer,) = through_a_server(pipe, [aloha], preset="aloha", cameras=["corner2=cam_high"])
    np.testing.assert_array_equal(answer["actions"], expected)


def test_only_the_first_actions_of_a_chunk(policy):
    pipe = pipeline("action-prediction", model=str(policy), seed=3)
    metadata, (answer,) = through_a_server(pipe, [frame(0)], execute=2)
    assert metadata["chunk_size"] == 2
    np.testing.assert_array_equal(answer["actions"], pipe(frame(0))["actions"][:2])


def test_what_is_clipped_is_told(policy):
    """The random policy of these tests leaves the range of its data by far."""
    pipe = pipeline("action-prediction", model=str(policy), seed=3)
    metadata, (answer,) = through_a_server(pipe, [frame(0)])
    assert metadata["clips_actions"] and answer["clipped"] == pipe(frame(0))["clipped"]
    assert answer["clipped"]["values"] > 0 and answer["clipped"]["of"] == CHUNK * 4
    free = pipeline("action-prediction", model=str(policy), seed=3, clip_actions=False)
    metadata, (answer,) = through_a_server(free, [frame(0)], clip_actions=False)
    assert not metadata["clips_actions"] and "clipped" not in answer
    np.testing.assert_array_equal(answer["actions"], free(frame(0))["actions"])


def test_weights_that_are_not_finite_are_told_and_the_server_lives(policy):
    pipe = pipeline("action-prediction", model=str(policy), seed=3)
    server = make_server(pipe, ServeArguments(model="tiny"))
    weights = pipe.model.expert.action_in_proj.weight

    async def client():
        async with server.listen(port=0) as port:
            kept = weights.detach().clone()
            weights.data[0, 0] = torch.nan
            async with connect(port) as robot:
                await robot.recv()
                await robot.send(packb(frame(0)))
                told = await refusal(robot)
            weights.data[:] = kept
            async with connect(port) as robot:
                await robot.recv()
                assert "actions" in await ask(robot, frame(0))
        return told

    told, code = asyncio.run(client())
    assert told.startswith("NonFiniteActionsError: The policy's actions are not all finite") and code == 1011


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"state": np.zeros(9)}, "state"),
        ({"state": np.full(4, np.nan)}, "state"),
        ({"images": []}, "got 0 images for 1 cameras"),
        ({"images": [np.zeros((8, 8), np.uint8)]}, r"\(height, width, 3\)"),
        ({"images": [np.full((8, 8, 3), 200.0)]}, "divide by 255"),
        ({"images": [np.zeros((8, 8, 3), np.int64)]}, "must be uint8"),
        ({"robot": "other"}, "other"),
        ({"text": None}, "instruction must be a string"),
    ],
)
def test_what_the_policy_cannot_take_is_told(policy, change, text):
    server = make_server(pipeline("action-prediction", model=str(policy), seed=3), ServeArguments(model="tiny"))

    async def client():
        async with server.listen(port=0) as port:
            async with connect(port) as robot:
                await robot.recv()
                await robot.send(packb({**frame(0), **change}))
                told = await refusal(robot)
            assert (server.metrics.refusals, server.metrics.failures) == (1, 0), "the policy is not to blame"
            async with connect(port) as robot:
                await robot.recv()
                assert "actions" in await ask(robot, frame(0))
        return told

    told, code = asyncio.run(client())
    assert re.search(text, told) and code == 1011, told


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"preset": "other"}, "--preset is one of plain, libero, droid, aloha, not 'other'"),
        ({"execute": 7}, f"--execute must be from 1 to {CHUNK}"),
        ({"execute": 0}, "--execute must be at least 1, got 0"),
        ({"robot": "other"}, "other"),
    ],
)
def test_options_that_do_not_fit(policy, options, text):
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    with pytest.raises(SystemExit, match=f"kivla serve: .*{text}"):
        main(["serve", str(policy), *words])


def test_the_command_serves_and_stops(policy):
    async def client(port):
        async with connect(port) as robot:
            metadata = unpackb(await robot.recv())
            return metadata, [await ask(robot, frame(70)) for _ in range(2)]

    with kivla_serve(policy, "--seed", 5, "--num_steps", 4, "--reuse_prefix") as (process, port):
        metadata, answers = asyncio.run(client(port))
        about = {"policy": str(policy), "preset": "plain", "chunk_size": CHUNK, "clips_actions": True, **WAYS}
        assert metadata == about
        expected = pipeline("action-prediction", model=str(policy))(frame(70), seed=5, num_steps=4)
        for answer in answers:
            np.testing.assert_array_equal(answer["actions"], expected["actions"], strict=True)
        process.stdout.close()  # as whoever reads the address and no more does
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0


def several_through_a_server(pipe, requests: list[dict], **arguments) -> tuple[dict, list[dict]]:
    """Metadata, and the answers of robots that all ask at the same time."""
    server = make_server(pipe, ServeArguments(model="tiny", max_batch_wait_ms=10_000, **arguments))

    async def clients():
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(server.listen(port=0))
            robots = [await stack.enter_async_context(connect(port)) for _ in requests]
            metadata = [unpackb(await robot.recv()) for robot in robots]
            return metadata[0], await asyncio.gather(*(ask(*pair) for pair in zip(robots, requests, strict=True)))

    return asyncio.run(clients())


@pytest.mark.parametrize("acts_by", ["flow", "tokens"])
def test_robots_that_ask_together_get_what_they_get_alone(policy, acts_by):
    pipe = pipeline("action-prediction", model=str(policy), seed=3, acts_by=acts_by)
    requests = [frame(0), {**frame(70), "text": "a far longer sentence about the very same drawer"}, frame(140)]
    _, answers = several_through_a_server(pipe, requests, acts_by=acts_by)
    for answer, request in zip(answers, requests, strict=True):
        assert answer["policy_timing"]["batch_size"] == 3
        np.testing.assert_allclose(answer["actions"], pipe(request)["actions"], rtol=1e-4, atol=1e-5)
    assert np.abs(answers[0]["actions"] - answers[2]["actions"]).max() > 1e-4, "the same for every robot"


def test_one_robot_that_is_wrong_does_not_concern_the_others(policy):
    pipe = pipeline("action-prediction", model=str(policy), seed=3)
    wrong = {**frame(70), "state": np.zeros(9)}
    server = make_server(pipe, ServeArguments(model="tiny", max_batch_wait_ms=10_000))

    async def clients():
        async with server.listen(port=0) as port, connect(port) as one, connect(port) as two:
            await one.recv(), await two.recv()
            await one.send(packb(wrong))
            return await asyncio.gather(refusal(one), ask(two, frame(0)))

    (told, code), answer = asyncio.run(clients())
    assert "state" in told and code == 1011 and server.metrics.refusals == 1
    np.testing.assert_array_equal(answer["actions"], pipe(frame(0))["actions"], strict=True)


def test_chunks_that_go_on_from_what_is_left_of_the_ones_before(policy):
    """One robot in the midst of a chunk, another at the beginning of an episode, in one pass.

    In one step: in several, guidance of a policy that has learned nothing makes hundredths of a rounding.
    """
    pipe = pipeline("action-prediction", model=str(policy), seed=3, num_steps=1)
    left = pipe(frame(0))["actions"][2:]
    going_on = {**frame(70), "previous_actions": left, "delay": 2}
    metadata, answers = several_through_a_server(pipe, [going_on, frame(70)])
    assert metadata["rtc"] == "guidance" and "max_delay" not in metadata
    assert metadata["ways"] == ["sync", "naive", "ensemble", "rtc"]
    expected = [pipe(going_on, rtc="guidance")["actions"], pipe(frame(70))["actions"]]
    for answer, actions in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer["actions"], actions, rtol=1e-4, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.01, "the one is guided, the other is not"


def test_a_policy_that_was_trained_with_delays(policy, tmp_path):
    model = KIVLAForActionPrediction.from_pretrained(policy, rtc_max_delay=3)
    model.save_pretrained(tmp_path)
    KIVLAProcessor.from_pretrained(policy).save_pretrained(tmp_path)
    pipe = pipeline("action-prediction", model=str(tmp_path), seed=3)
    left = pipe(frame(0))["actions"][2:]
    going_on = {**frame(70), "previous_actions": left, "delay": 2}
    metadata, (answer,) = through_a_server(pipe, [going_on])
    assert metadata["rtc"] == "trained" and metadata["max_delay"] == 3
    assert metadata["ways"] == ["sync", "naive", "ensemble", "rtc-trained"]
    np.testing.assert_allclose(answer["actions"][:2], left[:2], rtol=1e-5, atol=1e-6)
    metadata, _ = through_a_server(pipe, [], rtc="guidance")
    assert metadata["rtc"] == "guidance" and metadata["ways"][-1] == "rtc"


def test_ways_that_a_policy_does_not_have_are_refused(policy):
    pipe = pipeline("action-prediction", model=str(policy))
    metadata, _ = through_a_server(pipe, [], acts_by="tokens")
    assert metadata["rtc"] is None and metadata["ways"] == ["sync", "naive", "ensemble"]
    with pytest.raises(ValueError, match="is for policies that act by flow"):
        make_server(pipe, ServeArguments(model="tiny", acts_by="tokens", rtc="guidance"))
    with pytest.raises(ValueError, match="not trained with delays"):
        make_server(pipe, ServeArguments(model="tiny", rtc="trained"))
    with pytest.raises(ValueError, match="--reuse_prefix is for one robot"):
        ServeArguments(model="tiny", reuse_prefix=True, max_batch_size=4)
    with pytest.raises(ValueError, match="--pack_weights is about what --compile_policy makes"):
        ServeArguments(model="tiny", pack_weights=True)
    assert ServeArguments(model="tiny", reuse_prefix=True).max_batch_size == 1
    assert ServeArguments(model="tiny").max_batch_size == 8

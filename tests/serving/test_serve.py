"""`kivla serve`: what a robot receives is what the pipeline gives, whichever recipe trained the policy."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import pipeline

from kivla import BinningActionTokenizer, KIVLAForActionPrediction, KIVLAProcessor
from kivla.cli import main
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.serving.msgpack_numpy import packb, unpackb
from kivla.serving.served_policy import ServeArguments, make_server
from kivla.training.recipes import RECIPES, get_recipe, set_stage
from tests.helpers.patience import PATIENCE
from tests.helpers.policies import CHUNK, SIZES, _action_tokenizer, awaken, dataset
from tests.serving.test_policy_server import ask, connect, refusal


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    save_tiny_vlm(folder, image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    return folder


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
    about = {"policy": "tiny", "preset": "libero", "chunk_size": CHUNK, "clips_actions": True}
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
        ({"execute": 0}, f"--execute must be from 1 to {CHUNK}"),
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
        about = {"policy": str(policy), "preset": "plain", "chunk_size": CHUNK, "clips_actions": True}
        assert metadata == about
        expected = pipeline("action-prediction", model=str(policy))(frame(70), seed=5, num_steps=4)
        for answer in answers:
            np.testing.assert_array_equal(answer["actions"], expected["actions"], strict=True)
        process.stdout.close()  # as whoever reads the address and no more does
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0

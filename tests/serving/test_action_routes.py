"""Every way to ask a policy gives the same actions for the same observation and noise: on one machine bit for bit.

A route takes a saved policy and an observation to `{"flow": (H, D), "tokens": (H, D)}`: actions in robot units, by
either way of acting. Routes that need an environment of their own are compared with the pipeline there.
"""

import asyncio

import numpy as np
import pytest
import torch
from transformers import pipeline

from kivla import KIVLAForActionPrediction, KIVLAProcessor
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.serving.observation_presets import ObservationReader
from kivla.serving.policy_server import PolicyServer
from kivla.serving.served_policy import ServedPolicy
from tests.helpers.tolerance import assert_close_relative
from tests.modeling_kivla.test_remote_code import without_kivla
from tests.serving.test_policy_server import ask, connect
from tests.serving.test_serve import frame, save_policy

SEED = 0


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routes")
    save_tiny_vlm(folder / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    return save_policy(folder / "vlm", folder / "policy")


def by_pipeline(folder, observation) -> dict[str, np.ndarray]:
    pipe = pipeline("action-prediction", model=str(folder))
    return {way: pipe(observation, seed=SEED, acts_by=way)["actions"] for way in ("flow", "tokens")}


def by_hand(folder, observation) -> dict[str, np.ndarray]:
    model = KIVLAForActionPrediction.from_pretrained(folder).eval()
    processor = KIVLAProcessor.from_pretrained(folder)
    batch = processor(**{key: [value] for key, value in observation.items()})
    shape = (1, model.config.chunk_size, model.config.max_action_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    by_flow = model.sample_actions(**batch, noise=noise).numpy()[0]
    (by_tokens,) = model.generate_actions(processor, **batch)
    return {way: processor.unnormalize_actions(chunk) for way, chunk in (("flow", by_flow), ("tokens", by_tokens))}


def by_server(folder, observation) -> dict[str, np.ndarray]:
    async def answer(way: str) -> np.ndarray:
        policy = ServedPolicy(pipeline("action-prediction", model=str(folder), seed=SEED, acts_by=way))
        async with PolicyServer(policy, ObservationReader()).listen(port=0) as port, connect(port) as client:
            await client.recv()
            return (await ask(client, observation))["actions"]

    return {way: asyncio.run(answer(way)) for way in ("flow", "tokens")}


@pytest.mark.parametrize("route", [by_hand, by_server])
def test_a_route_gives_what_the_pipeline_gives(policy, route):
    expected = by_pipeline(policy, frame(70))
    for way, actions in route(policy, frame(70)).items():
        np.testing.assert_array_equal(actions, expected[way], strict=True, err_msg=way)


def test_remote_code_gives_what_the_pipeline_gives(policy, tmp_path):
    """Where kivla is not installed, by its own pipeline and by its model and processor."""
    np.save(tmp_path / "frames.npy", [frame(70)], allow_pickle=True)
    found = without_kivla(policy, tmp_path / "frames.npy", tmp_path / "found")
    expected = by_pipeline(policy, frame(70))
    for way in ("pipeline", "model"):
        assert_close_relative(found[way][0], expected["flow"], what=way)
    np.testing.assert_array_equal(found["tokens"][0], expected["tokens"], strict=True)


def test_the_ways_and_the_observations_differ(policy):
    """Otherwise the tests above would compare constants."""
    one, other = by_pipeline(policy, frame(70)), by_pipeline(policy, frame(0))
    assert np.abs(one["flow"] - one["tokens"]).max() > 1e-3
    for way in one:
        assert np.abs(one[way] - other[way]).max() > 1e-4, way

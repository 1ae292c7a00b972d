"""What must never reach a robot: values outside the range of its data, NaN, infinity."""

import json

import numpy as np
import pytest
import torch
from transformers import pipeline

from kivla import ChunkExecutor, KIVLAProcessor
from kivla.modeling_kivla import NonFiniteActionsError
from kivla.modeling_kivla.action_checks import check_finite
from tests.helpers.policies import CHUNK, SIZES, dataset, save_policy


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("checks"))


@pytest.fixture
def pipe(saved):
    return pipeline("action-prediction", model=str(saved), seed=0)


def observation(index: int = 0) -> dict:
    return {key: dataset()[index][key] for key in ("images", "text", "state")}


# --------------------------------------------------------------------------------------------------------- clipping
def test_actions_stay_within_the_recorded_range(pipe):
    """The random policy of these tests leaves it by far."""
    result, wild = pipe(observation()), pipe(observation(), clip_actions=False)
    low, high = (dataset().statistics["actions"][name].astype(np.float32) for name in ("min", "max"))
    outside = (wild["actions"] < low) | (wild["actions"] > high)
    assert outside.any() and not outside.all()
    np.testing.assert_array_equal(result["actions"], np.clip(wild["actions"], low, high), strict=True)
    excess = np.maximum(low - wild["actions"], wild["actions"] - high) / (high - low)
    assert "clipped" not in wild and result["clipped"] == {
        "values": outside.sum(),
        "of": outside.size,
        "share": outside.mean(),
        "largest": pytest.approx(excess.max(), rel=1e-5),
        "dimension": excess.max(0).argmax(),
    }


def test_clipping_is_a_setting_of_the_processor_and_an_option_of_each_call(saved, tmp_path, pipe):
    processor = KIVLAProcessor.from_pretrained(saved, clip_actions=False)
    processor.save_pretrained(tmp_path)
    processor = KIVLAProcessor.from_pretrained(tmp_path)
    assert not processor.clip_actions and not processor.clips_actions() and pipe.processor.clips_actions()
    clipped, wild = pipe(observation())["actions"], pipe(observation(), clip_actions=False)["actions"]
    unclipping = pipeline("action-prediction", model=str(saved), processor=processor, seed=0)
    np.testing.assert_array_equal(unclipping(observation())["actions"], wild)
    np.testing.assert_array_equal(unclipping(observation(), clip_actions=True)["actions"], clipped)
    built_so = pipeline("action-prediction", model=str(saved), seed=0, clip_actions=False)
    np.testing.assert_array_equal(built_so(observation())["actions"], wild)
    for options, first, report in (
        ({"clip_actions": False}, wild[0], None),
        ({}, clipped[0], pipe(observation())["clipped"]),
    ):
        executor = ChunkExecutor(pipe, **options)
        np.testing.assert_array_equal(executor(observation()), first)
        assert executor.clipped == report


def test_a_processor_saved_before_there_was_clipping(saved, tmp_path):
    KIVLAProcessor.from_pretrained(saved).save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    del settings["clip_actions"]
    file.write_text(json.dumps(settings))
    assert KIVLAProcessor.from_pretrained(tmp_path).clip_actions
    assert not KIVLAProcessor.from_pretrained(tmp_path, clip_actions=False).clip_actions


@pytest.mark.parametrize("normalization", ["quantile", "mean_std", "none"])
def test_without_a_recorded_range_nothing_is_clipped_nor_counted(saved, normalization):
    statistics = {
        part: {name: values for name, values in some.items() if normalization == "none" or name not in ("min", "max")}
        for part, some in dataset().statistics.items()
    }
    processor = KIVLAProcessor.from_pretrained(saved, statistics=statistics, normalization=normalization, action_dim=4)
    assert processor.clip_actions and not processor.clips_actions()
    chunk = np.full((CHUNK, SIZES["max_action_dim"]), 100, dtype=np.float32)
    actions, clipped = processor.unnormalize_and_clip(chunk)
    assert clipped is None
    np.testing.assert_array_equal(actions, processor.robot().actions.unnormalize(chunk[:, :4]))


def test_every_robot_has_its_own_range(saved):
    half = {part: {name: v / 2 for name, v in some.items()} for part, some in dataset().statistics.items()}
    robots = {"large": {"statistics": dataset().statistics}, "small": {"statistics": half}}
    processor = KIVLAProcessor.from_pretrained(saved, robots=robots)
    chunk = np.full((CHUNK, SIZES["max_action_dim"]), 100, dtype=np.float32)
    large, small = (processor.unnormalize_actions(chunk, robot) for robot in robots)
    np.testing.assert_array_equal(large[0], dataset().statistics["actions"]["max"].astype(np.float32))
    np.testing.assert_array_equal(small, large / 2)
    tensor = processor.unnormalize_actions(torch.from_numpy(chunk), "small")
    np.testing.assert_array_equal(tensor.numpy(), small)


# ------------------------------------------------------------------------------------------------------- not finite
def test_weights_that_are_not_finite_give_no_actions(pipe):
    with torch.no_grad():
        pipe.model.expert.action_in_proj.weight[0, 0] = torch.nan
    for ask in (pipe, ChunkExecutor(pipe)):
        with pytest.raises(NonFiniteActionsError, match="not all finite: they are not sent to a robot"):
            ask(observation())


def test_noise_that_is_not_finite_is_traced_to_its_observation(pipe):
    batch = pipe.processor(**{key: [observation(i)[key] for i in (0, 70, 140)] for key in observation()})
    noise = torch.zeros(3, CHUNK, SIZES["max_action_dim"])
    noise[1, 2, 3] = torch.inf
    with pytest.raises(NonFiniteActionsError, match=r"for the observations \[1\] of the batch \(of 3\)") as raised:
        pipe.model.sample_actions(**batch, noise=noise)
    assert raised.value.observations == [1]


def test_a_vlm_that_computes_nan_says_no_action_tokens(pipe):
    """The largest of NaN is some token, and some token is some action."""
    with torch.no_grad():
        pipe.model.get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(NonFiniteActionsError):
        pipe(observation(), acts_by="tokens")
    with pytest.raises(NonFiniteActionsError):
        pipe(observation(), acts_by="flow")


@pytest.mark.parametrize("state", [[0, np.nan, 0, 0], [0, np.inf, 0, 0], [0, 1e300, 0, 0]])
def test_a_state_that_is_not_finite_is_refused(pipe, state):
    with pytest.raises(ValueError, match=r"Example 0: `state`: .*must be finite"):
        pipe({**observation(), "state": state})


def test_an_image_that_is_not_finite_is_refused(pipe):
    image = observation()["images"][0] / 255.0
    image[3, 4, 0] = np.nan
    with pytest.raises(ValueError, match=r"floats must lie in \[0, 1\], got nan"):
        pipe({**observation(), "images": [image]})


def test_arrays_and_tensors_are_checked():
    for chunks in (np.zeros((2, 3)), torch.zeros(2, 3)):
        check_finite(chunks)
        chunks[1, 2] = -np.inf
        with pytest.raises(NonFiniteActionsError) as raised:
            check_finite(chunks)
        assert raised.value.observations == [1]

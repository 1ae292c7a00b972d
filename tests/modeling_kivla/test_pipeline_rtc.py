"""Real-time chunking through `pipeline("action-prediction")`: robot units in and out."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import pipeline

from kivla import ChunkExecutor, KIVLAForActionPrediction, KIVLAProcessor, RealTimeChunking
from kivla.acting import RealTimeExecutor
from kivla.processing import compute_statistics
from kivla.processing.relative_actions import RelativeActions, to_relative
from tests.helpers.policies import CHUNK, SIZES, dataset, save_policy
from tests.helpers.tolerance import assert_close_relative

MAX_DELAY = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = save_policy(tmp_path_factory.mktemp("pipeline"))
    KIVLAForActionPrediction.from_pretrained(folder, rtc_max_delay=MAX_DELAY).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(saved):
    return pipeline("action-prediction", model=str(saved), seed=0)


def observation(i: int = 0, num_previous: int | None = None, delay: int | None = None) -> dict:
    given = {key: dataset()[i][key] for key in ("images", "text", "state")}
    if num_previous is not None:
        given["previous_actions"] = dataset()[i + 2]["actions"][:num_previous]
    if delay is not None:
        given["delay"] = delay
    return given


@pytest.mark.parametrize("rtc", ["guidance", "trained"])
def test_robot_units_in_and_out(pipe, saved, rtc):
    given = observation(70, 4, 2)
    found = pipe(given, rtc=rtc, num_steps=4)["actions"]
    assert found.shape == (CHUNK, 4), "a whole chunk, from the step of the observation on"

    processor, model = KIVLAProcessor.from_pretrained(saved), KIVLAForActionPrediction.from_pretrained(saved).eval()
    batch = processor(**{key: [given[key]] for key in ("images", "text", "state")})
    noise = torch.randn(1, CHUNK, SIZES["max_action_dim"], generator=torch.Generator().manual_seed(0))
    previous = torch.zeros(1, CHUNK, SIZES["max_action_dim"])
    previous[0, :4, :4] = torch.from_numpy(processor.normalize_actions(given["previous_actions"]))
    chunking = RealTimeChunking(previous, torch.tensor([4]), torch.tensor([2]), rtc)
    expected = processor.unnormalize_actions(model.sample_actions(**batch, noise=noise, num_steps=4, rtc=chunking))
    assert_close_relative(found, expected[0], what="actions")
    ordinary = pipe(observation(70), num_steps=4)["actions"]
    assert np.abs(found - ordinary).max() > 1e-3
    if rtc == "trained":
        assert_close_relative(found[:2], given["previous_actions"][:2], what="actions that were given")


@pytest.mark.parametrize("rtc", ["guidance", "trained"])
def test_a_batch_gives_what_each_gives_alone(pipe, rtc):
    """Robots that are at their first chunk, in the midst of one, and at the end of one."""
    batch = [observation(0), observation(70, 5, 1), observation(140, 2, 3), observation(20, 0, 2)]
    steps = {"num_steps": 2}  # a random expert guided for longer makes much of every rounding
    together = pipe(batch, rtc=rtc, **steps)
    for one, result in zip(batch, together, strict=True):
        assert_close_relative(result["actions"], pipe(one, rtc=rtc, **steps)["actions"], 1024, what="actions")
    first = pipe(observation(0), **steps)["actions"]
    assert_close_relative(together[0]["actions"], first, what="the first chunk of an episode")
    assert_close_relative(together[3]["actions"], pipe(observation(20), **steps)["actions"], what="nothing is left")


def test_old_actions_become_relative_to_the_new_state(saved):
    """A policy of relative actions is given the same absolute ones, wherever the robot is by now."""
    relative, data = RelativeActions((0, 1, 2, None)), [dataset()[i] for i in range(0, 180, 5)]
    offsets = np.concatenate([to_relative(one["actions"], one["state"][:4], relative) for one in data])
    statistics = {**dataset().statistics, "relative_actions": compute_statistics(offsets)}
    processor = KIVLAProcessor.from_pretrained(saved, statistics=statistics, relative_actions=relative)
    model = KIVLAForActionPrediction.from_pretrained(saved)
    pipe = pipeline("action-prediction", model=model, processor=processor, seed=0, rtc="trained")
    given, chunks = observation(70, 4, 2), []
    for moved in (0.0, 0.01):
        state = np.asarray(given["state"]) + moved
        chunks.append(pipe({**given, "state": state}, clip_actions=False)["actions"])
        assert_close_relative(chunks[-1][:2], given["previous_actions"][:2], what="actions that were given")
    assert np.abs(chunks[0] - chunks[1])[2:].max() > 1e-3
    without_state = {name: value for name, value in given.items() if name != "state"}
    with pytest.raises(ValueError, match="state"):
        pipe(without_state)


def test_options_in_the_constructor_and_in_a_call(pipe, saved):
    given = observation(70, 5, 1)
    by_call = [pipe(given, rtc="guidance", **options)["actions"] for options in ({}, {"execution_horizon": 3})]
    by_call.append(pipe(given, rtc="guidance", max_guidance_weight=1.0)["actions"])
    assert len({actions.tobytes() for actions in by_call}) == 3, "an option changes nothing"
    options = {"rtc": "guidance", "execution_horizon": 3, "seed": 0}
    made = pipeline("action-prediction", model=str(saved), **options)
    assert_close_relative(made(given)["actions"], by_call[1], what="actions")
    weight = made(given, max_guidance_weight=1.0)["actions"]
    assert np.abs(weight - by_call[1]).max() > 1e-4, "an option of a call changes nothing"


def test_a_prefix_that_is_kept(pipe):
    """As long as nothing new was seen, the VLM does not run, whatever is left of the chunk."""
    for given in (observation(0, 4, 1), observation(0, 3, 2), observation(0)):
        kept = pipe(given, rtc="guidance", reuse_prefix=True)["actions"]
        assert_close_relative(kept, pipe(given, rtc="guidance")["actions"], what="actions")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"rtc": None}, 'Observation 0 has `previous_actions`, .* Give rtc="guidance"'),
        ({}, {"rtc": "magic"}, "'guidance' and 'trained', got 'magic'"),
        ({}, {"acts_by": "tokens"}, 'rtc="guidance" is for policies that act by flow'),
        ({}, {"rtc": "trained", "execution_horizon": 2}, "execution_horizon: only for rtc=\"guidance\", .* 'trained'"),
        (
            {},
            {"rtc": None, "max_guidance_weight": 2.0},
            'max_guidance_weight: only for rtc="guidance", and rtc is None',
        ),
        ({}, {"execution_horizon": 5}, f"execution_horizon = 5 with a delay of 2: a chunk has {CHUNK}"),
        ({"delay": None}, {}, "Observation 0: there are `previous_actions`, but no `delay`"),
        ({"delay": -1}, {}, "Observation 0: `delay` must not be negative, got -1"),
        ({"delay": 1.5}, {}, "Observation 0: `delay` must be a whole number, got 1.5"),
        ({"delay": CHUNK}, {}, f"A delay of {CHUNK} steps leaves nothing of a chunk of {CHUNK} actions"),
        ({"delay": 4}, {"rtc": "trained"}, "A delay of 4 steps, but this policy was trained with delays of up to 3"),
        ({"previous_actions": np.zeros((7, 4))}, {}, "Observation 0: 7 `previous_actions`, but a chunk has 6"),
        ({"previous_actions": np.zeros((2, 3))}, {}, "Observation 0: `previous_actions`: .* have 4 dimensions"),
        ({"previous_actions": np.zeros((1, 2, 4))}, {}, r"Observation 0: .* must be \(n, action_dim\), got .*1, 2, 4"),
        ({"previous_actions": np.zeros(4)}, {}, r"Observation 0: .* must be \(n, action_dim\), got the shape \(4,\)"),
        ({"previous_actions": np.full((2, 4), np.nan)}, {}, "Observation 0: `previous_actions`: .* must be finite"),
        ({"previous_actions": "ab"}, {}, "Observation 0: `previous_actions`: Numbers were expected"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(pipe, changes, options, message):
    with pytest.raises(ValueError, match=message):
        pipe({**observation(0, 4, 2), **changes}, **{"rtc": "guidance", **options})


def test_a_policy_that_was_not_trained_with_delays_refuses_at_once(tmp_path):
    folder = save_policy(tmp_path)
    with pytest.raises(ValueError, match=r"was not trained with delays .* Use the method \"guidance\""):
        pipeline("action-prediction", model=str(folder), rtc="trained")


def test_options_are_checked_before_there_is_an_observation(pipe, tmp_path):
    pipe.check_options(num_steps=3, seed=1, rtc="guidance", execution_horizon=CHUNK, batch_size=2)
    for options, message in (
        ({"rtc": "guidance", "acts_by": "tokens"}, "is for policies that act by flow"),
        ({"max_guidance_weight": 1.0}, "max_guidance_weight: only for rtc"),
        ({"rtc": "guidance", "max_guidance_weight": -1}, "max_guidance_weight must be a number that is not negative"),
        ({"rtc": "guidance", "execution_horizon": CHUNK + 1}, f"execution_horizon = {CHUNK + 1} with a delay of 0"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"seed": "one"}, "seed must be a whole number"),
        ({"seed": 2**64}, "seed must have at most 64 bits"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.check_options(**options)
        with pytest.raises(ValueError, match=message):
            ChunkExecutor(pipe, **options)
    for refuse in (pipe.check_options, partial(RealTimeExecutor, pipe, 50), partial(pipe, observation(0))):
        with pytest.raises(TypeError, match="The pipeline has no option 'nonsense'"):
            refuse(nonsense=1)
    folder = str(save_policy(tmp_path))
    with pytest.raises(ValueError, match="execution_horizon: only for rtc"):
        pipeline("action-prediction", model=folder, execution_horizon=2)

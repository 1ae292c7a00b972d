import json
import math

import numpy as np
import pytest
import torch

from kivla.processing import (
    STATISTICS,
    Normalizer,
    clip_to_range,
    compute_statistics,
    discretize_state,
    plain_statistics,
    statistics_from_json,
    statistics_to_json,
)
from kivla.processing.normalization import MOST
from tests.helpers.tolerance import assert_close_relative

MODES = ("quantile", "mean_std", "none")


@pytest.fixture
def values():
    """Robot units: four dimensions of very different size and place, (500, 4)."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(500, 4)) * [1, 1e-3, 50, 2] + [0, 0.5, -300, 10]


@pytest.fixture
def statistics(values):
    return compute_statistics(values)


def openpi(values, statistics, mode):
    """openpi's two formulas as they are written there."""
    if mode == "quantile":
        return (values - statistics["q01"]) / (statistics["q99"] - statistics["q01"] + 1e-6) * 2 - 1
    return (values - statistics["mean"]) / (statistics["std"] + 1e-6)


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
def test_normalised_values_are_those_of_openpi(values, statistics, mode):
    normalized = Normalizer(statistics, mode).normalize(values)
    assert_close_relative(normalized, openpi(values, statistics, mode), roundings=16, what="normalised")
    assert np.abs(normalized).max() > 1, "outliers must not be clipped"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(4,), (500, 4), (5, 10, 10, 4)])
def test_unnormalize_is_the_inverse(values, statistics, mode, shape):
    values = np.resize(values, shape)
    normalizer = Normalizer(statistics, mode)
    back = normalizer.unnormalize(normalizer.normalize(values))
    assert back.shape == shape
    assert back.dtype == np.float32
    largest = np.maximum(np.abs(statistics["min"]), np.abs(statistics["max"]))
    assert (np.abs(back - values) <= 1e-6 * largest).all(), "more than the rounding of float32"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_give_what_arrays_give(values, statistics, mode, dtype):
    normalizer = Normalizer(statistics, mode)
    tensor = torch.tensor(values, dtype=dtype)
    for function in (normalizer.normalize, normalizer.unnormalize):
        result = function(tensor)
        assert result.dtype == torch.float32
        assert_close_relative(result, function(values), what=function.__name__)


def test_half_precision_and_whole_numbers_are_computed_in_float32():
    normalizer = Normalizer({"mean": [100.0], "std": [4.0]}, "mean_std")
    for values in (torch.tensor([[108]]), torch.tensor([[108.0]], dtype=torch.bfloat16), np.array([[108]]), [[108]]):
        assert normalizer.normalize(values).item() == pytest.approx(2, abs=1e-5)


def test_gradients_flow_through_tensors(statistics):
    prediction = torch.zeros(3, 4, requires_grad=True)
    Normalizer(statistics).unnormalize(prediction).sum().backward()
    np.testing.assert_allclose(prediction.grad[0], (statistics["q99"] - statistics["q01"] + 1e-6) / 2, rtol=1e-6)


# --- dimensions that do not vary ---


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
def test_a_constant_dimension_neither_explodes_nor_moves(values, mode):
    values[:, 1] = 0.7
    normalizer = Normalizer(compute_statistics(values), mode)
    jittered = values + np.array([0, 1e-3, 0, 0])
    assert not normalizer.normalize(values)[:, 1].any()
    assert not normalizer.normalize(jittered)[:, 1].any()
    predicted = np.random.default_rng(0).normal(size=(50, 4))
    np.testing.assert_array_equal(normalizer.unnormalize(predicted)[:, 1], np.float32(0.7))
    # the other dimensions are as always
    others = [0, 2, 3]
    expected = openpi(values, compute_statistics(values), mode)[:, others]
    assert_close_relative(normalizer.normalize(values)[:, others], expected, roundings=16, what="normalised")


def test_a_rare_event_survives_equal_quantiles(values):
    values[:, 1] = 0
    values[:2, 1] = 1, -1  # something that happens in 0.4 % of the frames
    statistics = compute_statistics(values)
    assert statistics["q01"][1] == statistics["q99"][1] == 0
    normalizer = Normalizer(statistics)
    normalized = normalizer.normalize(values)[:, 1]
    assert_close_relative(normalized[:3], np.float32([1, -1, 0]), what="normalised")
    back = normalizer.unnormalize(normalizer.normalize(values))[:, 1]
    assert_close_relative(back, values[:, 1], roundings=16, what="and back")


# --- joints that rest ---


def resting(kind: str, frames: int = 20_000) -> np.ndarray:
    """Of real robots: what a joint does that rests in 99 % of the frames, (frames,)."""
    rng = np.random.default_rng(1)
    rare = np.zeros(frames)
    rare[7::150] = 1.0
    return {
        "sparse gripper": rare,
        "sparse gripper with noise": rare + rng.normal(0, 1e-5, frames),
        "a joint that turns in 0.8 % of the frames": rng.choice([-1e-3, 0, 1e-3], frames)
        + np.where(np.arange(frames) % 5000 < 40, np.linspace(0, 0.7, 40)[np.arange(frames) % 40], 0),
        "a joint far from 0, with outliers at 0": np.where(rare, 0.0, 1.569 + rng.normal(0, 2.6e-4, frames)),
        "both ways": rare * rng.choice([-2.0, 3.0], frames) + rng.normal(0, 1e-3, frames),
        "one frame of all": np.where(np.arange(frames) == 777, 1.0, 0.3 + rng.normal(0, 1e-5, frames)),
        "heavy tails": rng.standard_t(1.2, frames),
        "a held joint with noise": 0.3 + rng.normal(0, 1e-5, frames),
        "a held joint, rounded to float32": np.float32(1000 + rng.normal(0, 1e-5, frames)).astype(np.float64),
    }[kind]


def is_rare(values: np.ndarray) -> bool:
    q01, q99 = np.quantile(values, [0.01, 0.99])
    return q99 - q01 < 0.1 * np.ptp(values)


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
@pytest.mark.parametrize("offset", [0, 1e6, -4e6])
def test_a_large_offset_hides_no_motion(mode, offset):
    """A servo of many turns counts millions of ticks, and moves by a hundred."""
    motion = np.random.default_rng(0).integers(0, 100, 1000).astype(np.float64)
    at_zero, far = (Normalizer(compute_statistics(values[:, None]), mode) for values in (motion, motion + offset))
    values = (motion + offset)[:, None]
    np.testing.assert_allclose(far.normalize(values), at_zero.normalize(motion[:, None]), atol=1e-5)
    assert np.abs(far.unnormalize(far.normalize(values)) - values).max() < 1


RESTING = [
    *("sparse gripper", "sparse gripper with noise", "a joint that turns in 0.8 % of the frames"),
    *("a joint far from 0, with outliers at 0", "both ways", "one frame of all", "heavy tails"),
    *("a held joint with noise", "a held joint, rounded to float32"),
]


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
@pytest.mark.parametrize("kind", RESTING)
def test_a_joint_at_rest_is_not_blown_up(kind, mode):
    """Bounded, of an ordinary mean square (the flow loss begins at 1 + that), and back in robot units without loss."""
    values = resting(kind)[:, None]
    normalizer = Normalizer(compute_statistics(values), mode)
    normalized = normalizer.normalize(values)
    assert np.abs(normalized).max() <= MOST == 19
    assert np.mean(normalized.astype(np.float64) ** 2) < 1.01
    back = normalizer.unnormalize(normalized)
    assert np.abs(back - values).max() <= 1e-6 * np.abs(values).max()
    if kind == "a held joint, rounded to float32":
        assert np.abs(normalized).max() < 0.5, "the rounding of float32 takes the range of a motion"
    if is_rare(values):
        assert np.abs(normalized).max() < 2.1, "one such frame would dominate the flow loss of its chunk"


@pytest.mark.parametrize("kind", RESTING[:6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 180 / np.pi, 4096.0])
def test_the_rule_does_not_depend_on_units(kind, scale):
    values = np.stack([resting(kind), scale * resting(kind)], axis=1)
    normalized = Normalizer(compute_statistics(values)).normalize(values)
    np.testing.assert_allclose(normalized[:, 0], normalized[:, 1], atol=5e-3)  # but for the 1e-6 of the formula


def test_ordinary_statistics_have_no_ranges(values, statistics):
    """Nothing changes for data that moves: what is saved and how it is normalised stay as they were."""
    assert tuple(statistics) == STATISTICS
    values[:, 1] = 0.7  # exactly constant
    assert tuple(compute_statistics(values)) == STATISTICS


def test_the_quantiles_stay_true_beside_the_ranges(values):
    values[:, 1] = 0.3
    values[:3, 1] = [1, -1, 2]
    statistics = compute_statistics(values)
    assert statistics["q01"][1] == statistics["q99"][1] == 0.3
    assert (statistics["low"][1], statistics["high"][1]) == (-1, 2)
    others = [0, 2, 3]
    for name, true in (("low", "q01"), ("high", "q99"), ("scale", "std")):
        np.testing.assert_array_equal(statistics[name][others], statistics[true][others])
    plain = plain_statistics(statistics)
    assert tuple(plain) == STATISTICS
    for mode in ("quantile", "mean_std"):
        np.testing.assert_array_equal(
            Normalizer(plain, mode).normalize(values), Normalizer(statistics, mode).normalize(values)
        )


def test_older_statistics_normalise_as_before():
    """A policy that was saved before the rule, or came from openpi, has no ranges, and gets none."""
    values = np.stack([resting("sparse gripper with noise"), resting("sparse gripper")], axis=1)
    older = {name: values for name, values in compute_statistics(values).items() if name in STATISTICS}
    for loaded in (older, statistics_from_json(json.loads(json.dumps(statistics_to_json(older))))):
        assert tuple(loaded) == STATISTICS
        normalized = Normalizer(loaded).normalize(values)
        assert_close_relative(normalized[:, 0], openpi(values, older, "quantile")[:, 0], roundings=16)
        assert normalized[:, 0].max() > 10_000 and np.abs(normalized[:, 1]).max() <= 1


@pytest.mark.parametrize("name", ["low", "high", "scale"])
def test_half_of_the_ranges_is_refused(name):
    statistics = compute_statistics(resting("both ways")[:, None])
    del statistics[name]
    with pytest.raises(ValueError, match="either all of"):
        Normalizer(statistics)


# --- clipping ---


@pytest.mark.parametrize("kind", [np.float32, torch.tensor])
def test_values_are_clipped_and_counted(kind):
    low, high = np.array([-1.0, 0.0, 5.0]), np.array([1.0, 0.1, 5.0])
    values = np.array([[[-1, 0.05, 5], [2, 0, 5]], [[0, 0.3, 5], [-1.5, 0.1, 5]]], dtype=np.float32)  # (2, 2, 3)
    clipped, report = clip_to_range(kind(values), low, high)
    expected = np.array([[[-1, 0.05, 5], [1, 0, 5]], [[0, 0.1, 5], [-1, 0.1, 5]]], dtype=np.float32)
    np.testing.assert_array_equal(np.asarray(clipped), expected, strict=True)
    # Out of 12: 2 above 1 by half a width, -1.5 below -1 by a quarter, 0.3 above 0.1 by twice its width
    assert report == {"values": 3, "of": 12, "share": 0.25, "largest": pytest.approx(2, rel=1e-6), "dimension": 1}


def test_what_was_recorded_is_not_counted(values, statistics):
    """Through float32 and back the largest recorded action is no excess, and is exactly within the range."""
    normalizer = Normalizer(statistics)
    back = normalizer.unnormalize(normalizer.normalize(values))
    clipped, report = clip_to_range(back, statistics["min"], statistics["max"])
    assert report == {"values": 0, "of": 2000, "share": 0.0, "largest": 0.0, "dimension": None}
    assert (clipped >= statistics["min"].astype(np.float32)).all()
    assert (clipped <= statistics["max"].astype(np.float32)).all()


def test_a_constant_dimension_has_a_range_of_a_point():
    constant = np.array([0.7])
    assert clip_to_range(np.float32([[0.7]]), constant, constant)[1]["values"] == 0
    clipped, report = clip_to_range(np.float32([[0.8]]), constant, constant)
    assert clipped == np.float32(0.7) and report["values"] == 1 and math.isfinite(report["largest"])


# --- refusals ---


@pytest.mark.parametrize("mode", MODES)
def test_what_float32_cannot_hold_is_refused(statistics, mode):
    with pytest.raises(ValueError, match=r"in float32 must be finite, but the one at index \(2,\) is inf"):
        Normalizer(statistics, mode).normalize([0.0, 0.0, 1e300, 0.0])


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
@pytest.mark.parametrize("shape", [(7,), (3, 1), ()])
def test_another_robot_is_refused(statistics, mode, shape):
    with pytest.raises(ValueError, match=r"for 4 dimensions.*another robot"):
        Normalizer(statistics, mode).normalize(np.zeros(shape))
    with pytest.raises(ValueError, match=r"for 4 dimensions.*another robot"):
        Normalizer(statistics, mode).unnormalize(torch.zeros(shape))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
def test_values_that_are_not_finite_are_refused_with_their_index(values, statistics, mode, bad, convert):
    values = values[:6].reshape(2, 3, 4)
    values[1, 0, 2] = bad
    for function in (Normalizer(statistics, mode).normalize, Normalizer(statistics, mode).unnormalize):
        with pytest.raises(ValueError, match=r"index \(1, 0, 2\) is (nan|inf)"):
            function(convert(values))


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
def test_missing_statistics_are_named(statistics, mode):
    needed = {"quantile": "q99", "mean_std": "std"}[mode]
    del statistics[needed]
    with pytest.raises(ValueError, match=rf"Mode '{mode}' needs the statistics \['{needed}'\]"):
        Normalizer(statistics, mode)


def test_unknown_mode_is_refused(statistics):
    with pytest.raises(ValueError, match=r"'z_score'.*'quantile', 'mean_std', 'none'"):
        Normalizer(statistics, "z_score")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q01", math.nan, r"'q01' must be finite, but the one at index \(2,\) is nan"),
        ("q99", -1e9, "dimension 2: q99 = .* is below q01"),
        ("max", -1e9, "dimension 2: max = .* is below min"),
        ("std", -1.0, "'std' is negative in dimension 2"),
    ],
)
def test_impossible_statistics_are_refused_everywhere(statistics, name, value, message):
    statistics[name][2] = value
    for function in (Normalizer, statistics_to_json, statistics_from_json):
        with pytest.raises(ValueError, match=message):
            function(statistics)


def test_statistics_of_unequal_length_are_refused(statistics):
    statistics["q99"] = statistics["q99"][:3]
    with pytest.raises(ValueError, match="same D"):
        Normalizer(statistics)


# --- statistics ---


def test_statistics_are_the_true_ones(values, statistics):
    ordered = np.sort(values, axis=0)
    # numpy's and R's usual definition: rank (N - 1) · q, linearly interpolated. 499 · 0.01 = 4.99
    np.testing.assert_allclose(statistics["q01"], 0.01 * ordered[4] + 0.99 * ordered[5])
    np.testing.assert_allclose(statistics["q99"], 0.99 * ordered[494] + 0.01 * ordered[495])
    np.testing.assert_array_equal([statistics["min"], statistics["max"]], ordered[[0, -1]])
    np.testing.assert_allclose(statistics["mean"], values.sum(axis=0) / 500)
    np.testing.assert_allclose(statistics["std"] ** 2, ((values - values.mean(axis=0)) ** 2).mean(axis=0))


def test_statistics_refuse_what_has_none(values):
    for shape in ((4,), (0, 4), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"shape \(N, D\)"):
            compute_statistics(np.zeros(shape))
    values[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"index \(3, 1\) is nan"):
        compute_statistics(values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rests", [False, True])
def test_statistics_survive_json_exactly(values, dtype, rests):
    values[3:, 0] *= 1e-3 if rests else 1
    statistics = compute_statistics(values)
    assert ("low" in statistics) == rests
    statistics = {name: (array / 3).astype(dtype) for name, array in statistics.items()}
    back = statistics_from_json(json.loads(json.dumps(statistics_to_json(statistics))))
    assert list(back) == list(statistics)
    for name, array in statistics.items():
        assert back[name].dtype == np.float64
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_entries_that_are_no_statistics_are_left_out(statistics):
    lerobot = {**statistics, "count": np.array([500]), "q50": np.zeros(4)}
    assert statistics_to_json(lerobot) == statistics_to_json(statistics)


# --- states in the prompt ---


def test_states_get_openpis_bins():
    state = np.random.default_rng(0).uniform(-1.5, 1.5, (50, 8))
    expected = np.digitize(state, bins=np.linspace(-1, 1, 256 + 1)[:-1]) - 1
    np.testing.assert_array_equal(discretize_state(state), expected)


def test_state_bins_stay_in_range():
    assert discretize_state([-5, -1.0001, -1, 0, 1, 5]).tolist() == [-1, -1, 0, 128, 255, 255]
    assert discretize_state([-5, 0.1, 5], num_bins=2).tolist() == [-1, 1, 1]
    with pytest.raises(ValueError, match=r"index \(1,\) is nan"):
        discretize_state([0, math.nan])

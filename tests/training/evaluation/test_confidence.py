"""Intervals and paired tests against their formulas and published numbers."""

from math import comb, sqrt

import numpy as np
import pytest

from kivla.training.evaluation.confidence import bootstrap_interval, mcnemar_test, paired_difference, wilson_interval


def wilson_by_hand(k: int, n: int, z: float) -> tuple[float, float]:
    rate = k / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@pytest.mark.parametrize("k, n", [(0, 10), (1, 10), (81, 263), (174, 200), (200, 200), (1, 1)])
def test_wilson_is_its_formula(k, n):
    np.testing.assert_allclose(wilson_interval(k, n), wilson_by_hand(k, n, 1.959963984540054), atol=1e-12)
    np.testing.assert_allclose(wilson_interval(k, n, 0.9), wilson_by_hand(k, n, 1.6448536269514722), atol=1e-12)


def test_wilson_published_values():
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    np.testing.assert_allclose(wilson_interval(81, 263), (0.2553, 0.3662), atol=5e-5)
    np.testing.assert_allclose(wilson_interval(15, 148), (0.0624, 0.1605), atol=5e-5)
    np.testing.assert_allclose(wilson_interval(0, 20), (0.0000, 0.1611), atol=5e-5)
    np.testing.assert_allclose(wilson_interval(1, 29), (0.0061, 0.1718), atol=5e-5)


@pytest.mark.parametrize("k, n", [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match=f"got {k} of {n}"):
        wilson_interval(k, n)


def outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize("b, c", [(0, 5), (1, 9), (4, 4), (12, 3), (30, 41)])
def test_mcnemar_is_a_binomial_test_on_the_disagreements(b, c):
    tail = sum(comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
    test = mcnemar_test(*outcomes(7, b, c, 5))
    assert (test.both, test.only_first, test.only_second, test.neither) == (7, b, c, 5)
    assert test.p_value == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_mcnemar_looks_only_at_disagreements():
    few, many = mcnemar_test(*outcomes(0, 2, 9, 0)), mcnemar_test(*outcomes(500, 2, 9, 500))
    assert few.p_value == many.p_value == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert mcnemar_test([True, False], [True, False]).p_value == 1.0


def test_mcnemar_is_paired():
    with pytest.raises(ValueError, match="same seeds"):
        mcnemar_test([True, False], [True])
    with pytest.raises(ValueError, match="same seeds"):
        mcnemar_test([], [])


def test_bootstrap_of_equal_counts_is_that_of_the_mean():
    """Of many values: the interval of the normal distribution around the mean."""
    draw = np.random.default_rng(1)
    values = draw.exponential(size=800)
    interval = bootstrap_interval(50 * values, np.full(800, 50))
    half = 1.96 * values.std() / sqrt(800)
    assert interval.mean == pytest.approx(values.mean())
    np.testing.assert_allclose((interval.low, interval.high), (values.mean() - half, values.mean() + half), atol=0.01)
    assert bootstrap_interval(values) == bootstrap_interval(values), "the same figures have the same interval"
    narrower = bootstrap_interval(values, confidence=0.5)
    assert interval.low < narrower.low < narrower.mean < narrower.high < interval.high


def test_bootstrap_weighs_by_counts():
    """A text of nine tokens counts nine times as much as one of one; one of none does not count."""
    assert bootstrap_interval([9.0, 3.0, 0.0], [9, 1, 0]).mean == pytest.approx(1.2)


@pytest.mark.parametrize("totals, counts", [([1.0], [1]), ([], []), ([1.0, 2.0], [3, 0])])
def test_bootstrap_refuses_a_single_measurement(totals, counts):
    with pytest.raises(ValueError, match="at least two measurements"):
        bootstrap_interval(totals, counts)


def test_bootstrap_refuses_other_counts():
    with pytest.raises(ValueError, match="give one for each"):
        bootstrap_interval([1.0, 2.0], [1, 2, 3])


def test_paired_difference_published_value():
    """Newcombe 1998, Statistics in Medicine 17:2635, method 10."""
    interval = paired_difference(*outcomes(36, 12, 2, 0))
    assert interval.mean == pytest.approx(0.2)
    np.testing.assert_allclose((interval.low, interval.high), (0.0569, 0.3404), atol=5e-5)


def test_paired_difference_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    shares = (0.6, 0.15, 0.05, 0.2)  # both, only the first, only the second, neither
    intervals = [paired_difference(*outcomes(*draw.multinomial(100, shares))) for _ in range(200)]
    assert 0.91 < np.mean([interval.low <= 0.1 <= interval.high for interval in intervals]) < 0.99


def test_paired_difference_of_models_that_always_agree():
    """Agreement on 50 episodes does not make them equal."""
    for both in (0, 20, 50):
        interval = paired_difference(*outcomes(both, 0, 0, 50 - both))
        assert interval.mean == 0 and interval.low == pytest.approx(-interval.high) and 0.02 < interval.high < 0.08
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([True, False], [True])

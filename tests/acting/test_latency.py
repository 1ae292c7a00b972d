"""The delay that is counted on: a high quantile of what was measured lately."""

import numpy as np
import pytest

from kivla.acting import LatencyEstimate


def test_until_it_was_measured_it_is_what_was_said():
    assert LatencyEstimate(first=0.1).steps(rate=50) == 5
    assert LatencyEstimate(first=0.101).steps(rate=50) == 6
    assert LatencyEstimate(first=0.06).steps(rate=50) == 3, "no step more for the sake of rounding"


def test_it_is_the_quantile_of_the_window():
    latency = LatencyEstimate(quantile=0.9, window=20)
    measured = np.random.default_rng(0).exponential(0.05, 100)
    for n, seconds in enumerate(measured, 1):
        latency.add(seconds)
        newest = sorted(measured[max(0, n - 20) : n])
        assert latency.seconds == newest[int(np.ceil(0.9 * (len(newest) - 1)))]
        assert latency.steps(50) == int(np.ceil(latency.seconds * 50))


def test_numbers_that_cannot_be():
    for wrong in ({"first": 0}, {"quantile": 0}, {"quantile": 1.1}, {"window": 0}):
        with pytest.raises(ValueError, match="first must be positive seconds"):
            LatencyEstimate(**wrong)

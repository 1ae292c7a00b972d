"""What measurements say: intervals around a rate or a mean, and a paired test of two models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson 1927), without continuity correction.

    Unlike the normal approximation it stays inside [0, 1] and has a width at 0 and at all successes.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"An interval needs at least one trial and 0 to all successes, got {successes} of {trials}.")
    interval = binomtest(int(successes), int(trials)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Interval:
    """A mean, and the bounds of its interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    totals: Sequence[float],
    counts: Sequence[float] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of what was measured on n things, `sum(totals) / sum(counts)`, with a percentile bootstrap (Efron 1979).

    The things (texts, scenes) are drawn anew, and not the tokens within, which are no independent measurements. Of two
    models on the same things, give the differences: that is the paired bootstrap.

    Args:
        totals: (n,) one sum for each.
        counts: (n,) of how many values each is the sum; by default one.
        num_resamples: how often n things are drawn.
        seed: of the draws: the same figures have the same interval.

    Raises:
        ValueError: fewer than two things with a value, or different numbers of totals and counts.
    """
    totals = np.asarray(totals, np.float64)
    counts = np.ones_like(totals) if counts is None else np.asarray(counts, np.float64)
    if totals.shape != counts.shape or totals.ndim != 1:
        raise ValueError(f"Got totals of shape {totals.shape} and counts of shape {counts.shape}: give one for each.")
    totals, counts = totals[counts > 0], counts[counts > 0]
    if len(totals) < 2:
        raise ValueError(f"An interval needs at least two measurements, got {len(totals)}.")
    times_drawn = np.random.default_rng(seed).multinomial(
        len(totals), np.full(len(totals), 1 / len(totals)), size=num_resamples
    )
    means = (times_drawn @ totals) / (times_drawn @ counts)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(totals.sum() / counts.sum()), float(low), float(high))


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same episodes.

    Attributes:
        both, neither: episodes on which the models agree.
        only_first, only_second: episodes on which just one of them succeeds.
        p_value: how probable so uneven a split of the disagreements is, if the models were equally good (two-sided).
    """

    both: int
    neither: int
    only_first: int
    only_second: int
    p_value: float


def mcnemar_test(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """McNemar's exact test: a binomial test on the episodes where exactly one model succeeds (McNemar 1947).

    Args:
        first, second: (n,) success of each model, on the same episodes in the same order.

    Raises:
        ValueError: different numbers of episodes, or none.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"A paired test needs the outcomes of both models on the same episodes, got shapes {first.shape} and "
            f"{second.shape}. Run both with the same seeds."
        )
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    disagreements = only_first + only_second
    p_value = float(binomtest(only_first, disagreements).pvalue) if disagreements else 1.0
    return PairedTest(int((first & second).sum()), int((~first & ~second).sum()), only_first, only_second, p_value)


def paired_difference(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> Interval:
    """How much more often the first model succeeds than the second on the same episodes (Newcombe 1998, method 10).

    Made of both rates' Wilson intervals and of how the outcomes go together. Unlike a bootstrap it has a width where
    the models never disagree.

    Args:
        first, second: (n,) success of each model, on the same episodes in the same order.

    Raises:
        ValueError: different numbers of episodes, or none.
    """
    test = mcnemar_test(first, second)
    both, neither, only_first, only_second = test.both, test.neither, test.only_first, test.only_second
    n = both + neither + only_first + only_second
    successes = both + only_first, both + only_second
    (rate, low, high), (other_rate, other_low, other_high) = (
        (count / n, *wilson_interval(count, n, confidence)) for count in successes
    )
    # The outcomes' correlation, with a continuity correction where it is positive
    product = both * neither - only_first * only_second
    product = max(product - n / 2, 0) if product > 0 else product
    scale = np.sqrt(float(np.prod([*successes, n - successes[0], n - successes[1]], dtype=np.float64)))
    correlation = product / scale if scale else 0.0

    def reach(one: float, other: float) -> float:
        return float(np.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0)))

    difference = rate - other_rate
    return Interval(
        difference,
        difference - reach(rate - low, other_high - other_rate),
        difference + reach(high - rate, other_rate - other_low),
    )

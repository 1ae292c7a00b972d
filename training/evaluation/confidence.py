"""What counted successes say: an interval around a rate, and a paired test of two models."""

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

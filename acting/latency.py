"""How long a policy takes, as the number of control steps to count on."""

import math
from collections import deque


class LatencyEstimate:
    """The delay to count on: a high quantile of the newest latencies, rounded up to whole control steps.

    An answer that takes longer than that comes late, and its first actions are lost; one that is quicker is used at
    once. So the quantile is high, and the window short enough to follow a machine that becomes busy.

    Args:
        first: seconds to count on until a latency was measured.
        quantile: which of the newest latencies (the next larger one, no mean of two).
        window: how many are the newest.

    Raises:
        ValueError: a number that makes no sense.
    """

    def __init__(self, first: float = 0.1, quantile: float = 0.95, window: int = 50):
        if not (first > 0 and 0 < quantile <= 1 and window >= 1):
            raise ValueError(
                "first must be positive seconds, quantile in (0, 1] and window at least 1; got "
                f"{first}, {quantile} and {window}."
            )
        self.first = first
        self.quantile = quantile
        self._newest: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        """Measured, from question to answer."""
        self._newest.append(seconds)

    @property
    def seconds(self) -> float:
        """What to count on."""
        if not self._newest:
            return self.first
        return sorted(self._newest)[math.ceil(self.quantile * (len(self._newest) - 1))]

    def steps(self, rate: float) -> int:
        """What to count on, in control steps of which there are `rate` a second."""
        return math.ceil(self.seconds * rate - 1e-9)


__all__ = ["LatencyEstimate"]

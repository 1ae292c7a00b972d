"""What a policy server has done so far, in Prometheus's text format (version 0.0.4)."""

from collections import deque

import numpy as np

QUANTILES = (0.5, 0.99)
# Quantiles are over so many of the newest answers
_WINDOW = 1000


class _Durations:
    """Seconds: their number and sum from the start, and quantiles of the newest."""

    def __init__(self):
        self.count, self.sum = 0, 0.0
        self._newest: deque[float] = deque(maxlen=_WINDOW)

    def add(self, seconds: float) -> None:
        self.count += 1
        self.sum += seconds
        self._newest.append(seconds)

    def quantiles(self) -> dict[float, float]:
        values = np.quantile(self._newest, QUANTILES) if self._newest else [np.nan] * len(QUANTILES)
        return dict(zip(QUANTILES, map(float, values), strict=True))


class ServerMetrics:
    """Counts from the start of the server.

    Attributes:
        answers: requests that were answered with actions.
        passes: how often the policy ran; with batches less often than there are answers.
        refusals: requests that were refused: the client's doing, or the server was busy.
        failures: requests on which the policy failed.
        refused_connections: clients without the key, or too many.
        slow_readers: clients that were dropped because they did not read what they were sent.
        values, clipped_values: action values that were predicted by policies that clip, and those that were clipped.
        policy_seconds: the policy alone, for each answer (those of one pass have the same).
        request_seconds: from a request's arrival to its encoded answer, with waiting.
    """

    def __init__(self):
        self.answers = self.passes = self.refusals = self.failures = self.refused_connections = self.slow_readers = 0
        self.values = self.clipped_values = 0
        self.policy_seconds, self.request_seconds = _Durations(), _Durations()

    def as_text(self, connections: int, requests: int) -> str:
        """
        Args:
            connections: clients at this moment.
            requests: those that wait or run at this moment.
        """
        counters = {
            "answers": "Requests answered with actions.",
            "passes": "How often the policy ran.",
            "refusals": "Requests refused with a reason.",
            "failures": "Requests on which the policy failed.",
            "refused_connections": "Connections refused: no key, or too many.",
            "slow_readers": "Clients dropped because they did not read.",
            "values": "Predicted action values that were compared with the recorded range.",
            "clipped_values": "Predicted action values that were clipped to it.",
        }
        lines = []
        for name, meaning in counters.items():
            lines += [f"# HELP kivla_{name}_total {meaning}", f"# TYPE kivla_{name}_total counter"]
            lines += [f"kivla_{name}_total {getattr(self, name)}"]
        for name, value in (("connections", connections), ("requests", requests)):
            lines += [f"# HELP kivla_{name} At this moment.", f"# TYPE kivla_{name} gauge", f"kivla_{name} {value}"]
        for name, meaning in (("policy", "The policy alone."), ("request", "From arrival to encoded answer.")):
            durations: _Durations = getattr(self, f"{name}_seconds")
            name = f"kivla_{name}_seconds"
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} summary"]
            lines += [f'{name}{{quantile="{q}"}} {value:.9g}' for q, value in durations.quantiles().items()]
            lines += [f"{name}_sum {durations.sum:.9g}", f"{name}_count {durations.count}"]
        return "\n".join(lines) + "\n"


__all__ = ["QUANTILES", "ServerMetrics"]

"""The beat of a control loop, by a clock that only moves when it is told to."""

from itertools import islice

import pytest

from kivla.acting import ticks


class Clock:
    """`sleep` comes back `oversleeps` seconds late."""

    def __init__(self, oversleeps: float = 0.0):
        self.now, self.oversleeps = 100.0, oversleeps

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.oversleeps


def test_the_grid_does_not_drift():
    clock = Clock(oversleeps=0.001)
    for n, late in enumerate(islice(ticks(50, clock, clock.sleep), 500)):
        assert late == pytest.approx(0.001 if n else 0, abs=1e-9)
        assert clock.now - 100 == pytest.approx(n / 50 + late, abs=1e-9)
        clock.now += 0.007  # what the loop does


def test_missed_ticks_are_left_out_and_not_made_up_for():
    clock, times, lates = Clock(), [], []
    for n, late in enumerate(islice(ticks(10, clock, clock.sleep), 6)):
        times.append(clock.now - 100)
        lates.append(late)
        clock.now += 0.35 if n == 1 else 0.02
    # The second one takes until 0.45: tick 4 (at 0.4) comes at once and late, 2 and 3 do not come.
    assert times == pytest.approx([0, 0.1, 0.45, 0.5, 0.6, 0.7])
    assert lates == pytest.approx([0, 0, 0.05, 0, 0, 0])

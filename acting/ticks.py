"""The beat of a control loop."""

import math
import time
from collections.abc import Callable, Iterator


def ticks(
    rate: float, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
) -> Iterator[float]:
    """`rate` times a second, without end, on a grid that does not drift.

    A tick that comes late does not move those after it. Where the loop took so long that whole ticks were missed, they
    are left out, and are not made up for in a burst.

    Args:
        rate: ticks per second.
        clock: seconds that only go forward.
        sleep: waits so many seconds.

    Yields:
        How late the tick is, in seconds.
    """
    begin, tick = clock(), 0
    while True:
        due = begin + tick / rate
        if (wait := due - clock()) > 0:
            sleep(wait)
        yield max(clock() - due, 0.0)
        tick = max(tick + 1, math.floor((clock() - begin) * rate))


__all__ = ["ticks"]

"""Time and peak memory of alternatives, measured side by side."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm


def interleaved(title: str, calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each call, (repetitions,) per name.

    Every repetition runs all the calls, every other one in reverse order: what disturbs or slows the machine for a
    while does so for all of them, and the ratio within a repetition can be trusted more than the times. Each call
    runs once beforehand, unmeasured.
    """
    seconds = {name: [] for name in calls}
    with tqdm(total=len(calls) * (1 + repetitions), desc=title, leave=False) as progress:
        for repetition in range(1 + repetitions):
            for name in list(calls)[:: -1 if repetition % 2 else 1]:
                start = time.perf_counter()
                calls[name]()
                elapsed = time.perf_counter() - start
                if repetition > 0:
                    seconds[name].append(elapsed)
                progress.update()
    return seconds


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes of tensors that one call needs at its peak, on top of what there was before.

    Every allocation counts, as torch's profiler sees it: exact, the same in every run, and independent of what the
    allocator keeps to itself, unlike the memory of the process. (For the token loss the growth of the resident memory
    in a fresh process was within 40 MB of it.)
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    events = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    before = events[0]["args"]["Total Allocated"] - events[0]["args"]["Bytes"]
    return max(e["args"]["Total Allocated"] for e in events) - before

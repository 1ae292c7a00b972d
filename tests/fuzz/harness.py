"""Calls a target with many inputs, in a process that may die of it, and counts what comes of them."""

import faulthandler
import gc
import multiprocessing
import os
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HANG_SECONDS = 60  # without an answer
GROWTH_BYTES = 100_000_000
_WARM_UP = 50  # inputs after which a process should not grow any more
_BATCH = 100  # inputs between two looks at the memory


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: e.g. "info.json".
        prepare: makes, in an empty folder, what every input needs; gives `feed`.
        refusals: the exceptions that the entry point documents.
        share: of the inputs, in any unit.

    `feed(seed, count, attempt)` makes `count` inputs and hands for each a function without arguments to `attempt`.
    """

    name: str
    prepare: Callable[[Path], Callable]
    refusals: tuple[type[BaseException], ...] = (ValueError, FileNotFoundError)
    share: float = 1.0


@dataclass
class Result:
    """Of a target: how many inputs were accepted, refused with which class, and the defects, by a short text.

    Both in bytes and after the first inputs: `growth`, what the process holds on to; `peak`, what it ever took.
    """

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: Counter = field(default_factory=Counter)
    defects: dict[str, int] = field(default_factory=dict)  # text -> number of the first input
    growth: int = 0
    peak: int = 0
    seconds: float = 0.0

    def attempt(self, call: Callable[[], None], refusals: tuple[type[BaseException], ...]) -> None:
        number, self.inputs = self.inputs, self.inputs + 1
        try:
            call()
            self.accepted += 1
        except refusals as error:
            self.refused[type(error).__name__] += 1
            if not str(error).strip():
                self.defects.setdefault(f"a {type(error).__name__} without words", number)
        except BaseException as error:  # a panic of Rust code is no `Exception`
            where = traceback.extract_tb(error.__traceback__)
            frames = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "/fuzz/" not in f.filename]
            text = f"{type(error).__name__}: {str(error)[:160]} ({' < '.join(frames[::-1][:6])})"
            if not any(text.split(":")[0] == known.split(":")[0] and frames[-1] in known for known in self.defects):
                self.defects[text] = number


def run(target: Target, count: int, seed: int, folder: Path, on_progress: Callable[[int], None]) -> Result:
    """`count` inputs in processes of their own; one that hangs or crashes is noted, and the next one goes on."""
    total, start, batch = Result(target.name), time.monotonic(), 0
    while total.inputs < count:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        home = folder / f"{target.name.replace('/', '_')}_{batch}"
        arguments = (target, count - total.inputs, (seed, batch), home, sender)
        process = multiprocessing.get_context("fork").Process(target=_work, args=arguments)
        process.start()
        sender.close()
        done_before, deadline = total.inputs, time.monotonic() + HANG_SECONDS
        partial, last = Result(target.name), ("starting", 0)
        while True:
            if receiver.poll(1.0):
                try:
                    message = receiver.recv()
                except EOFError:
                    break
                deadline = time.monotonic() + HANG_SECONDS
                if isinstance(message, Result):
                    partial = message
                    on_progress(done_before + partial.inputs - total.inputs)
                    total.inputs = done_before + partial.inputs
                else:
                    last = message
            elif time.monotonic() > deadline:
                process.kill()
                partial.defects[f"hang: no answer in {HANG_SECONDS} s"] = last[1]
                partial.inputs = max(partial.inputs, last[1] + 1)
                break
        process.join()
        if process.exitcode not in (0, -9):
            partial.defects[f"crash: exit code {process.exitcode}"] = last[1]
            partial.inputs = max(partial.inputs, last[1] + 1)
        total.inputs = done_before + max(partial.inputs, 1)
        total.accepted += partial.accepted
        total.refused += partial.refused
        total.growth, total.peak = max(total.growth, partial.growth), max(total.peak, partial.peak)
        for text, number in partial.defects.items():
            total.defects.setdefault(text, done_before + number)
        batch += 1
        if batch > 20:
            total.defects["given up after 20 processes"] = total.inputs
            break
    if max(total.growth, total.peak) > GROWTH_BYTES:
        total.defects[f"growth: {total.growth / 1e6:.0f} MB held, {total.peak / 1e6:.0f} MB taken"] = 0
    total.seconds = time.monotonic() - start
    return total


def _work(target: Target, count: int, seed: tuple[int, int], folder: Path, sender) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    faulthandler.disable()  # the parent reports a crash
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries have much to say about damaged files
        os.dup2(null, stream)
    folder.mkdir(parents=True)
    feed = target.prepare(folder)
    result, level = Result(target.name), None

    def attempt(call: Callable[[], None]) -> None:
        sender.send(("at", result.inputs))
        result.attempt(call, target.refusals)

    while result.inputs < count:
        feed((*seed, result.inputs), min(_BATCH, count - result.inputs), attempt)
        gc.collect()
        if result.inputs >= _WARM_UP and level is None:
            level, highest = private_bytes(), peak_bytes()
        if level is not None:
            result.growth = max(result.growth, private_bytes() - level)
            result.peak = peak_bytes() - highest
        sender.send(result)
    sender.close()


def private_bytes() -> int:
    """Memory of this process alone (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def peak_bytes() -> int:
    """The most that this process ever had in memory (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

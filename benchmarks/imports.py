"""How long `import kivla` and `kivla --help` take, beside the libraries that they need, in fresh processes."""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from .report import Comparison, Measurement

ROOT = Path(__file__).parents[1]
LIBRARIES = {
    "import torch": "import torch",
    "import transformers": "import transformers",  # its models and pipelines are loaded when they are first used
    "importing the library's pipelines": "import transformers.pipelines",
}
OURS = {
    "import kivla": "import kivla",
    "import kivla and the trainer": "from kivla import KIVLATrainer",
    "kivla --help": "from kivla_cli import main; main(['--help'])",  # what the console script does
}


def measure(quick: bool) -> Measurement:
    measurement = Measurement(
        "Importing",
        "Processor time of a fresh Python process (user and system), which another process on the machine changes "
        "little. A policy is registered with the library's Auto classes and pipelines by `import kivla`, and the "
        "classes that are registered need `transformers.pipelines`: `import kivla` cannot take less than these.",
    )
    taken = interleaved({name: [program] for name, program in (LIBRARIES | OURS).items()}, 1 if quick else 3)
    seconds = {name: [processor for _, processor in runs] for name, runs in taken.items()}
    measurement.check("Every process ended well", True)  # `_seconds` raises where one does not
    measurement.comparisons = [
        Comparison(what, seconds[what], against, seconds[against]) for what in OURS for against in LIBRARIES
    ]
    return measurement


def interleaved(programs: dict[str, list[str]], repetitions: int) -> dict[str, list[tuple[float, float]]]:
    """Run each program, and its arguments, in fresh processes, every other repetition in reverse order.

    Returns:
        (seconds on the wall, seconds of the processor) for each repetition; one before them is not counted.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for repetition in tqdm(range(1 + repetitions), desc="processes", leave=False):
        for name in list(programs)[:: -1 if repetition % 2 else 1]:
            seconds = _seconds(programs[name])
            if repetition > 0:
                taken[name].append(seconds)
    return taken


def _seconds(program: list[str]) -> tuple[float, float]:
    # As where kivla is installed: its bytecode is kept, from the repetition that is not counted
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", *program], cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.imports", description=__doc__).parse_args()
    print(measure(quick=False).as_markdown())

"""How long `import kivla` and `kivla --help` take, beside the libraries that they need, in fresh processes."""

import resource
import subprocess
import sys
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
    seconds = _interleaved(LIBRARIES | OURS, repetitions=1 if quick else 3)
    measurement.check("Every process ended well", True)  # `_seconds` raises where one does not
    measurement.comparisons = [
        Comparison(what, seconds[what], against, seconds[against]) for what in OURS for against in LIBRARIES
    ]
    return measurement


def _interleaved(programs: dict[str, str], repetitions: int) -> dict[str, list[float]]:
    """Processor seconds of each program, every other repetition in reverse order; one before them is not counted."""
    seconds = {name: [] for name in programs}
    for repetition in tqdm(range(1 + repetitions), desc="imports", leave=False):
        for name in list(programs)[:: -1 if repetition % 2 else 1]:
            taken = _seconds(programs[name])
            if repetition > 0:
                seconds[name].append(taken)
    return seconds


def _seconds(program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    print(measure(quick=False).as_markdown())

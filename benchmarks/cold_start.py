"""`python -m benchmarks.cold_start POLICY`: from a new process to a policy's first action.

Beside it: a process that does nothing but import the class of a VLM, which nobody who runs one can do without. Both
take turns; what counts is the clock on the wall, and beside it the processor time, which another process on the machine
changes little.
"""

import argparse
from statistics import median

from .imports import interleaved
from .options import count

IMPORT = "from transformers import PaliGemmaForConditionalGeneration"
# What the process of a robot does, here of the tabletop
FIRST_ACTION = """
import sys
import numpy as np
from transformers import pipeline
import kivla
act = pipeline("action-prediction", model=sys.argv[1])
images = {"observation.images.top": np.zeros((64, 64, 3), np.uint8)}
chunk = act({"images": images, "text": "touch the red star", "state": np.zeros(3, np.float32)})
assert np.isfinite(chunk["actions"]).all()
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("policy", help="a policy of the tabletop, such as outputs/demo_10_minutes/policy")
    parser.add_argument("--repetitions", type=count, default=7, help="of each (default: 7)")
    options = parser.parse_args(arguments)
    programs = {"to the first action": [FIRST_ACTION, options.policy], IMPORT: [IMPORT]}
    print(as_table(interleaved(programs, options.repetitions)))


def as_table(taken: dict[str, list[tuple[float, float]]]) -> str:
    """Medians, in seconds, and the ratio of the first program to the second.

    Args:
        taken: of two programs, (on the wall, of the processor) for each repetition.
    """
    lines = ["| | on the wall, s | of the processor, s |", "|---|--:|--:|"]
    middle = {name: [median(column) for column in zip(*seconds, strict=True)] for name, seconds in taken.items()}
    lines += [f"| {name} | {wall:.2f} | {cpu:.2f} |" for name, (wall, cpu) in middle.items()]
    ours, floor = middle.values()
    lines.append(f"| ratio | {ours[0] / floor[0]:.2f} | {ours[1] / floor[1]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

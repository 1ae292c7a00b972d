"""`python -m tests.fuzz --inputs 20000 --seed 0`: every target with many inputs; a table of what came of them.

Every input of a target comes from the seed and the target's name. Worker processes are watched: exceptions that the
entry point does not document, crashes, hangs and growth of memory are defects, and the exit code is then 1.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from .harness import GROWTH_BYTES, HANG_SECONDS, Result, run
from .targets import TARGETS

REPORT = Path(__file__).with_name("report.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS), help="only these")
    parser.add_argument("--write", action="store_true", help=f"put the table into {REPORT.name}")
    options = parser.parse_args()
    targets = [TARGETS[name] for name in options.targets or TARGETS]
    shares = sum(target.share for target in targets)
    results, start = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=options.inputs, unit="input") as bar:
        for target in targets:
            bar.set_description(target.name)
            count = max(round(options.inputs * target.share / shares), 1)
            results.append(run(target, count, options.seed, Path(folder), bar.update))
            for text in results[-1].defects:
                bar.write(f"{target.name}: {text}")
    report = as_markdown(results, options.seed, time.monotonic() - start)
    print(report)
    if options.write:
        REPORT.write_text(report, encoding="utf-8")
    return int(any(result.defects for result in results))


def as_markdown(results: list[Result], seed: int, seconds: float) -> str:
    total = sum(result.inputs for result in results)
    lines = [
        "# Fuzzing",
        "",
        f"Written by `python -m tests.fuzz --inputs {total} --seed {seed} --write` in {seconds / 60:.0f} minutes "
        f"on one core: {total:,} inputs, {sum(len(result.defects) for result in results)} defects. A defect is an "
        "exception "
        f"that the entry point does not document, a crash, no answer in {HANG_SECONDS} s, or more than "
        f"{GROWTH_BYTES / 1e6:.0f} MB of memory held, or taken for a moment, after the first inputs.",
        "",
        "| target | inputs | accepted | refused, by class | held, MB | taken, MB | seconds | defects |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        refused = ", ".join(f"{name} {count:,}" for name, count in result.refused.most_common()) or "-"
        defects = "; ".join(f"{text} (input {number})" for text, number in result.defects.items()) or "-"
        lines.append(
            f"| {result.name} | {result.inputs:,} | {result.accepted:,} | {refused} | {result.growth / 1e6:.0f} | "
            f"{result.peak / 1e6:.0f} | {result.seconds:.0f} | {defects.replace('|', '/')} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())

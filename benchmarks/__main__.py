"""`python -m benchmarks`: measure everything, print a Markdown report, keep the numbers as JSON."""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from . import (
    bucketing,
    decoding,
    imports,
    loading,
    noise_draws,
    pi0_training,
    sampling,
    serving,
    token_loss,
    training_step,
)
from .options import count
from .policies import MEDIUM, PROPORTIONED, WIDE_EXPERT
from .report import as_json, as_markdown

MEASUREMENTS = (
    noise_draws.measure,
    token_loss.measure,
    partial(sampling.measure, size=MEDIUM),
    partial(sampling.measure, size=WIDE_EXPERT),
    partial(training_step.measure, size=PROPORTIONED),
    partial(training_step.measure, size=MEDIUM),
    pi0_training.measure,
    bucketing.measure,
    decoding.measure,
    loading.measure,
    serving.measure,
    imports.measure,
)
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: written by `python -m benchmarks --write` -->", "<!-- end of results -->"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, a few seconds: shows that it works, no more")
    parser.add_argument("--write", action="store_true", help="put the report into benchmarks/README.md")
    parser.add_argument("--threads", type=count, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench.json"), help="where the numbers go")
    options = parser.parse_args(arguments)
    if options.quick and options.write:
        parser.error("--quick measures nothing worth keeping: leave out --write")

    torch.set_num_threads(options.threads)
    measurements = [measure(options.quick) for measure in tqdm(MEASUREMENTS, desc="benchmarks")]
    report = as_markdown(measurements)
    print(report)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(as_json(measurements), indent=2) + "\n")
    if options.write:
        README.write_text(with_results(README.read_text(), report))


def with_results(page: str, report: str) -> str:
    """The page with what stands between the two markers replaced by the report.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page has no place for results: it needs the lines\n{BEGIN}\n{END}")
    return f"{before}{BEGIN}\n\n{report}\n\n{END}{after}"


if __name__ == "__main__":
    main()

"""`python -m benchmarks.scaling`: how the cost grows with the prefix, the cameras, the chunk, the draws and the batch.

A line through the logarithms gives an exponent: 1 is proportional, less is cheaper than that, because part of the cost
does not grow. The exponent of the last doubling is what larger sizes go on with: towards 1, or 2 where attention among
the prompt's own tokens takes over. Writes `outputs/scaling.png` and `outputs/scaling.json`; with `--write` also
`benchmarks/scaling.md` with the picture.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from kivla.hub_cards.environment_info import environment_info

from . import policies
from .noise_draws import train
from .options import count
from .policies import SMALL, TINY, Size, action_inputs, flow_draws, observation, policy, token_batch
from .timing import interleaved

PAGE = Path(__file__).with_name("scaling.md")


@dataclass
class Curve:
    """Seconds (medians) of one thing at several sizes of another."""

    title: str
    x_label: str
    x: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        """Slope of the line through the logarithms."""
        return float(np.polyfit(np.log(self.x), np.log(self.seconds), 1)[0])

    @property
    def last_exponent(self) -> float:
        """Slope between the two largest sizes."""
        (x, larger_x), (seconds, more_seconds) = self.x[-2:], self.seconds[-2:]
        return float(np.log(more_seconds / seconds) / np.log(larger_x / x))


def measure(title: str, x_label: str, calls: dict[int, Callable[[], object]], repetitions: int) -> Curve:
    seconds = interleaved(title, {str(x): call for x, call in calls.items()}, repetitions)
    return Curve(title, x_label, list(calls), [statistics.median(seconds[str(x)]) for x in calls])


def curves(quick: bool) -> list[Curve]:
    size, repetitions = (TINY, 1) if quick else (SMALL, 7)
    prompts, chunks, draws, batches = (
        ((8, 16), (4, 8), (1, 2), (1, 2))
        if quick
        else (
            (100, 200, 400, 800),
            (8, 16, 32, 64),
            (1, 2, 4, 8),
            (1, 2, 4, 8),
        )
    )
    sample, step = "One sampled chunk", "One training step, insulated"
    return [
        measure(sample, "prompt tokens", {n: _sampler(replace(size, prompt_length=n)) for n in prompts}, repetitions),
        measure(sample, "cameras", {n: _sampler(size, cameras=n) for n in (1, 2, 4)}, repetitions),
        measure(sample, "actions in a chunk", {n: _sampler(replace(size, chunk_size=n)) for n in chunks}, repetitions),
        measure(step, "prompt tokens", {n: _trainer(replace(size, prompt_length=n)) for n in prompts}, repetitions),
        measure(step, "noise draws", {n: _trainer(size, draws=n) for n in draws}, repetitions),
        measure(step, "examples in a batch", {n: _trainer(size, batch=n) for n in batches}, repetitions),
    ]


def _sampler(size: Size, cameras: int = policies.CAMERAS) -> Callable[[], object]:
    return partial(policy(size).sample_actions, **observation(size, 1, cameras))


def _trainer(size: Size, draws: int = 1, batch: int = 2) -> Callable[[], object]:
    inputs = token_batch(size, batch) | action_inputs(size, batch) | flow_draws(size, draws * batch)
    return partial(train, policy(size), draws, **inputs)


def plot(curves: list[Curve], file: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for axis, curve in zip(axes.flat, curves, strict=True):
        milliseconds = 1e3 * np.array(curve.seconds)
        axis.loglog(curve.x, milliseconds, "o-", label=f"exponent {curve.exponent:.2f}")
        proportional = milliseconds[-1] * np.array(curve.x) / curve.x[-1]
        axis.loglog(curve.x, proportional, ":", color="gray", label="proportional")
        axis.set(title=curve.title, xlabel=curve.x_label, ylabel="ms")
        axis.set_xticks(curve.x, [str(x) for x in curve.x])
        axis.minorticks_off()
        axis.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def as_table(curves: list[Curve]) -> str:
    lines = ["| cost of | against | sizes | ms | exponent | of the last two |", "|---|---|---|---|--:|--:|"]
    for curve in curves:
        sizes, times = ", ".join(map(str, curve.x)), ", ".join(f"{1e3 * s:.3g}" for s in curve.seconds)
        exponents = f"{curve.exponent:.2f} | {curve.last_exponent:.2f}"
        lines.append(f"| {curve.title} | {curve.x_label} | {sizes} | {times} | {exponents} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, no more")
    parser.add_argument("--threads", type=count, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--write", action="store_true", help=f"put table and picture into {PAGE.parent.name}/")
    parser.add_argument("--output", type=Path, default=Path("outputs/scaling.png"), help="where the picture goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    measured = curves(options.quick)
    plot(measured, options.output)
    rows = [{**vars(curve), "exponent": curve.exponent} for curve in measured]
    options.output.with_suffix(".json").write_text(
        json.dumps({"machine": environment_info(), "curves": rows}, indent=2) + "\n"
    )
    print(f"{as_table(measured)}\n\nPicture: {options.output}")
    if options.write:
        plot(measured, PAGE.with_suffix(".png"))
        about = environment_info()
        PAGE.write_text(
            "# How the cost grows\n\nWritten by `python -m benchmarks.scaling --write`, whose docstring says what is "
            f"done. {about['cpu']}, {about['threads']} CPU threads, torch {about['torch']}.\n\n{as_table(measured)}\n\n"
            f"![the same on logarithmic axes]({PAGE.with_suffix('.png').name})\n"
        )


if __name__ == "__main__":
    main()

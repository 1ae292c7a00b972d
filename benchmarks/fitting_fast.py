"""What it costs to fit FAST on some chunks of a dataset or on all, and what the codes are worth on others.

python -m benchmarks.fitting_fast [--write] [--quick]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kivla import FASTActionTokenizer
from kivla.hub_cards.environment_info import environment_info
from kivla.training.data.robot_dataset import evenly_spread

PAGE = Path(__file__).with_suffix(".md")
# An hour of a 26-dimensional robot at 9 Hz, in chunks of 50
FRAMES, DIM, CHUNK, HELD_OUT = 32_485, 26, 50, 500
QUICK = {"frames": 400, "dim": 3, "chunk": 8}


def trajectories(frames: int, dim: int) -> np.ndarray:
    """Smooth random motion, (frames, dim), normalised: its 1 % and 99 % quantiles are about -1 and 1."""
    rng = np.random.default_rng(0)
    kernel = np.exp(-np.arange(200) / 30)
    values = np.stack([np.convolve(rng.normal(size=frames), kernel, "same") for _ in range(dim)], axis=1)
    return (values / np.quantile(np.abs(values), 0.98, axis=0)).astype(np.float32)


def fit(learned: int, frames: int = FRAMES, dim: int = DIM, chunk: int = CHUNK) -> dict[str, float]:
    """Fit in this process on chunks from the first nine tenths, and measure on others."""
    values, end = trajectories(frames, dim), int(0.9 * frames)
    fitted_on, held_out = (
        np.lib.stride_tricks.sliding_window_view(part, chunk, axis=0).transpose(0, 2, 1)  # views: no copies
        for part in (values[:end], values[end:])
    )
    chunks = fitted_on[evenly_spread(len(fitted_on), learned)]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    fast = FASTActionTokenizer.fit(chunks, max_chunks=learned)
    seconds, after = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = fast.roundtrip_error(held_out[evenly_spread(len(held_out), HELD_OUT)])
    return {"chunks": len(chunks), "seconds": seconds, "megabytes": (after - before) / 1024, **report}


def in_own_process(learned: int, sizes: dict[str, int]) -> dict[str, float]:
    """`fit`, so that memory is not that of the fits before."""
    program = f"import json; from benchmarks.fitting_fast import fit; print(json.dumps(fit({learned}, **{sizes})))"
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", program], cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout)


def as_markdown(rows: list[dict[str, float]], sizes: dict[str, int]) -> str:
    about = environment_info()
    shape = f"{sizes.get('chunk', CHUNK)} x {sizes.get('dim', DIM)}"
    machine = f"{about['cpu']}, {about['cores']} cores, Python {about['python']}"
    lines = [
        "# Fitting FAST\n",
        f"Written by `python -m benchmarks.fitting_fast --write`. Chunks of {shape}, smooth random motion; tokens and "
        f"error are of {HELD_OUT} chunks that were not fitted on. {machine}.\n",
        "| chunks | processor time, s | memory, MB | tokens per chunk | RMSE | clipped |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['chunks']:,} | {row['seconds']:.1f} | {row['megabytes']:,.0f} | {row['tokens_mean']:.1f} | "
        f"{row['rmse']:.5f} | {row['clipped']} |"
        for row in rows
    ]
    lines += [
        "\n*Memory*: by how much fitting makes the largest memory of its process grow, chunks in float64 included."
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fitting_fast", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, a few seconds: shows that it works, no more")
    parser.add_argument("--write", action="store_true", help=f"put the report into benchmarks/{PAGE.name}")
    options = parser.parse_args(arguments)
    if options.quick and options.write:
        parser.error("--quick measures nothing worth keeping: leave out --write")
    sizes, counts = (QUICK, (20, 300)) if options.quick else ({}, (500, 2000, 8000, FRAMES))
    report = as_markdown([in_own_process(count, sizes) for count in tqdm(counts, desc="fits")], sizes)
    print(report)
    if options.write:
        PAGE.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

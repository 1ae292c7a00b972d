"""How punctual the control loop is while the policy computes in its thread.

python -m benchmarks.real_time                    # 3 minutes at 50 Hz, and a minute without a policy beside it
python -m benchmarks.real_time --seconds 10 --quick

A loop of `ticks` asks a `RealTimeExecutor` for a command at every tick. A policy of random weights computes all the
time: as soon as one chunk is there, the next one is asked for. Lateness is how long after its time a tick begins; a
tick's own time is what the executor needs for a command. Slices with and without a policy take turns, so that what else
the machine does reaches both.
"""

import argparse
import json
import os
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from kivla.acting import WAYS, RealTimeExecutor, ticks
from kivla.hub_cards.environment_info import environment_info

from .options import count
from .policies import SMALL, TINY, millions
from .serving import make_observation, make_pipeline

LATE = 2e-3  # seconds
SLICE = 30.0  # seconds with a policy; a third of it without one


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_time", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="beside a busy policy")
    parser.add_argument("--rate", type=float, default=50.0, help="ticks per second")
    parser.add_argument("--way", choices=WAYS, default="rtc")
    parser.add_argument("--threads", type=count, default=1, help="of the policy's kernels (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a tiny policy: shows that it works, no more")
    parser.add_argument("--output", type=Path, default=Path("outputs/real_time.json"))
    args = parser.parse_args(arguments)

    torch.set_num_threads(args.threads)
    pipe, observation = make_pipeline(TINY if args.quick else SMALL), make_observation()
    busy, idle, load = [], [], [os.getloadavg()[0]]
    with RealTimeExecutor(pipe, args.rate, args.way) as act:
        slices = max(round(args.seconds / SLICE), 1)
        for _ in range(slices):
            act.reset()
            busy.append(run(lambda: act(observation), args.rate, args.seconds / slices))
            idle.append(run(lambda: None, args.rate, args.seconds / slices / 3))
            load.append(os.getloadavg()[0])
    result = {
        "machine": environment_info(),
        "load": load,
        "rate": args.rate,
        "way": args.way,
        "parameters": millions(pipe.model),
        "answer_ms": 1e3 * act.latency.seconds,
        "counts": vars(act.counts),
        "with a policy": summary(np.concatenate(busy)),
        "without": summary(np.concatenate(idle)),
    }
    print(as_markdown(result))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    return result


def run(step, rate: float, seconds: float) -> np.ndarray:
    """Lateness and own time of each tick, in seconds, (n, 2)."""
    times = []
    for late in islice(ticks(rate), round(rate * seconds)):
        begin = perf_counter()
        step()
        times.append((late, perf_counter() - begin))
    return np.array(times)


def summary(times: np.ndarray) -> dict:
    late, own = times.T
    return {
        "ticks": len(times),
        "late": float((late > LATE).mean()),
        **{
            f"{name}_ms": [1e3 * float(q) for q in np.quantile(v, [0.5, 0.99, 1])]
            for name, v in (("late", late), ("own", own))
        },
    }


def as_markdown(result: dict) -> str:
    about, load = result["machine"], result["load"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, load {min(load):.1f} to {max(load):.1f}; {result['rate']:g} ticks a "
        f"second, way {result['way']}; a policy of {result['parameters']} parameters, 95 % of whose answers come "
        f"within {result['answer_ms']:.0f} ms.",
        "",
        "| | ticks | later than 2 ms | lateness: median, 99 %, most | a tick's own time: median, 99 %, most |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in ("with a policy", "without"):
        row = result[name]
        late, own = (", ".join(f"{value:.2f}" for value in row[f"{key}_ms"]) + " ms" for key in ("late", "own"))
        lines.append(f"| {name} | {row['ticks']:,} | **{row['late']:.2%}** | {late} | {own} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

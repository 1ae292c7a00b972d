"""`python -m benchmarks.moving train`, then `... measure`: what does a policy lose that thinks while things move?

On the moving tabletop (`kivla rollout --env moving`) a policy acts in all five ways of `kivla.acting`, with 0 to 6
control steps from an observation until its chunk can be used. `train` records demonstrations and trains a policy for
each seed; `measure` rolls them out, and makes tables, CSV and picture of the rows that are there.

The state says how gripper, obstacle and target move (`tracked`), and the VLM rests: what is compared is acting in time,
and not how well a small VLM sees. One policy acts in all ways, so that they differ in nothing else. It was trained with
delays, which "rtc-trained" needs (`rtc_max_delay`): in one draw of seven the delay is 0, and there it learns what every
policy does. Whether this costs the other ways something is seen by `--max_delay 0`, which trains policies without.

Both commands go on where they were stopped. Every chunk starts from new noise, as on a robot.
"""

import argparse
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import pipeline

from kivla.acting import WAYS
from kivla.acting.chunk_schedule import RTC_METHODS
from kivla.demo.stages import EVALUATION_SEED, TabletopArguments, fine_tune, once
from kivla.named_models import TABLETOP_VLM
from kivla.simulation import MovingTabletopVectorEnv, record_demonstrations
from kivla.simulation.rollout import Acting, PipelinePolicy, rollout
from kivla.training.evaluation.confidence import Interval, bootstrap_interval
from kivla.training.run_folder import write_whole

from .options import Distinct, claim, count, natural

matplotlib.use("Agg")

CHUNK_SIZE = 16
REPLAN_EVERY = {"sync": 8}  # a robot that waits for each chunk executes half of it;
AT_LEAST = 4  # the others look again after so many steps, or as soon as they have their answer
COLORS = {"sync": "#888888", "naive": "#d1495b", "ensemble": "#edae49", "rtc": "#00798c", "rtc-trained": "#66a182"}

Cells = dict[tuple[str, int], list[dict]]  # (way, latency) -> the rows of all seeds
Summary = Callable[[list[dict]], Interval | None]  # None: there is nothing to compare with


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moving", description=__doc__)
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument(
        "--seeds", type=natural, nargs="+", action=Distinct, default=[0, 1, 2], help="of weights, data and noise; 0 1 2"
    )
    parser.add_argument("--max_delay", type=int, default=6, help="longest delay of the training; 6. 0: without")
    parser.add_argument(
        "--latencies", type=int, nargs="+", action=Distinct, default=list(range(7)), help="control steps; 0 to 6"
    )
    parser.add_argument("--ways", nargs="+", action=Distinct, choices=WAYS, default=list(WAYS), help="all five")
    parser.add_argument("--num_episodes", type=count, default=200, help="scenes, the same for all; 200")
    parser.add_argument("--max_steps", type=count, default=2400, help="optimiser steps of a policy; 2400")
    parser.add_argument("--num_demonstrations", type=count, default=2000, help="2000")
    parser.add_argument("--threads", type=count, default=1, help="CPU threads; 1")
    parser.add_argument("--output", type=Path, default=Path("outputs/moving"), help="where everything goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    facts = {name: getattr(options, name) for name in ("max_delay", "num_episodes", "max_steps", "num_demonstrations")}
    claim(parser, options.output, facts, ("*.json", "demonstrations"))
    for seed in options.seeds:
        (train if options.what == "train" else measure)(options, seed)
    if options.what == "measure":
        print(write_report(options.output))


def train(options: argparse.Namespace, seed: int) -> None:
    """Record demonstrations, the same for all seeds, and train the policy of a seed."""
    demonstrations = options.output / "demonstrations"
    if not demonstrations.is_dir():  # it appears when it is complete
        env = MovingTabletopVectorEnv(min(options.num_demonstrations, 100), midway=True, tracked=True)
        record_demonstrations(env, demonstrations, options.num_demonstrations, image_format="image")
    # More draws for each picture than the demo has, and a wider expert: what is to be learned here is motion.
    args = TabletopArguments(
        recipe="frozen",
        state_encoding="continuous",
        chunk_size=CHUNK_SIZE,
        num_flow_samples=8,
        expert_hidden_size=128,
        expert_intermediate_size=384,
        learning_rate=2e-3,
        noise_scale=1.0,
        rtc_max_delay=options.max_delay,
    )
    folder, steps = options.output / f"policy_{seed}", options.max_steps
    once(
        folder.with_suffix(".json"),
        lambda: fine_tune(TABLETOP_VLM, demonstrations, folder, args, steps, seed),
    )


def measure(options: argparse.Namespace, seed: int) -> None:
    """Roll the policy of a seed out, in every way and with every latency; a row for each."""
    pipe = pipeline("action-prediction", model=str(options.output / f"policy_{seed}"))
    for way in options.ways:
        if way == "rtc-trained" and options.max_delay == 0:
            continue  # what this policy has not learned
        for latency in options.latencies:
            once(
                options.output / "rows" / f"{way}_{latency}_{seed}.json",
                lambda way=way, latency=latency: {
                    **{"way": way, "latency": latency, "seed": seed},
                    **outcomes(pipe, seed, Acting(way, latency, fresh_noise=True), options.num_episodes),
                },
            )


def outcomes(pipe, seed: int, acting: Acting, num_episodes: int) -> dict:
    """What happened in every scene."""
    env = MovingTabletopVectorEnv(num_episodes, tracked=True)
    policy = PipelinePolicy(pipe, seed, rtc=RTC_METHODS.get(acting.way))
    replan_every = REPLAN_EVERY.get(acting.way, max(AT_LEAST, acting.latency_steps))
    scenes = range(EVALUATION_SEED, EVALUATION_SEED + num_episodes)
    name = f"{acting.way}, {acting.latency_steps} steps late"
    episodes = rollout(policy, env, scenes, replan_every, env.max_steps, description=name, acting=acting).episodes
    return {
        "replan_every": replan_every,
        "success": "".join("1" if episode.success else "0" for episode in episodes),
        "steps": [episode.steps for episode in episodes],
        "held_steps": [episode.held_steps for episode in episodes],
        "jerk": [None if episode.jerk is None else float(f"{episode.jerk**0.5:.4g}") for episode in episodes],
    }


def outcomes_of(rows: list[dict]) -> np.ndarray:
    """(seeds, scenes): 100 where the target was touched, else 0."""
    return np.array([[100.0 * (bit == "1") for bit in row["success"]] for row in rows])


def success_of(rows: list[dict]) -> Interval:
    """Success in %. What is drawn anew for the interval is scenes, each with the outcomes of all seeds."""
    outcomes = outcomes_of(rows)
    return bootstrap_interval(outcomes.sum(0), np.full(outcomes.shape[1], len(rows)))


def gain_of(rows: list[dict], cells: Cells) -> Interval | None:
    """Points of success more than those of "naive" with the same latency: same policies, same scenes."""
    naive = {row["seed"]: row for row in cells.get(("naive", rows[0]["latency"]), [])}
    if rows[0]["way"] == "naive" or any(row["seed"] not in naive for row in rows):
        return None
    gains = outcomes_of(rows) - outcomes_of([naive[row["seed"]] for row in rows])
    return bootstrap_interval(gains.sum(0), np.full(gains.shape[1], len(rows)))


def jerk_of(rows: list[dict]) -> Interval:
    """Root-mean-square jerk of an episode's actions, in action units / s³; scenes are drawn anew."""
    jerks = np.array([row["jerk"] for row in rows], dtype=float)  # (seeds, scenes), nan where too short to have one
    return bootstrap_interval(np.nansum(jerks, 0), np.isfinite(jerks).sum(0))


def write_report(folder: Path) -> str:
    """Write table.md, rows.csv and moving.png of the rows in a folder, and return the tables.

    Raises:
        SystemExit: there is no row yet.
    """
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "rows").glob("*.json"))]
    if not rows:
        raise SystemExit(f"{folder / 'rows'} has no row yet: there is nothing to show.")
    rows.sort(key=lambda row: (WAYS.index(row["way"]), row["latency"], row["seed"]))
    cells: Cells = {}
    for row in rows:
        cells.setdefault((row["way"], row["latency"]), []).append(row)
    tables = [
        _table("success, %", cells, success_of),
        _table("more than naive, points", cells, lambda rows: gain_of(rows, cells)),
        _table("jerk, action units / s³", cells, jerk_of),
        f"{len({row['seed'] for row in rows})} policies, {len(rows[0]['success'])} scenes each, the same for all; 95 % "
        "intervals.",
    ]
    write_whole(folder / "table.md", "\n\n".join(tables) + "\n")
    write_whole(folder / "rows.csv", _csv(rows))
    _draw(folder / "moving.png", cells)
    return "\n\n".join(tables)


def _ways_and_latencies(cells: Cells) -> tuple[list[str], list[int]]:
    ways = list(dict.fromkeys(way for way, _ in cells))
    return ways, sorted({latency for _, latency in cells})


def _table(title: str, cells: Cells, summary: Summary) -> str:
    ways, latencies = _ways_and_latencies(cells)
    lines = [f"| {title} | " + " | ".join(f"{n} step{'s' * (n != 1)} late" for n in latencies) + " |"]
    lines.append("|---|" + "--:|" * len(latencies))
    for way in ways:
        values: list[Interval | None] = [
            summary(cells[way, latency]) if (way, latency) in cells else None for latency in latencies
        ]
        shown = ["-" if v is None else f"{v.mean:.1f} ({v.low:.1f} - {v.high:.1f})" for v in values]
        lines.append(f"| {way} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _csv(rows: Sequence[dict]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["way", "latency", "seed", "replan_every", "episodes", "successes", "mean_steps", "mean_held_steps", "rms_jerk"]
    )
    for row in rows:
        counts = len(row["success"]), row["success"].count("1")
        means = [f"{np.mean(row[name]):.2f}" for name in ("steps", "held_steps")]
        cell = [row[name] for name in ("way", "latency", "seed", "replan_every")]
        writer.writerow([*cell, *counts, *means, f"{jerk_of([row]).mean:.2f}"])
    return stream.getvalue()


def _draw(path: Path, cells: Cells) -> None:
    ways, latencies = _ways_and_latencies(cells)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = ((success_of, "success, %"), (jerk_of, "jerk of the actions, action units / s³"))
    for axis, (summary, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for shift, way in zip(np.linspace(-0.12, 0.12, len(ways)), ways, strict=True):
            there = [latency for latency in latencies if (way, latency) in cells]
            values: list[Interval] = [summary(cells[way, latency]) for latency in there]
            mean = np.array([value.mean for value in values])
            bounds = [mean - [value.low for value in values], [value.high for value in values] - mean]
            axis.errorbar(
                np.array(there) + shift, mean, bounds, color=COLORS[way], label=way, marker="o", ms=4, capsize=2
            )
        axis.set_xlabel("control steps from an observation until its chunk can be used")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axis.legend(fontsize=9)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.moving train`, then `... measure`: what does a policy lose that thinks while things move?

On the moving tabletop (`kivla rollout --env moving`) policies act by all five ways of `acting`, with 0 to 6 control
steps from an observation until its chunk can be used. `train` records demonstrations and trains two policies for each
seed: an ordinary one, which acts by sync, naive, ensemble and rtc, and one that has learned to go on from a given
beginning (`rtc_max_delay`), which acts by rtc-trained. `measure` rolls them out in the same scenes, and makes table,
CSV and picture of the rows that are there.

Both go on where they were stopped. Every chunk starts from new noise, as on a robot.
"""

import argparse
import csv
import io
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import pipeline

from kivla.acting.chunk_schedule import RTC_METHODS, WAYS
from kivla.demo.stages import EVALUATION_SEED, TabletopArguments, fine_tune, once
from kivla.named_models import TABLETOP_VLM
from kivla.simulation import MovingTabletopVectorEnv, record_demonstrations
from kivla.simulation.rollout import Acting, Episode, PipelinePolicy, rollout
from kivla.training.evaluation.confidence import Interval, bootstrap_interval
from kivla.training.run_folder import claim_folder, write_whole

matplotlib.use("Agg")

CHUNK_SIZE = 16
MAX_DELAY = 6
SYNC_REPLAN_EVERY = 8  # a robot that waits for each chunk executes half of it
REPLAN_EVERY = 4  # the others look again after so many steps, or as soon as they can
ACTION_NOISE = [0.1, 0.1]
COLORS = {"sync": "#888888", "naive": "#d1495b", "ensemble": "#edae49", "rtc": "#00798c", "rtc-trained": "#66a182"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moving", description=__doc__)
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument(
        "--latencies", type=int, nargs="+", default=list(range(MAX_DELAY + 1)), help="(default: 0 to 6)"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="(default: all five)")
    parser.add_argument("--num_episodes", type=int, default=200, help="scenes, the same for all (default: 200)")
    parser.add_argument("--max_steps", type=int, default=2000, help="optimiser steps of a policy (default: 2000)")
    parser.add_argument("--num_demonstrations", type=int, default=3000, help="(default: 3000)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("outputs/moving"), help="where everything goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    facts = {name: getattr(options, name) for name in ("num_episodes", "max_steps", "num_demonstrations")}
    claim_folder(options.output, facts, ("*.json", "demonstrations"))
    if options.what == "train":
        for seed in options.seeds:
            train(options, seed)
    else:
        for seed in options.seeds:
            measure(options, seed)
        print(write_report(options.output, read_rows(options.output)))


def train(options: argparse.Namespace, seed: int) -> None:
    """Record demonstrations, the same for all seeds, and train both policies of a seed."""
    demonstrations = options.output / "demonstrations"
    if not demonstrations.is_dir():  # it appears when it is complete
        env = MovingTabletopVectorEnv(min(options.num_demonstrations, 100))
        record_demonstrations(
            env, demonstrations, options.num_demonstrations, image_format="image", action_noise=ACTION_NOISE
        )
    for name, max_delay in (("ordinary", 0), ("delays", MAX_DELAY)):
        args = TabletopArguments(
            chunk_size=CHUNK_SIZE,
            question_share=0,
            rtc_max_delay=max_delay,
        )
        folder = options.output / f"{name}_{seed}"
        once(
            folder.with_suffix(".json"),
            lambda folder=folder, args=args: fine_tune(
                TABLETOP_VLM, demonstrations, folder, args, options.max_steps, seed
            ),
        )


def measure(options: argparse.Namespace, seed: int) -> None:
    """Roll the policies of a seed out, by every way and with every latency; a row for each."""
    for way in options.ways:
        folder = options.output / f"{'delays' if way == 'rtc-trained' else 'ordinary'}_{seed}"
        policy = None
        for latency in options.latencies:
            file = options.output / "rows" / f"{way}_{latency}_{seed}.json"
            if not file.is_file() and policy is None:
                policy = PipelinePolicy(
                    pipeline("action-prediction", model=str(folder)), seed, rtc=RTC_METHODS.get(way)
                )
            once(
                file,
                lambda policy=policy, way=way, latency=latency: {
                    "way": way,
                    "latency": latency,
                    "seed": seed,
                    **outcomes(policy, Acting(way, latency, fresh_noise=True), options.num_episodes),
                },
            )


def outcomes(policy: PipelinePolicy, acting: Acting, num_episodes: int) -> dict:
    """Success, steps, held steps and jerk of every scene."""
    env = MovingTabletopVectorEnv(num_episodes)
    replan_every = SYNC_REPLAN_EVERY if acting.way == "sync" else max(REPLAN_EVERY, acting.latency_steps)
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + num_episodes)
    description = f"{acting.way}, {acting.latency_steps} steps"
    result = rollout(policy, env, seeds, replan_every, env.max_steps, description=description, acting=acting)
    return {"replan_every": replan_every, "calls": result.policy_calls, **_columns(result.episodes)}


def _columns(episodes: list[Episode]) -> dict:
    return {
        "success": "".join("1" if episode.success else "0" for episode in episodes),
        "steps": [episode.steps for episode in episodes],
        "held_steps": [episode.held_steps for episode in episodes],
        "jerk": [None if episode.jerk is None else float(f"{episode.jerk:.4g}") for episode in episodes],
    }


def read_rows(folder: Path) -> list[dict]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "rows").glob("*.json"))]


def success_of(rows: list[dict]) -> Interval:
    """Rate over the scenes of all seeds; a scene is drawn with all of its seeds, which are not independent of it."""
    outcomes = np.array([[bit == "1" for bit in row["success"]] for row in rows])  # (seeds, scenes)
    return bootstrap_interval(outcomes.sum(0), np.full(outcomes.shape[1], len(rows)))


def jerk_of(rows: list[dict]) -> Interval:
    """Mean over episodes of the root of the mean squared jerk, in table units / second³."""
    jerks = np.sqrt(np.array([row["jerk"] for row in rows], dtype=float))  # (seeds, scenes); nan where too short
    return bootstrap_interval(np.nansum(jerks, 0), np.isfinite(jerks).sum(0))


def write_report(folder: Path, rows: list[dict]) -> str:
    """Write table.md, rows.csv and moving.png, and return the table."""
    if not rows:
        raise SystemExit(f"{folder / 'rows'} has no row yet: there is nothing to show.")
    cells: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        cells.setdefault((row["way"], row["latency"]), []).append(row)
    latencies = sorted({latency for _, latency in cells})
    ways = [way for way in WAYS if any(way == name for name, _ in cells)]
    table = _table("success, %", ways, latencies, cells, success_of, 100)
    table += "\n\n" + _table("jerk, table units / s³", ways, latencies, cells, jerk_of, 1)
    write_whole(folder / "table.md", table + "\n")
    write_whole(folder / "rows.csv", _csv(rows))
    _draw(folder / "moving.png", ways, latencies, cells)
    return table


def _table(title: str, ways: list[str], latencies: list[int], cells: dict, summary, scale: float) -> str:
    lines = [f"| {title} | " + " | ".join(f"d = {latency}" for latency in latencies) + " |"]
    lines.append("|---|" + "--:|" * len(latencies))
    for way in ways:
        found = []
        for latency in latencies:
            rows = cells.get((way, latency))
            if rows is None:
                found.append("-")
                continue
            value = summary(rows)
            found.append(f"{scale * value.mean:.1f} ({scale * value.low:.1f} - {scale * value.high:.1f})")
        lines.append(f"| {way} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def _csv(rows: list[dict]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["way", "latency", "seed", "replan_every", "episodes", "successes", "mean_steps", "held", "jerk"])
    for row in sorted(rows, key=lambda row: (WAYS.index(row["way"]), row["latency"], row["seed"])):
        jerk = jerk_of([row]).mean
        means = [f"{np.mean(row[name]):.2f}" for name in ("steps", "held_steps")]
        counts = [len(row["success"]), row["success"].count("1")]
        writer.writerow([row["way"], row["latency"], row["seed"], row["replan_every"], *counts, *means, f"{jerk:.4g}"])
    return stream.getvalue()


def _draw(path: Path, ways: list[str], latencies: list[int], cells: dict) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axis, summary, scale in zip(panels, (success_of, jerk_of), (100, 1), strict=True):
        for shift, way in zip(np.linspace(-0.1, 0.1, len(ways)), ways, strict=True):
            there = [latency for latency in latencies if (way, latency) in cells]
            values = [summary(cells[way, latency]) for latency in there]
            means = np.array([value.mean for value in values]) * scale
            bounds = np.array([(value.mean - value.low, value.high - value.mean) for value in values]).T * scale
            axis.errorbar(
                np.array(there) + shift, means, bounds, color=COLORS[way], label=way, marker="o", ms=4, capsize=2
            )
        axis.set_xlabel("control steps from the observation until its chunk can be used")
        axis.grid(alpha=0.25)
    panels[0].set_ylabel("success, %")
    panels[0].set_ylim(0, 102)
    panels[1].set_ylabel("jerk of the actions, table units / s³")
    panels[1].set_ylim(bottom=0)
    panels[0].legend(fontsize=9)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

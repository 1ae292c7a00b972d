"""Runs of a study: train, measure every checkpoint, and put the rows into a table."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..demo.stages import TABLETOP_VLM, TabletopArguments, ask_policy, ask_vlm, fine_tune, once, roll_out
from ..simulation.rollout_evaluation import success_rate
from ..training.evaluation.confidence import wilson_interval


@dataclass
class StudyArguments:
    output_dir: str = field(default="outputs/study", metadata={"help": "Where runs and table go; run again to resume."})
    recipes: list[str] = field(
        default_factory=lambda: ["insulated", "joint"], metadata={"help": "`kivla recipes` lists them."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1], metadata={"help": "One run of each recipe for each."})
    vlm: str = field(default=str(TABLETOP_VLM), metadata={"help": "VLM to start from."})
    max_steps: int = field(default=1000, metadata={"help": "Optimiser steps of every run."})
    num_checkpoints: int = field(default=5, metadata={"help": "Points of the curve of success over steps."})
    target_success: float = field(default=0.5, metadata={"help": "How many steps until so much success?"})
    num_episodes: int = field(default=200, metadata={"help": "Roll-outs at the end, of each kind."})
    num_curve_episodes: int = field(default=50, metadata={"help": "Roll-outs at the other points of the curve."})
    num_question_scenes: int = field(default=500, metadata={"help": "Pictures with questions."})


def one_run(study: StudyArguments, args: TabletopArguments, demonstrations: Path, folder: Path, seed: int) -> dict:
    """Train, then measure every checkpoint; stages that are done are not done again."""
    # Train once; every part that is finished is kept, so that a study which was stopped goes on.
    interval = max(study.max_steps // study.num_checkpoints, 1)
    policy = folder / "policy"
    trained = once(
        folder / "training.json",
        lambda: fine_tune(study.vlm, demonstrations, policy, args, study.max_steps, seed, interval, keep_all=True),
    )
    # The curve: fewer episodes at every checkpoint.
    curve = []
    for step, checkpoint in trained["checkpoints"]:
        point = once(
            folder / f"rollout_{step}.json",
            lambda checkpoint=checkpoint: roll_out(
                Path(checkpoint), folder, "touch", args, study.num_curve_episodes, 0
            ),
        )
        curve.append({"step": step, **point["success"]})
    # The end: more episodes, also of pairs that were never shown, and the VLM's answers.
    figures = {}
    for name in ("touch", "touch_held_out_pairs"):
        figures[name] = once(
            folder / f"rollout_{name}.json",
            lambda name=name: roll_out(policy, folder, name, args, study.num_episodes, 0),
        )
    curve.append({"step": study.max_steps, **figures["touch"]["success"]})
    before = once(folder.parent / "questions_before.json", lambda: ask_vlm(study.vlm, study.num_question_scenes))
    after = once(folder / "questions_after.json", lambda: ask_policy(policy, study.num_question_scenes))
    return {
        "settings": asdict(args),
        "max_steps": study.max_steps,
        "minutes": trained["minutes"],
        "curve": curve,
        "success": figures["touch"]["success"],
        "swapped": figures["touch"]["swapped"]["original"],
        "held_out": figures["touch_held_out_pairs"]["success"],
        "questions_before": before["accuracy"]["all"],
        "questions_after": after["accuracy"]["all"],
    }


def read_rows(file: Path) -> list[dict]:
    """Read the finished runs. A line that an interruption cut off is passed over, and said: that run is done again."""
    lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            print(f"{file}, line {number}, was cut off by an interruption: the run is done again.")
    return rows


def steps_to(curve: list[dict], target: float) -> int | None:
    """Find the first point of the curve at which the success rate is at least `target`."""
    return next((point["step"] for point in curve if point["rate"] >= target), None)


def format_table(rows: list[dict], target: float) -> str:
    """Write a Markdown table with a line for each run, and one for each recipe with the episodes of all its seeds."""
    lines = [
        f"| recipe | seed | success | held-out pairs | swapped, original target | questions before | after | "
        f"steps to {100 * target:.0f} % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    for recipe in recipes:
        runs = [row for row in rows if row["recipe"] == recipe]
        lines += [_line(recipe, str(run["seed"]), run, str(steps_to(run["curve"], target) or "-")) for run in runs]
        if len(runs) > 1:
            pooled = {name: _pool([run[name] for run in runs]) for name in ("success", "held_out", "swapped")}
            pooled |= {name: _pool_answers([run[name] for run in runs]) for name in _QUESTIONS}
            lines.append(_line(f"**{recipe}**", "all", pooled, ""))
    return "\n".join(lines)


_QUESTIONS = ("questions_before", "questions_after")


def _pool(rates: list[dict]) -> dict:
    successes = sum(rate["successes"] for rate in rates)
    return success_rate([True] * successes + [False] * (sum(rate["episodes"] for rate in rates) - successes))


def _pool_answers(scores: list[dict]) -> dict:
    correct, asked = sum(score["correct"] for score in scores), sum(score["asked"] for score in scores)
    low, high = wilson_interval(correct, asked)
    return {"accuracy": correct / asked, "low": low, "high": high}


def _line(recipe: str, seed: str, run: dict, steps: str) -> str:
    rates = [_percent(run[name], "rate") for name in ("success", "held_out", "swapped")]
    answers = [_percent(run[name], "accuracy") for name in _QUESTIONS]
    return "| " + " | ".join([recipe, seed, *rates, *answers, steps]) + " |"


def _percent(row: dict, name: str) -> str:
    return f"{100 * row[name]:.1f} % ({100 * row['low']:.1f} - {100 * row['high']:.1f})"

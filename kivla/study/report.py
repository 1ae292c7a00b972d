"""The tables of a study, and a CSV of every point, from its rows alone."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from ..training.evaluation.confidence import Interval
from ..training.run_folder import write_whole
from .figures import plot_kept_against_success, plot_over_steps
from .runs import read_rows
from .summary import Group, compare, groups_of

COLUMNS = {"touch": "does as told", "touch_synonyms": "told in words never demonstrated"}


def write_report(folder: Path, target: float) -> str:
    """Write tables, CSV and figures of the rows in a folder, and return the tables.

    Raises:
        SystemExit: there is no row yet.
    """
    rows, left_out = read_rows(folder / "rows.jsonl"), _read(folder / "left_out.json", {})
    if not rows:
        raise SystemExit(f"{folder / 'rows.jsonl'} has no finished run yet: there is nothing to show.")
    before, groups = _read(folder / "before.json", None), groups_of(rows)
    tables = format_tables(groups, before, left_out, target)
    write_whole(folder / "table.md", tables + "\n")
    write_whole(folder / "points.csv", points_csv(groups, before))
    for suffix in ("png", "pdf"):
        plot_kept_against_success(folder / f"study.{suffix}", groups, before)
        plot_over_steps(folder / f"over_steps.{suffix}", groups, before)
    return tables


def format_tables(groups: Sequence[Group], before: dict, left_out: dict[str, str], target: float) -> str:
    """Write the result as Markdown: each recipe under each condition, then those that differ in one thing."""
    parts = [results_table(groups, before, target), pairs_table(groups, before)]
    if left_out:
        parts.append("Left out: " + "; ".join(f"{name} ({reason})" for name, reason in left_out.items()) + ".")
    return "\n\n".join(part for part in parts if part)


def results_table(groups: Sequence[Group], before: dict, target: float) -> str:
    """A line for each group, all its seeds together, at the end."""
    rollouts, has_texts, has_answers = groups[0].rollouts, before["texts"] is not None, before["answers"] is not None
    header = ["recipe", "condition", "learning rates"] + (["nats lost a token", "by seed"] if has_texts else [])
    header += ["answers right (before: " + _percent(before["answers"]["accuracy"]) + ")"] if has_answers else []
    for name in rollouts:
        header.append(COLUMNS.get(name, name.replace("_", " ")))
        header += ["by seed", "told otherwise: the original target", "the one named"] if name == rollouts[0] else []
    header += ["action error"] + ([f"steps to {_percent(target)}"] if rollouts else [])
    lines = []
    for group in groups:
        rates = group.rows[0]["learning_rate"], group.rows[0]["expert_learning_rate"]
        line = [group.recipe, group.condition, " / ".join(f"{rate:g}" for rate in rates if rate is not None)]
        if has_texts:
            each = [group.of_seed(seed).lost(before, group.last_step).mean for seed in group.seeds]
            line += [_interval(group.lost(before, group.last_step)), " ".join(f"{lost:+.2f}" for lost in each)]
        if has_answers:
            line.append(_rate(group.answers(), "accuracy"))
        for name in rollouts:
            line.append(_rate(group.rate(name)))
            if name == rollouts[0]:
                line += [
                    _rate(group.rate(name, outcome="swapped_original")),
                    _rate(group.rate(name, outcome="swapped")),
                ]
        line.append(_interval(group.action_error(), signed=False))
        line += [" ".join(str(step or "-") for step in group.steps_to(target))] if rollouts else []
        lines.append(line)
    return _table(header, lines)


def pairs_table(groups: Sequence[Group], before: dict) -> str:
    """A line for each two groups that differ in recipe or condition alone, on the same seeds, scenes and texts."""
    lines = []
    for i, first in enumerate(groups):
        for second in groups[i + 1 :]:
            is_pair = (first.recipe == second.recipe) != (first.condition == second.condition)
            found = compare(second, first, before) if is_pair else None
            if found is None:
                continue
            lost = "-" if found["lost"] is None else _interval(found["lost"])
            success = "-" if found["success"] is None else _points(found["success"])
            lines.append([second.name, first.name, lost, success])
    return _table(["this", "against", "nats lost a token more", "success, points more"], lines) if lines else ""


def points_csv(groups: Sequence[Group], before: dict) -> str:
    """Every measurement of every run, a line for each run and step."""
    lines: list[dict] = []
    for group in groups:
        for row in group.rows:
            acts = {act["step"]: act for act in row["acts"]}
            for point in row["points"]:
                run = {
                    name: row[name] for name in ("recipe", "condition", "seed", "learning_rate", "expert_learning_rate")
                }
                of_losses = {name: value for name, value in point.items() if name not in ("step", "texts")}
                line = {**run, "step": point["step"], **of_losses}
                if point["texts"] is not None:
                    line["nll"] = sum(point["texts"]["nll"]) / sum(point["texts"]["tokens"])
                for name, outcomes in acts.get(point["step"], {}).items():
                    if name not in ("step", "action_error"):
                        bits = {key: value for key, value in outcomes.items() if key != "instructions"}
                        line |= {f"{name}_{key}": value.count("1") / len(value) for key, value in bits.items()}
                lines.append(line)
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _read(file: Path, default):
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else default


def _table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _rate(row: dict, name: str = "rate") -> str:
    return f"{100 * row[name]:.1f} % ({100 * row['low']:.1f} - {100 * row['high']:.1f})"


def _points(found: Interval) -> str:
    return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _interval(found: Interval, signed: bool = True) -> str:
    sign = "+" if signed else ""
    return f"{found.mean:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"

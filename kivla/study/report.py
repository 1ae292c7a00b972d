"""The tables of a study, and a CSV of every point, from its rows alone."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ..training.evaluation.confidence import Interval
from ..training.run_folder import read_json, write_whole
from .figures import plot_kept_against_success, plot_over_steps
from .runs import read_rows
from .summary import Group, compare, groups_of

_LITTLE = 0.02  # of the error of actions: less is chance
_RUN = ("recipe", "condition", "seed", "learning_rate", "expert_learning_rate")
COLUMNS = {"told": "does as told", "synonym": "told in words never demonstrated"}


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
    if any(told == "synonym" for _, told in groups[0].loops):
        write_whole(folder / "words.csv", words_csv(groups))
    for suffix in ("png", "pdf"):
        plot_kept_against_success(folder / f"study.{suffix}", groups, before)
        plot_over_steps(folder / f"over_steps.{suffix}", groups, before)
    return tables


def format_tables(groups: Sequence[Group], before: dict, left_out: dict[str, str], target: float) -> str:
    """Write the result as Markdown: each recipe under each condition, then those that differ in one thing."""
    parts = [results_table(groups, before, target), pairs_table(groups, before), rates_note(groups)]
    if left_out:
        parts.append("Left out: " + "; ".join(f"{name} ({reason})" for name, reason in left_out.items()) + ".")
    return "\n\n".join(part for part in parts if part)


def results_table(groups: Sequence[Group], before: dict, target: float) -> str:
    """A line for each group, all its seeds together, at the end."""
    texts, answers, loops = before["texts"] is not None, before["answers"], groups[0].loops
    header = ["recipe", "condition", "learning rates"] + (["nats lost a token", "by seed"] if texts else [])
    header += [f"answers right (before: {_percent(answers['accuracy'])})"] if answers is not None else []
    if loops:
        header += [COLUMNS["told"], "by seed", f"steps to {_percent(target)}"]
        header += ["told otherwise: does the original one", "does the named one"]
        header += [COLUMNS[told] if name == loops[0][0] else f"{name}: {COLUMNS[told]}" for name, told in loops[1:]]
    return _table([*header, "action error"], [_results_line(group, before, target) for group in groups])


def _results_line(group: Group, before: dict, target: float) -> list[str]:
    rates = group.rows[0]["learning_rate"], group.rows[0]["expert_learning_rate"]
    line = [group.recipe, group.condition, " / ".join(f"{rate:g}" for rate in rates if rate is not None)]
    alone = [group.of_seed(seed) for seed in group.seeds]
    if before["texts"] is not None:
        line.append(_interval(group.lost(before, group.last_step)))
        line.append(" ".join(f"{one.lost(before, one.last_step).mean:+.2f}" for one in alone))
    if before["answers"] is not None:
        line.append(_rate(group.answers(), "accuracy"))
    if group.loops:
        name, _ = main = group.loops[0]
        line += [_rate(group.rate(main)), " ".join(_percent(one.rate(main)["rate"]) for one in alone)]
        line.append(" ".join(str(step or "-") for step in group.steps_to(target)))
        line += [_rate(group.rate((name, f"told_otherwise_{touched}"))) for touched in ("original", "named")]
        line += [_rate(group.rate(loop)) for loop in group.loops[1:]]
    return [*line, _interval(group.action_error(), signed=False)]


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


def rates_note(groups: Sequence[Group]) -> str:
    """Say where the pilot had no choice, chose by little, or took the first or last of the rates that it tried."""
    given, at_end, by_little, too_short = [], [], [], []
    for group in groups:
        errors = sorted(trial["action_error"] for trial in group.rows[0]["trials"] if "action_error" in trial)
        if errors and errors[0] >= 1:
            too_short.append(group.name)
        elif len(errors) > 1 and errors[1] < errors[0] * (1 + _LITTLE):
            by_little.append(group.name)
        for name, part in (("learning_rate", "VLM"), ("expert_learning_rate", "expert")):
            tried = sorted({trial[name] for trial in group.rows[0]["trials"]} - {None})
            if len(tried) > 1 and group.rows[0][name] in (tried[0], tried[-1]):
                at_end.append(f"{group.name}: {part} ({', '.join(f'{rate:g}' for rate in tried)})")
        if len(group.rows[0]["trials"]) == 1:
            given.append(group.name)
    notes = [f"No pilot, one learning rate was given: {'; '.join(given)}."] if given else []
    notes += [f"The best learning rate was the first or last one tried: {'; '.join(at_end)}."] if at_end else []
    if too_short:
        notes.append(
            "In the pilot no rate did better than the mean action: its choice says little (more --pilot_steps): "
            f"{'; '.join(too_short)}."
        )
    if by_little:
        notes.append(
            f"In the pilot a second one was as good within {_LITTLE:.0%}; what each cost the VLM is in pilot/: "
            f"{'; '.join(by_little)}."
        )
    return "\n\n".join(notes)


def points_csv(groups: Sequence[Group], before: dict) -> str:
    """Every measurement of every run, a line for each run and step."""
    lines: list[dict] = []
    for row in (row for group in groups for row in group.rows):
        acts = {act["step"]: act["rollouts"] for act in row["acts"]}
        for point in row["points"]:
            line = {name: row[name] for name in _RUN} | {"step": point["step"]}
            line |= {name: value for name, value in point.items() if name not in ("step", "texts")}
            if point["texts"] is not None:
                line["nll"] = sum(point["texts"]["nll"]) / sum(point["texts"]["tokens"])
            for name, outcomes in acts.get(point["step"], {}).items():
                told = {way: bits for way, bits in outcomes.items() if way != "words"}
                line |= {f"{name}_{way}": bits.count("1") / len(bits) for way, bits in told.items()}
            lines.append(line)
    return _csv(lines)


def words_csv(groups: Sequence[Group]) -> str:
    """Of each word that was never demonstrated the scenes, and the successes with it and with the demonstrated one."""
    lines: list[dict] = []
    for row in (row for group in groups for row in group.rows):
        for name, outcomes in row["acts"][-1]["rollouts"].items():
            words = outcomes.get("words", [])
            for word in sorted(set(words)):
                places = [i for i, other in enumerate(words) if other == word]
                line = {**{name: row[name] for name in _RUN}, "rollouts": name, "word": word, "scenes": len(places)}
                counts = {way: sum(outcomes[way][i] == "1" for i in places) for way in ("synonym", "told")}
                lines.append(line | counts)
    return _csv(lines)


def _csv(lines: list[dict]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _read(file: Path, default):
    return read_json(file) if file.is_file() else default


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

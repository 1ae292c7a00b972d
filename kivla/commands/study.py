"""`kivla study`: training recipes against each other, and what each costs the VLM: one figure and one table.

One row for each run is added to `rows.jsonl` as it finishes; figure and tables are made from the rows alone. The same
command goes on where it was interrupted, at any moment, and more recipes, conditions and seeds may be asked for.
Several processes of the same command share its runs.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from ..command_line import parse
from ..study.arguments import StudyArguments
from ..study.cells import REPLAY, Cell, choose_cells
from ..study.plan import core_hours, steps_that_fit
from ..study.report import write_report
from ..study.runs import before, best_rates, one_run, pilot, read_rows, run_folder, write_log, write_rows
from ..study.workshop import Workshop
from ..training.policy_options import PolicyOptions, refuse
from ..training.recipes import recipe_name
from ..training.run_folder import claim_folder, write_json
from ..training.sole_use import InUseError, sole_use

# Options of a policy that are what is compared.
_COMPARED = ("recipe", "backbone_gradient_scale", "flow_loss_weight")


def run(arguments: Sequence[str]) -> None:
    study, told = parse((StudyArguments, PolicyOptions), arguments, prog="kivla study")
    reason = "it is what a study compares: name --recipes, or a YAML file of one"
    refuse(dict.fromkeys(told.given(*_COMPARED), reason))
    cells, left_out = choose_cells(study.recipes, study.conditions)
    folder = Path(study.output_dir)
    elsewhere: list[str] = []
    if study.run:
        claim_folder(folder, {**study.fixed, **asdict(told)}, ("rows.jsonl", "work"), patience=math.inf)
        elsewhere = _run(Workshop(study, told), cells, {cell.name: reason for cell, reason in left_out.items()})
    if study.core_hours != 0:
        with sole_use(folder, math.inf):
            print(f"\n{write_report(folder, study.target_success)}\n\nFigures, tables, rows and logs: {folder}")
    if elsewhere:
        print(f"Not in them yet, other processes are at it: {'; '.join(elsewhere)}. If one fails, start this again.")


def _run(shop: Workshop, cells: list[Cell], left_out: dict[str, str]) -> list[str]:
    """Make the runs that fit, and are not there. Returns the names of those that other processes are at."""
    study, folder = shop.study, Path(shop.study.output_dir)
    file = folder / "rows.jsonl"
    done = {_key(row) for row in read_rows(file)}
    if study.text_dataset is not None and not any(REPLAY in cell.added for cell in cells):
        print(f"--text_dataset {study.text_dataset} is not read: no condition here replays texts.")
    shop.open_texts()
    with sole_use(folder, math.inf):  # of several processes one makes what all need
        todo = plan_runs(shop, cells, left_out, done)
        if study.core_hours == 0:  # to know what it would take
            return []
        write_json(folder / "left_out.json", left_out)
        before(shop)
    for number, (cell, seed) in enumerate(todo, 1):
        if not _is_done(file, cell, seed):
            run_once(shop, cell, seed, f"Run {number} of {len(todo)}: {cell.name}, seed {seed}")
    return [f"{cell.name}, seed {seed}" for cell, seed in todo if not _is_done(file, cell, seed)]


def run_once(shop: Workshop, cell: Cell, seed: int, title: str) -> None:
    """Make a run and its row, unless another process is at it: several share the runs of a study."""
    folder = Path(shop.study.output_dir)
    file = folder / "rows.jsonl"
    with ExitStack() as kept:
        try:
            kept.enter_context(sole_use(run_folder(shop, cell, seed), patience=0))
        except InUseError:
            print(f"\n{title}: another process is at it.", flush=True)
            return
        if _is_done(file, cell, seed):  # by now
            return
        trials = pilot(shop, cell)
        rates = best_rates(trials)
        print(f"\n{title}, learning rates {rates}", flush=True)
        row, log = one_run(shop, cell, rates, seed)
        row["trials"] = [
            {name: value for name, value in trial.items() if name not in ("texts", "minutes")} for trial in trials
        ]
        with sole_use(folder, math.inf):
            write_log(folder / "logs" / f"{cell.folder}_{seed}.csv", log)
            write_rows(file, [*read_rows(file), row])
            write_report(folder, shop.study.target_success)


def _is_done(file: Path, cell: Cell, seed: int) -> bool:
    return _key_of(cell, seed) in {_key(row) for row in read_rows(file)}


def plan_runs(
    shop: Workshop, cells: list[Cell], left_out: dict[str, str], done: set[tuple[str, str, int]]
) -> list[tuple[Cell, int]]:
    """Say what the study will take; and leave out, by name, the last runs that do not fit the budget.

    What is done counts, too: the budget is the study's, however often it is interrupted. It is never left out.
    """
    study = shop.study
    print("Estimated core-hours, from a few timed steps of each:")
    costs = {cell: core_hours(shop, cell, cells[0]) for cell in cells}
    for cell, cost in costs.items():
        of_pilot, of_run = f"pilot {cost['pilot']:.2f}", f"each of {len(study.seeds)} runs {cost['run']:.2f}"
        print(f"  {cell.name:36}{of_pilot}, {of_run} ({cost['step']:.2f} core-seconds a step)")
    # One seed of every recipe before the next, one condition before the next: what is left out is the end.
    runs = [(cell, seed) for c in study.conditions for seed in study.seeds for cell in cells if cell.condition == c]
    todo, hours, of_all = [], 0.0, 0.0
    for cell, seed in runs:
        needs = costs[cell]["run"] + (costs[cell]["pilot"] if seed == study.seeds[0] else 0.0)
        of_all += needs
        is_beyond = study.core_hours is not None and hours + needs > study.core_hours
        if is_beyond and _key_of(cell, seed) not in done:
            left_out[f"{cell.name}, seed {seed}"] = f"beyond --core_hours {study.core_hours:g}"
        else:
            hours += needs
            todo.append((cell, seed))
    print(f"{len(todo)} of {len(runs)} runs, together {hours:.1f} core-hours.")
    if len(todo) < len(runs):
        print(f"All {len(runs)} would take {of_all:.1f} core-hours.")
        steps = steps_that_fit(list(costs.values()), len(study.seeds), study.max_steps, study.core_hours)
        if steps > 0:
            print(f"All {len(runs)} would fit {study.core_hours:g} core-hours with about --max_steps {steps}.")
    for name, reason in left_out.items():
        print(f"Left out: {name} ({reason}).")
    return todo


def _key_of(cell: Cell, seed: int) -> tuple[str, str, int]:
    return recipe_name(cell.recipe), cell.condition, seed


def _key(row: dict) -> tuple[str, str, int]:
    return row["recipe"], row["condition"], row["seed"]

"""`kivla study`: recipes against each other, with the same budget, the same data and several seeds.

One row for each run is added to `runs.jsonl` as it finishes, and the table is made from that file alone. The same
command goes on where it was interrupted.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..command_line import Refused, parse, refusals
from ..demo.stages import TabletopArguments, record
from ..study.runs import StudyArguments, format_table, one_run, read_rows
from ..training.recipes import get_recipe
from ..training.run_folder import claim_folder, write_whole


def run(arguments: Sequence[str]) -> None:
    study, args = parse((StudyArguments, TabletopArguments), arguments, prog="kivla study")
    if args.recipe != TabletopArguments.recipe:
        raise Refused(f"kivla study: --recipe {args.recipe} cannot apply: name what is compared with --recipes.")
    with refusals("kivla study"):  # a misspelt recipe is better known now
        for recipe in study.recipes:
            get_recipe(recipe)
    folder = Path(study.output_dir)
    arguments = {**asdict(study), **asdict(args)}
    for name in ("output_dir", "recipes", "recipe", "seeds", "target_success"):  # of these there may be more each time
        del arguments[name]
    claim_folder(folder, arguments, ("runs.jsonl", "demonstrations", "questions_before.json"))
    demonstrations = folder / "demonstrations"
    record(demonstrations, args)
    file = folder / "runs.jsonl"
    done = {(row["recipe"], row["seed"]) for row in read_rows(file)}
    todo = [(recipe, seed) for seed in study.seeds for recipe in study.recipes]
    for number, (recipe, seed) in enumerate(todo, 1):
        if (recipe, seed) in done:
            continue
        print(f"\nRun {number} of {len(todo)}: {recipe}, seed {seed}")
        row = one_run(study, replace(args, recipe=recipe), demonstrations, folder / f"{Path(recipe).name}_{seed}", seed)
        rows = [*read_rows(file), {"recipe": recipe, "seed": seed, **row}]
        write_whole(file, "".join(f"{json.dumps(row)}\n" for row in rows))
    table = format_table(read_rows(file), study.target_success)
    (folder / "table.md").write_text(table + "\n")
    print(f"\n{table}\n\nRows: {file}; table: {folder / 'table.md'}")

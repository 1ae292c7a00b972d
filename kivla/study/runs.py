"""The runs of a study: a pilot for the learning rates, then training with measurements, one row for each run.

Whatever is finished is kept, and a run that was killed goes on from its last checkpoint.
"""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..demo.stages import once
from ..training.recipes import BACKBONE, EXPERT, get_recipe, recipe_name, split_steps
from ..training.run_folder import read_json, write_json, write_whole
from ..training.sole_use import sole_use
from .cells import Cell
from .measurements import Measurements, before_training
from .workshop import Rates, Workshop


# ---------------------------------------------------------------------------------------------------------------- pilot
def grid(shop: Workshop, cell: Cell) -> list[Rates]:
    """The learning rates to try for a cell; for a part that is not trained there is nothing to choose."""
    study, trained = shop.study, {part for stage in get_recipe(cell.recipe).stages for part in stage.trains}
    of_expert = (study.expert_learning_rates if EXPERT in trained else None) or [None]
    of_vlm = study.learning_rates if BACKBONE in trained or of_expert == [None] else study.learning_rates[:1]
    return [Rates(*pair) for pair in product(of_vlm, of_expert)]


def pilot(shop: Workshop, cell: Cell) -> list[dict]:
    """Try the learning rates of a cell in short runs, those that were not tried yet; they are kept in `pilot/`.

    Returns:
        For every pair `learning_rate`, `expert_learning_rate` and, where there was a choice, `action_error` (the share
        of that of always doing the mean action) and `texts`.
    """
    file, rates = Path(shop.study.output_dir) / "pilot" / f"{cell.folder}.json", grid(shop, cell)
    with sole_use(shop.folder / "pilot" / cell.folder, math.inf):
        tried = {_rates(trial): trial for trial in (read_json(file) if file.is_file() else [])}
        for pair in rates:
            if pair not in tried:
                found = {} if len(rates) == 1 else _trial(shop, cell, pair)
                tried[pair] = {"learning_rate": pair.vlm, "expert_learning_rate": pair.expert, **found}
                write_json(file, list(tried.values()))
    return list(tried.values())


def best_rates(trials: list[dict]) -> Rates:
    """Choose the rates with the least error of held-out actions."""
    return _rates(min(trials, key=lambda trial: trial.get("action_error", 0.0)))


def _rates(trial: dict) -> Rates:
    return Rates(trial["learning_rate"], trial["expert_learning_rate"])


def _trial(shop: Workshop, cell: Cell, rates: Rates) -> dict:
    study = shop.study
    print(f"Pilot: {cell.name}, learning rates {rates}, {study.pilot_steps} steps")
    scratch, found = shop.folder / "pilot" / cell.folder / "scratch", {}
    shutil.rmtree(scratch, ignore_errors=True)

    def measure(step: int, measurements: Measurements) -> None:
        if step == study.pilot_steps:
            found["action_error"] = share_of_mean(measurements.action_error())
            found["texts"] = measurements.texts()

    train(shop, cell, rates, study.pilot_seed, scratch, study.pilot_steps, {study.pilot_steps}, measure)
    shutil.rmtree(scratch)
    return found


def share_of_mean(error: dict) -> float:
    """The error of actions as a share of that of always doing the mean action."""
    return sum(error["error"]) / sum(error["of_mean_action"])


# ------------------------------------------------------------------------------------------------------------- training
class Watch(TrainerCallback):
    """Measures a policy whenever a checkpoint is whole, and after a restart what is missing of the last one.

    Args:
        done: steps of the stages before.
        steps: at which of all steps to write a checkpoint, and to measure.
        measure: called with the steps so far; what it did already it does not do again.
    """

    def __init__(self, done: int, steps: set[int], measure: Callable[[int], None]):
        self.done, self.steps, self.measure = done, steps, measure

    def on_train_begin(self, args, state, control, **kwargs):
        self.look(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self.done + state.global_step in self.steps:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        self.look(state.global_step)

    def look(self, step: int) -> None:
        if self.done + step in self.steps:
            self.measure(self.done + step)


def train(
    shop: Workshop,
    cell: Cell,
    rates: Rates,
    seed: int,
    folder: Path,
    max_steps: int,
    steps: set[int],
    measure: Callable[[int, Measurements], None],
) -> list[dict]:
    """Train a policy into `folder/policy`, all stages of its cell, from its last checkpoint if there is one.

    Args:
        steps: at which to measure, and to write a checkpoint.
        measure: called with the steps so far and the measurements of the policy.

    Returns:
        The trainers' log.
    """
    stages = cell.stages(max_steps, shop.warmup_steps(max_steps))
    start, done, log = Path(shop.study.vlm), 0, []
    for number, (stage, count) in enumerate(zip(stages, split_steps(stages, max_steps), strict=True), 1):
        output = folder / ("policy" if number == len(stages) else f"stage_{number}")

        def run_stage(stage=stage, count=count, output=output, start=start, done=done) -> dict:
            trainer = shop.make_trainer(cell, stage, rates, start, output, count, seed, save_total_limit=1)
            measurements = Measurements(shop, trainer.model, trainer.processing_class)
            trainer.add_callback(Watch(done, steps, lambda step: measure(step, measurements)))
            trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
            trainer.save_model()
            return {"log": [{**entry, "step": entry["step"] + done} for entry in trainer.state.log_history]}

        log += once(folder / f"stage_{number}.json", run_stage)["log"]
        for checkpoint in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            shutil.rmtree(checkpoint)
        start, done = output, done + count
    return log


def run_folder(shop: Workshop, cell: Cell, seed: int) -> Path:
    return shop.folder / f"{cell.folder}_{seed}"


def one_run(shop: Workshop, cell: Cell, rates: Rates, seed: int) -> tuple[dict, list[dict]]:
    """Train and measure a run; what is finished of it is not done again.

    Returns:
        Its row, and the trainers' log.
    """
    study, folder = shop.study, run_folder(shop, cell, seed)
    acts_at = {round(study.max_steps * n / study.num_checkpoints) for n in range(1, study.num_checkpoints + 1)}
    looks_at = {*range(0, study.max_steps, study.measure_every), *acts_at}

    def measure(step: int, measurements: Measurements) -> None:
        measured = folder / "measured"
        if step in looks_at:
            once(measured / f"knowledge_{step}.json", measurements.knowledge)
        if step in acts_at:
            once(measured / f"action_error_{step}.json", measurements.action_error)
            for name in study.rollouts or ():
                once(measured / f"{name}_{step}.json", lambda name=name: measurements.acts(name))
        if step == study.max_steps and study.num_question_scenes:
            once(measured / "answers.json", measurements.answers)

    log = train(shop, cell, rates, seed, folder, study.max_steps, looks_at, measure)
    row = {
        "recipe": recipe_name(cell.recipe),
        "condition": cell.condition,
        "seed": seed,
        "learning_rate": rates.vlm,
        "expert_learning_rate": rates.expert,
        "points": [{"step": step, **_read(folder, f"knowledge_{step}")} for step in sorted(looks_at)],
        "acts": [
            {
                "step": step,
                "action_error": _read(folder, f"action_error_{step}"),
                "rollouts": {name: _read(folder, f"{name}_{step}") for name in study.rollouts or ()},
            }
            for step in sorted(acts_at)
        ],
        "answers": _read(folder, "answers") if study.num_question_scenes else None,
    }
    for stage in folder.glob("stage_*/"):  # weights that are of no use any more; the policy stays
        shutil.rmtree(stage)
    return row, log


def before(shop: Workshop) -> dict:
    """What the VLM knew before; measured once."""
    return once(Path(shop.study.output_dir) / "before.json", lambda: before_training(shop.study, shop.texts))


def _read(folder: Path, name: str) -> dict:
    found = read_json(folder / "measured" / f"{name}.json")
    del found["minutes"]
    return found


# ----------------------------------------------------------------------------------------------------------------- rows
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


def write_rows(file: Path, rows: list[dict]) -> None:
    write_whole(file, "".join(f"{json.dumps(row)}\n" for row in rows))


def write_log(file: Path, log: list[dict]) -> None:
    """Write a trainer's log as CSV, a line for each step that has an entry."""
    steps: dict[int, dict] = {}
    for entry in log:
        steps.setdefault(entry["step"], {}).update(entry)
    names = list(dict.fromkeys(["step", *(name for entry in steps.values() for name in entry)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(steps[step] for step in sorted(steps))
    write_whole(file, text.getvalue())

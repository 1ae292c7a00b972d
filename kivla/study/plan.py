"""What a study will take, before it starts: from a few timed steps of every cell.

What is timed is the cores' time, whatever else the machine does meanwhile.
"""

import shutil
import time

import numpy as np
from transformers import TrainerCallback

from ..demo.stages import once
from ..simulation import make_env
from .cells import Cell
from .measurements import Measurements
from .runs import grid
from .workshop import Workshop

TIMED_STEPS = 4  # the first is slower, and the quickest of the others counts
SHARE_OF_EPISODE = 0.5  # of its longest time: a good policy needs a quarter, one that wanders all of it


def time_cell(shop: Workshop, cell: Cell) -> dict:
    """Time an optimiser step of a cell's last stage, a look at the texts and a plan of actions; done once."""
    return once(shop.folder / "timing" / f"{cell.folder}.json", lambda: _time(shop, cell))


def _time(shop: Workshop, cell: Cell) -> dict:
    scratch = shop.folder / "timing" / f"{cell.folder}_scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    stage = cell.stages(shop.study.max_steps, shop.study.warmup_steps)[-1]
    clock = _StepClock()
    trainer = shop.make_trainer(
        cell, stage, grid(shop, cell)[0], shop.study.vlm, scratch, TIMED_STEPS, seed=0, save_strategy="no"
    )
    trainer.add_callback(clock)
    trainer.train()
    measurements = Measurements(shop, trainer.model, trainer.processing_class)
    found = {"step": float(np.min(np.diff(clock.times)))}
    for name, measure in (("knowledge", measurements.knowledge), ("action_error", measurements.action_error)):
        start = time.process_time()
        measure()
        found[name] = time.process_time() - start
    shutil.rmtree(scratch, ignore_errors=True)
    return found


class _StepClock(TrainerCallback):
    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.process_time())


def core_hours(shop: Workshop, cell: Cell) -> dict[str, float]:
    """Estimate what a cell takes: its pilot, and each of its runs."""
    study, timed = shop.study, time_cell(shop, cell)
    num_trials = len(grid(shop, cell))
    trials = 0 if num_trials == 1 else num_trials
    # A plan of a chunk costs what a held-out frame does, and the pictures of a closed loop are planned for all along.
    plans = 0.0
    if study.rollouts:
        env = make_env("tabletop", 1)
        per_episode = SHARE_OF_EPISODE * env.max_steps / study.replan_every
        plans = per_episode * study.num_episodes * (len(study.rollouts) + 1)  # the first one also with swapped words
    plan = timed["action_error"] / min(study.num_held_out_frames, len(shop.held_out))
    acting = study.num_checkpoints * (timed["action_error"] + plans * plan)
    looks = len(range(0, study.max_steps, study.measure_every)) + 1
    questions = 6 * (study.num_question_scenes or 0) * plan
    run = study.max_steps * timed["step"] + looks * timed["knowledge"] + acting + questions
    trial = study.pilot_steps * timed["step"] + timed["action_error"] + timed["knowledge"]
    return {"pilot": trials * trial / 3600, "run": run / 3600, "step": timed["step"]}

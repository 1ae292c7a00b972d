"""What a study will take, before it starts: from a few timed steps of every cell.

What is timed is the cores' time, whatever else the machine does meanwhile.
"""

import shutil
import time
from collections.abc import Callable

import numpy as np
from transformers import TrainerCallback

from ..demo.stages import once
from ..simulation import make_env
from ..training.evaluation.text_nll import HeldOutTexts
from .cells import Cell
from .measurements import NUM_PROBES, Measurements, error_by_episode, score_texts
from .runs import grid
from .workshop import Workshop

TIMED_STEPS = 3  # the first is slower, and the quickest of the others counts
TIMED_TEXTS, TIMED_FRAMES = 4, 8
PASSES_OF_PROBE = 1.5  # of an optimiser step: one pass forward and two backward, of as many examples
SHARE_OF_EPISODE = 0.5  # of its longest time: a good policy needs a quarter, one that wanders all of it


def core_hours(shop: Workshop, cell: Cell, first: Cell) -> dict[str, float]:
    """Estimate what a cell takes.

    Args:
        first: the cell whose policy the measurements are timed with; they take the same for all.

    Returns:
        Core-hours of its `pilot`, of each `run`, and of what `growing` part of a run depends on its steps; core-seconds
        of an optimiser `step`.
    """
    study, timed = shop.study, _once(shop, first, "measuring", _time_measuring)
    step = _once(shop, cell, "steps", _time_steps)["step"]
    probe = PASSES_OF_PROBE * step * NUM_PROBES / study.batch_size
    texts = timed["text"] * (0 if shop.texts is None else len(shop.texts))
    held_out = timed["plan"] * min(study.num_held_out_frames, len(shop.held_out))
    # In closed loop every picture that the policy looks at costs a plan. Some scenes are gone through several times:
    # the first loop's also with the swapped word, and synonyms' also with the word of the demonstrations.
    plans = 0.0
    if study.rollouts:
        env = make_env("tabletop", 1)
        per_episode = SHARE_OF_EPISODE * env.max_steps / study.replan_every
        times = len(study.rollouts) + 1 + ("touch_synonyms" in study.rollouts)
        plans = per_episode * study.num_episodes * times
    acting = study.num_checkpoints * (held_out + plans * timed["plan"])
    looks = len(range(0, study.max_steps, study.measure_every)) + 1
    questions = 6 * (study.num_question_scenes or 0) * timed["plan"]
    trials = len(grid(shop, cell)) if len(grid(shop, cell)) > 1 else 0
    growing = study.max_steps * step + looks * (probe + texts)
    return {
        "pilot": trials * (study.pilot_steps * step + held_out + texts) / 3600,
        "run": (growing + acting + questions) / 3600,
        "growing": growing / 3600,
        "step": step,
    }


def steps_that_fit(costs: list[dict[str, float]], num_seeds: int, max_steps: int, budget: float) -> int:
    """How many steps every run could have for all to fit a budget in core-hours; about, and 0 for none."""
    fixed = sum(cost["pilot"] + num_seeds * (cost["run"] - cost["growing"]) for cost in costs)
    growing = sum(num_seeds * cost["growing"] for cost in costs)
    return max(int(max_steps * (budget - fixed) / growing), 0)


def _once(shop: Workshop, cell: Cell, what: str, measure: Callable) -> dict:
    folder = shop.folder / "timing"

    def in_scratch() -> dict:
        scratch = folder / f"{cell.folder}_scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        stage = cell.stages(shop.study.max_steps, shop.study.warmup_steps)[-1]
        options = {"seed": 0, "save_strategy": "no", "max_steps": TIMED_STEPS}
        trainer = shop.make_trainer(cell, stage, grid(shop, cell)[0], shop.study.vlm, scratch, **options)
        found = measure(shop, trainer)
        shutil.rmtree(scratch, ignore_errors=True)
        return found

    return once(folder / f"{cell.folder}_{what}.json", in_scratch)


def _time_steps(shop: Workshop, trainer) -> dict:
    clock = _StepClock()
    trainer.add_callback(clock)
    trainer.train()
    return {"step": float(np.min(np.diff(clock.times)))}


def _time_measuring(shop: Workshop, trainer) -> dict:
    measurements, text = Measurements(shop, trainer.model, trainer.processing_class), 0.0
    if shop.texts is not None:
        few = HeldOutTexts(shop.texts.texts[:TIMED_TEXTS], shop.texts.text_length)
        text = _seconds(lambda: score_texts(trainer.model, trainer.processing_class.tokenizer, few)) / len(few)
    frames = min(TIMED_FRAMES, len(shop.held_out))
    return {
        "text": text,
        "plan": _seconds(lambda: error_by_episode(measurements.pipe(), shop.held_out, frames)) / frames,
    }


def _seconds(measure: Callable) -> float:
    start = time.process_time()
    measure()
    return time.process_time() - start


class _StepClock(TrainerCallback):
    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.process_time())

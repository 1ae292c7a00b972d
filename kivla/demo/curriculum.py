"""Lessons of rising difficulty, for tasks in which something is to be held.

A policy that is shown all tasks from the first step on does not even go to its target (`benchmarks.hands`); one that
can touch learns to hold and carry.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..simulation.tabletop.tasks import TASK_KINDS, TOUCHING
from ..training.recipes import get_recipe
from .stages import TabletopArguments, fine_tune, once, record

TOUCH_SHARE, PUT_SHARE = 0.13, 0.6  # of the steps: all kinds are learned in a few thousand, put takes what there is


class Lesson(NamedTuple):
    """What is shown for a share of the steps.

    Attributes:
        name: of its files, after an underscore; empty for the last lesson.
        kinds: of task, each drawn as often; one that is named three times, three times as often.
        share: of all steps.
    """

    name: str
    kinds: list[str]
    share: float


def lessons_of(args: TabletopArguments) -> list[Lesson]:
    """The lessons, easiest first; the last one has every kind of task."""
    if not (args.curriculum and args.holds):
        return [Lesson("", args.kinds, 1.0)]
    touching = [kind for kind in args.kinds if TASK_KINDS.index(kind) in TOUCHING]
    lessons, last = [Lesson("touch", touching or ["touch"], TOUCH_SHARE)], args.kinds
    if "put" in args.kinds and len(args.kinds) > 1:
        lessons.append(Lesson("all", args.kinds, 1 - TOUCH_SHARE - PUT_SHARE))
        last = [*args.kinds, "put", "put"]
    return [*lessons, Lesson("", last, 1 - sum(lesson.share for lesson in lessons))]


def steps_of(args: TabletopArguments, max_steps: int) -> list[int]:
    """Share out the optimiser steps among the lessons; together they are `max_steps`.

    Raises:
        ValueError: fewer than the lessons, and the stages of the first one, take.
    """
    lessons, stages = lessons_of(args), get_recipe(args.recipe).stages
    fewest = [len(stages), *[1] * (len(lessons) - 1)]
    if max_steps < sum(fewest):
        raise ValueError(
            f"{max_steps} optimiser steps are too few: {len(lessons)} lessons, of which the first has {len(stages)} "
            f"stages (recipe {args.recipe}), take {sum(fewest)} at least."
        )
    shares = np.cumsum([lesson.share for lesson in lessons])
    ends = np.rint((max_steps - sum(fewest)) * shares).astype(int)
    return [least + int(spare) for least, spare in zip(fewest, np.diff(ends, prepend=0), strict=True)]


def record_lessons(folder: Path, args: TabletopArguments) -> dict:
    """Record the demonstrations of all lessons; `folder/demonstrations` are those of the last one.

    Returns:
        `episodes` and `frames`, of all together.
    """
    recorded = [record(_in(folder, "demonstrations", lesson), args, lesson.kinds) for lesson in lessons_of(args)]
    return {what: sum(one[what] for one in recorded) for what in ("episodes", "frames")}


def teach_lessons(vlm: str | Path, folder: Path, args: TabletopArguments, max_steps: int, seed: int) -> dict:
    """Train a policy into `folder/policy`, lesson by lesson; finished lessons are not done again.

    Returns:
        as `fine_tune`, over the steps of all lessons.
    """
    lessons, start, done, minutes, log_history = lessons_of(args), vlm, 0, 0.0, []
    for lesson, steps in zip(lessons, steps_of(args, max_steps), strict=True):
        policy = _in(folder, "policy", lesson)
        # Statistics and action tokens are of the last lesson from the first one on: touching alone knows no gripper
        # that closes.
        train = partial(
            fine_tune,
            start,
            _in(folder, "demonstrations", lesson),
            policy,
            args,
            steps,
            seed,
            made_for=folder / "demonstrations",
        )
        taught = once(_in(folder, "lesson", lesson).with_suffix(".json"), train)
        log_history += [{**entry, "step": entry["step"] + done} for entry in taught["log_history"]]
        start, done, minutes = policy, done + steps, minutes + taught["minutes"]
    return {**taught, "max_steps": done, "log_history": log_history, "minutes": minutes}


def _in(folder: Path, what: str, lesson: Lesson) -> Path:
    return folder / (f"{what}_{lesson.name}" if lesson.name else what)

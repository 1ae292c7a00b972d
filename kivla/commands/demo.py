"""`kivla demo`: the closed loop on a small machine, from a VLM that sees to a policy that does as it is told.

VLM -> its answers -> demonstrations as a LeRobot dataset -> fine-tuning with knowledge insulation, questions among the
demonstrations -> roll-outs, each scene also with an instruction about another object -> the same questions again ->
report and model card.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import transformers

from ..command_line import command_line, parse
from ..demo.curriculum import lessons_of, record_lessons, steps_of, teach_lessons
from ..demo.pretraining import PretrainArguments, pretrain
from ..demo.report import write_report
from ..demo.stages import (
    QUESTION_SEED,
    TabletopArguments,
    ask_policy,
    ask_vlm,
    check_together,
    once,
    roll_out,
    rollouts_of,
    seconds_per_step,
)
from ..hub_cards import policy_card
from ..hub_cards.environment_info import environment_info
from ..hub_cards.hub_names import public_name
from ..hub_cards.readme import write_readme
from ..named_models import TABLETOP, TABLETOP_VLM, find_vlm
from ..simulation.rollout_evaluation import format_rates
from ..simulation.tabletop.answers import format_accuracy
from ..simulation.tabletop.tasks import TASK_KINDS
from ..training.data.lerobot.dataset import LeRobotDataset
from ..training.evaluation.plots import plot_training_curves
from ..training.evaluation.predictions import draw, predict_dataset
from ..training.policy_options import refuse
from ..training.recipes import get_recipe
from ..training.run_folder import claim_folder
from ..training.sole_use import sole_use

# What everything but fine-tuning takes on two cores, with one lesson and the roll-outs of one kind of task; a lesson
# more, and a roll-out more
OTHER_STAGES_MINUTES, LESSON_MINUTES, ROLLOUT_MINUTES = 3.0, 1.5, 0.5
FEWEST_ROLLOUTS = 3
MINUTES = 10.0
HOLDING_MINUTES = 60
TOO_FEW_STEPS = 300
SLOWDOWN = 1.25  # the average step of a long run takes longer than the quick quarter of a few


@dataclass
class DemoArguments:
    output_dir: str = field(default="outputs/demo", metadata={"help": "Where everything goes; run again to resume."})
    minutes: float = field(
        default=MINUTES,
        metadata={
            "help": f"Time for everything: at least 4, more for other kinds than touch; {HOLDING_MINUTES} where "
            "something is to be held."
        },
    )
    vlm: str | None = field(default=None, metadata={"help": "VLM to start from; the one that comes with KIVLA."})
    from_scratch: bool = field(default=False, metadata={"help": "Pretrain that VLM too, which takes an hour."})
    max_steps: int | None = field(
        default=None, metadata={"help": "Optimiser steps, instead of as many as fit into the minutes."}
    )
    num_episodes: int = field(default=200, metadata={"help": "Roll-outs of each kind."})
    num_question_scenes: int = field(default=500, metadata={"help": "Pictures to ask about, six questions each."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order and noise."})


def run(arguments: Sequence[str]) -> None:
    # Contradictions are refused before anything is written.
    demo, args = parse((DemoArguments, TabletopArguments), arguments, prog="kivla demo")
    if demo.from_scratch and demo.vlm:
        raise ValueError("Give either --vlm or --from_scratch true, which makes its own VLM.")
    if demo.max_steps is not None:
        refuse({"minutes": "--max_steps says how long it trains"} if demo.minutes != MINUTES else {})
        steps_of(args, demo.max_steps)
    elif not other_minutes(args) + 1 <= demo.minutes:
        advice = f" Where something is to be held, {HOLDING_MINUTES} are a good beginning." if args.holds else ""
        raise ValueError(f"--minutes must be at least {other_minutes(args) + 1:g}, got {demo.minutes:g}.{advice}")
    if demo.num_question_scenes < 1:
        raise ValueError("--num_question_scenes must be at least 1: the report shows what the VLM still sees.")
    if not 0 <= demo.seed < QUESTION_SEED:  # co-training questions and those that are measured stay apart
        raise ValueError(f"--seed lies between 0 and {QUESTION_SEED - 1}, got {demo.seed}.")
    vlm = TABLETOP_VLM if demo.from_scratch else Path(find_vlm(demo.vlm or TABLETOP))  # from scratch: its like
    check_together(args, vlm)
    # A folder holds the results of one set of arguments: what is there is not done again.
    folder = Path(demo.output_dir)
    arguments = {name: value for name, value in {**asdict(demo), **asdict(args)}.items() if name != "output_dir"}
    claim_folder(folder, arguments, ("*.json", "demonstrations*", "policy*", "pretraining"))
    if args.holds and demo.max_steps is None and demo.minutes < HOLDING_MINUTES:
        print(f"Something is to be held: {HOLDING_MINUTES} --minutes are a good beginning, {demo.minutes:g} are few.")
    with sole_use(folder):
        _run(demo, args, vlm, folder)


def _run(demo: DemoArguments, args: TabletopArguments, vlm: Path, folder: Path) -> None:
    print(f"Everything goes to {folder}. What is there already is not done again; delete it to start anew.\n")
    if demo.from_scratch:
        pretrain(PretrainArguments(str(folder / "pretraining"), seed=demo.seed))
        vlm = folder / "pretraining" / "vlm"

    print("1. What the VLM sees, before it has met a robot")
    before = once(folder / "questions_before.json", lambda: ask_vlm(vlm, demo.num_question_scenes))
    print(format_accuracy(before["accuracy"]), "\n")

    print("2. Demonstrations of the scripted expert, as a LeRobot v3.0 dataset")
    demonstrations = folder / "demonstrations"
    for left in folder.glob(f".{demonstrations.name}*.incomplete-*"):  # by a run that was killed
        shutil.rmtree(left)
    recorded = once(folder / "demonstrations.json", lambda: record_lessons(folder, args))
    print(f"   {recorded['episodes']} episodes, {recorded['frames']} frames: {demonstrations}\n")

    recipe = get_recipe(args.recipe)
    print(f"3. Fine-tuning, recipe {args.recipe}: {recipe.description}")
    policy = folder / "policy"
    plan = once(folder / "plan.json", lambda: _plan(demo, vlm, demonstrations, folder, args))
    trained = once(
        folder / "training.json",
        lambda: teach_lessons(vlm, folder, args, plan["max_steps"], demo.seed),
    )

    print("\n4. Roll-outs in fresh scenes; then the same scenes with another instruction")
    rollouts = []
    for name in rollouts_of(args.kinds):
        result = once(
            folder / f"rollout_{name}.json", lambda name=name: roll_out(policy, folder, name, args, demo.num_episodes)
        )
        rollouts.append(result)
        print(f"   {result['title']}\n{format_rates(result)}\n")

    print("5. The same questions again")
    after = once(folder / "questions_after.json", lambda: ask_policy(policy, demo.num_question_scenes))
    print(format_accuracy(after["accuracy"]), "\n")

    # What each stage took, also where its result was there already.
    minutes = {
        "questions before": before["minutes"],
        "demonstrations": recorded["minutes"],
        "fine-tuning": plan["minutes"] + trained["minutes"],
        "roll-outs": sum(result["minutes"] for result in rollouts),
        "questions after": after["minutes"],
    }
    # Everything is measured: the report, and the policy's card with its pictures.
    _draw_chunks(policy, demonstrations, folder / "chunks.png", args)
    report = {
        "title": "KIVLA on the tabletop",
        "summary": _summary(rollouts, before, after, sum(minutes.values())),
        "machine": environment_info(),
        "minutes": minutes,
        "settings": {
            **args.as_used(),
            "lessons": [f"{', '.join(lesson.kinds)} ({100 * lesson.share:.0f} %)" for lesson in lessons_of(args)],
            "vlm": _name(vlm),
            "steps": trained["max_steps"],
            "seed": demo.seed,
        },
        "recipe": recipe.description,
        "questions": {"before": before["accuracy"], "after": after["accuracy"]},
        "log_history": trained["log_history"],
        "rollouts": rollouts,
        "chunks": "chunks.png",
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    page = write_report(folder, report)
    plot_training_curves(policy / "training.png", trained["log_history"])
    shutil.copy(folder / "chunks.png", policy)
    for picture in ("contact_sheet", "phases"):
        if (file := rollouts[0]["media"][picture]) is not None:
            shutil.copy(folder / file, policy)
    card = policy_card({**report, "policy": public_name(policy)}, command(demo, args, trained["max_steps"]))
    write_readme(policy / "README.md", card)
    print("\n".join(report["summary"]))
    print(f"\nReport: {page}\nPolicy: {policy}")


def command(demo: DemoArguments, args: TabletopArguments, max_steps: int) -> str:
    """Write the command that makes the same policy again: its steps, not the minutes that they took somewhere."""
    same = replace(demo, max_steps=max_steps, vlm=public_name(demo.vlm))
    return command_line("kivla demo", same, args, always=["seed"], without=["minutes", "output_dir"])


def _name(vlm: Path) -> str:
    return "the small VLM that comes with KIVLA" if vlm == TABLETOP_VLM else public_name(vlm)


def _plan(demo: DemoArguments, vlm: Path, demonstrations: Path, folder: Path, args: TabletopArguments) -> dict:
    if demo.max_steps is not None:
        return {"max_steps": demo.max_steps}
    seconds = seconds_per_step(vlm, demonstrations, folder / "scratch", args, num_steps=25)
    steps = int((demo.minutes - other_minutes(args)) * 60 / (SLOWDOWN * seconds))
    print(f"   {seconds:.2f} s a step on this machine: {steps} steps")
    if steps < TOO_FEW_STEPS:
        print(
            f"   Too few to learn the task, which takes about a thousand: give it more than {demo.minutes:g} --minutes."
        )
    return {"seconds_per_step": seconds, "max_steps": steps}


def other_minutes(args: TabletopArguments) -> float:
    """What is not fine-tuning takes about so long."""
    lessons, rollouts = len(lessons_of(args)), len(rollouts_of(args.kinds))
    return OTHER_STAGES_MINUTES + LESSON_MINUTES * (lessons - 1) + ROLLOUT_MINUTES * (rollouts - FEWEST_ROLLOUTS)


def _draw_chunks(policy: Path, demonstrations: Path, picture: Path, args: TabletopArguments) -> None:
    pipe = transformers.pipeline("action-prediction", model=str(policy))
    data = LeRobotDataset(demonstrations, args.chunk_size, cameras=pipe.processor.cameras)
    data.look_back(pipe.observation_history)
    draw(picture, predict_dataset(pipe, data, num_frames=8), data, count=4)


def _summary(rollouts: list[dict], before: dict, after: dict, minutes: float) -> list[str]:
    sentences = []
    for result in [result for result in rollouts if result["name"] in TASK_KINDS]:
        success, swapped = result["success"], result["swapped"]
        sentences += [
            f"{result['title']}: the policy does as it is told in {_percent(success)} of {success['episodes']} scenes "
            "it never saw.",
            f"Told about another object of the same scenes, it does what the scene first asked for in "
            f"{_percent(swapped['original'])} and what it is told in {_percent(swapped['swapped'])}.",
        ]
    sentences += [
        f"Questions about fresh pictures: {100 * before['accuracy']['all']['accuracy']:.1f} % right before, "
        f"{100 * after['accuracy']['all']['accuracy']:.1f} % after.",
        f"All in {minutes:.1f} minutes.",
    ]
    return sentences


def _percent(rate: dict) -> str:
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.1f} - {100 * rate['high']:.1f} %)"

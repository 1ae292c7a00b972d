"""`python -m benchmarks.hands plan`, `train`, `measure`: where does a policy that is to take hold and carry fail?

One row is one change: policies from the same VLM, with the same steps and seeds, that differ from the first row in one
thing alone. Some rows are no policies of their own, but the first one's acting otherwise. All act in the same scenes,
with their own instruction and with another one (swapped); what is counted is success, and which phase an episode
reached. Each policy is asked questions about pictures, as its VLM was before. `plan` times twenty steps of each row and
says what training all will take, `train` trains the rows, `measure` rolls them out, and writes table.md of these rows,
hands.png (success) and hands_KIND.png (phases). Everything goes on where it was stopped, row by row. Other kinds, steps
or demonstrations want an `--output` of their own.

    python -m benchmarks.hands train --rows base hovering recoveries
    python -m benchmarks.hands measure --rows base hovering recoveries
    python -m benchmarks.hands train --kinds touch move push put --seeds 0 1 \\
        --rows together half-noise joint-together frozen-together pi0-fast-together
"""

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import pipeline

from kivla.demo.stages import (
    EVALUATION_SEED,
    ROLLOUTS,
    TabletopArguments,
    ask_policy,
    ask_vlm,
    fine_tune,
    once,
    record,
    rollouts_of,
    seconds_per_step,
)
from kivla.named_models import TABLETOP, find_vlm
from kivla.simulation import TabletopVectorEnv
from kivla.simulation.rollout import Acting, PipelinePolicy, Policy
from kivla.simulation.rollout_evaluation import evaluate, success_rate
from kivla.simulation.tabletop.phases import PHASES
from kivla.simulation.tabletop.tasks import TASK_KINDS
from kivla.study.summary import bootstrap_seeds
from kivla.training.evaluation.plots import DEMONSTRATED, OTHER
from kivla.training.run_folder import write_whole

from .options import Distinct, claim, count, natural

matplotlib.use("Agg")

OF_PLACES = ["direction", "relation", "related", "cell", "gripper_cell", "holding", "held"]
TOUCH_SHARE = 1 / 3  # of the steps, where touching is learned first
BEFORE = "the VLM, before"
TIMED_STEPS = 10  # twice as many are taken


@dataclass(frozen=True)
class Row:
    """A change of the first row.

    Attributes:
        title: what stands in the table.
        changes: of `TabletopArguments`.
        steps: how many times the first row's.
        touch_first: a third of the steps are on touch tasks alone.
        acts: whose policy it is, which only acts otherwise.
        noise_scale: of the noise that chunks start from.
        fresh_noise: new noise for every chunk, as on a robot.
        acts_by: "flow" or "tokens"; the recipe's own.
        closes_above: the gripper closes where its action is above this.
    """

    title: str
    changes: dict = field(default_factory=dict)
    steps: float = 1.0
    touch_first: bool = False
    acts: str | None = None
    noise_scale: float = 1.0
    fresh_noise: bool = True
    acts_by: str | None = None
    closes_above: float = 0.0


BASE, TOGETHER = "base", "together"
ROWS = {
    BASE: Row("all tasks from the first step on"),
    "hovering": Row("expert closes within 0.02, half a pixel", {"expert_precision": 0.02}),
    "recoveries": Row("30 % of the episodes with an empty grip", {"empty_grips": 0.3}),
    "calm": Row("half the disturbance", {"action_noise": 0.3}),
    "state-as-text": Row("state as text", {"state_encoding": "text"}),
    "state-as-vector": Row("state as a vector for the expert", {"state_encoding": "continuous"}),
    "short-chunks": Row("chunks of 4, two of them executed", {"chunk_size": 4, "replan_every": 2}),
    "long-chunks": Row("chunks of 16, four of them executed", {"chunk_size": 16}),
    "questions-of-places": Row("questions about places and directions alone", {"question_kinds": OF_PLACES}),
    "no-questions": Row("no questions", {"question_share": 0.0}),
    "vision": Row("the vision tower learns, too", {"freeze_vision": False}),
    "one-draw": Row("1 noise draw", {"num_flow_samples": 1}),
    "eight-draws": Row("8 noise draws", {"num_flow_samples": 8}),
    "slow": Row("half the learning rate", {"learning_rate": 5e-4}),
    "fast": Row("twice the learning rate", {"learning_rate": 2e-3}),
    "coarse-codes": Row("action tokens 2.5 times as coarse", {"action_scale": 2.0}),
    "few-codes": Row("64 codes of action tokens", {"action_vocab_size": 64}),
    "coarse-few-codes": Row(
        "64 codes of action tokens, 2.5 times as coarse", {"action_scale": 2.0, "action_vocab_size": 64}
    ),
    "bins": Row("256 bins for every value", {"recipe": "insulated-bins"}),
    "wide-expert": Row("expert twice as wide", {"expert_hidden_size": 128, "expert_intermediate_size": 384}),
    "twice": Row("twice the steps", steps=2.0),
    "touch-first": Row("a third of the steps on touch tasks, first", touch_first=True),
    TOGETHER: Row(
        "a third of the steps on touch tasks, first; then 30 % of the episodes with an empty grip",
        {"empty_grips": 0.3},
        touch_first=True,
    ),
    "joint": Row("recipe joint", {"recipe": "joint", "state_encoding": "none"}),
    "frozen": Row("recipe frozen", {"recipe": "frozen", "state_encoding": "none"}),
    "pi0-fast": Row("recipe pi0-fast", {"recipe": "pi0-fast", "state_encoding": "none"}),
    "looks-often": Row("the first row's policy, looks after every 2 actions", {"replan_every": 2}, acts=BASE),
    "closes-late": Row("the first row's policy, gripper closes above 0.5", acts=BASE, closes_above=0.5),
    "by-tokens": Row("the first row's policy, its VLM acts by tokens", acts=BASE, acts_by="tokens"),
    "among-action-tokens": Row(
        "action tokens are predicted among themselves", {"action_token_softmax": "action_tokens"}
    ),
    "among-them-by-tokens": Row("that policy, its VLM acts by tokens", acts="among-action-tokens", acts_by="tokens"),
    "same-noise": Row(f"that of `{TOGETHER}`, all chunks from the same noise", acts=TOGETHER, fresh_noise=False),
    "half-noise": Row(f"that of `{TOGETHER}`, half the noise", acts=TOGETHER, noise_scale=0.5),
    "no-noise": Row(f"that of `{TOGETHER}`, no noise", acts=TOGETHER, noise_scale=0.0),
    # What `half-noise` is beside; tokens know no noise.
    **{
        f"{recipe}-{TOGETHER}": Row(
            f"as `{TOGETHER}`, recipe {recipe}, {noise}",
            {"recipe": recipe, "state_encoding": "none", "empty_grips": 0.3},
            touch_first=True,
            noise_scale=noise_scale,
        )
        for recipe, noise, noise_scale in (
            ("joint", "half the noise", 0.5),
            ("frozen", "half the noise", 0.5),
            ("pi0-fast", "by tokens", 1.0),
        )
    },
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hands", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("plan", "train", "measure"))
    parser.add_argument("--rows", nargs="+", action=Distinct, choices=ROWS, default=list(ROWS), help="which; all")
    parser.add_argument(
        "--kinds", nargs="+", action=Distinct, choices=TASK_KINDS, default=["move"], help="of task; move"
    )
    parser.add_argument("--vlm", default=TABLETOP, help="VLM that all start from; tabletop")
    parser.add_argument(
        "--num_episodes", type=count, default=200, help="scenes of each kind, and pictures to ask about; 200"
    )
    parser.add_argument("--max_steps", type=count, default=1500, help="optimiser steps of the first row; 1500")
    parser.add_argument("--num_demonstrations", type=count, default=3000, help="3000")
    parser.add_argument("--held_out", action="store_true", help="measure pairs, wordings, ... too that were held out")
    parser.add_argument(
        "--seeds", type=natural, nargs="+", action=Distinct, default=[0], help="a policy of each row for each; 0"
    )
    parser.add_argument("--threads", type=count, default=1, help="CPU threads; 1")
    parser.add_argument("--output", type=Path, default=Path("outputs/hands"), help="where everything goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    facts = {name: getattr(options, name) for name in ("kinds", "vlm", "num_episodes", "max_steps")}
    facts["num_demonstrations"] = options.num_demonstrations
    claim(parser, options.output, facts, ("*.json", "demonstrations*"))
    if options.what == "plan":
        print(plan(options))
    elif options.what == "train":
        for seed in options.seeds:
            for name in options.rows:
                train(options, name, seed)
    else:
        print(measure(options))


# ------------------------------------------------------------------------------------------------------------ training
def arguments_of(options: argparse.Namespace, name: str, kinds: list[str] | None = None) -> TabletopArguments:
    plain = {"empty_grips": 0.0, "curriculum": False, "noise_scale": 1.0}  # what is changed here, or told when it acts
    args = TabletopArguments(kinds=kinds or options.kinds, num_demonstrations=options.num_demonstrations, **plain)
    return replace(args, **ROWS[name].changes)


def demonstrations_of(options: argparse.Namespace, args: TabletopArguments) -> Path:
    """Record what a row is taught, once for all rows that are taught the same."""
    facts = [*args.kinds, args.expert_precision, args.action_noise, args.empty_grips]
    folder = options.output / "_".join(["demonstrations", *map(str, facts)])
    record(folder, args)
    return folder


def whose(name: str) -> str:
    """The row whose policy acts in a row."""
    return ROWS[name].acts or name


def policy_of(options: argparse.Namespace, name: str, seed: int) -> Path:
    return options.output / f"policy_{whose(name)}_{seed}"


def is_trained(options: argparse.Namespace, name: str, seed: int) -> bool:
    return policy_of(options, name, seed).with_suffix(".json").is_file()


def train(options: argparse.Namespace, name: str, seed: int) -> None:
    """Train a row's policy; what is there is not done again."""
    row = ROWS[name]
    if row.acts is not None:
        print(f"{name} only acts otherwise, with the policy of {row.acts}: nothing to train.")
        return
    args, folder = arguments_of(options, name), policy_of(options, name, seed)
    start, steps = find_vlm(options.vlm), round(row.steps * options.max_steps)
    if row.touch_first:
        first, touch_args = max(round(TOUCH_SHARE * steps), 1), arguments_of(options, name, kinds=["touch"])
        touches = folder.with_name(f"{folder.name}_touch")
        # Statistics of touching alone know no gripper that closes
        _teach(options, start, touches, touch_args, first, seed, made_for=demonstrations_of(options, args))
        start, steps = touches, max(steps - first, 1)
    _teach(options, start, folder, args, steps, seed)


def _teach(
    options, start: str | Path, folder: Path, args: TabletopArguments, steps: int, seed: int, made_for=None
) -> None:
    once(
        folder.with_name(f"{folder.name}.json"),
        lambda: fine_tune(start, demonstrations_of(options, args), folder, args, steps, seed, made_for=made_for),
    )


def plan(options: argparse.Namespace) -> str:
    """Time some steps of each row, and say what all of its training takes on this machine, as it is now."""
    lines = ["| row | s a step | minutes of training, a seed |", "|---|--:|--:|"]
    total = 0.0
    for name in options.rows:
        if ROWS[name].acts is not None:
            lines.append(f"| {name} | | none: it acts with the policy of {whose(name)} |")
            continue
        args = arguments_of(options, name)
        where = demonstrations_of(options, args), options.output / "scratch"
        timed = once(
            options.output / f"timing_{name}.json",
            lambda where=where, args=args: {
                "step": seconds_per_step(find_vlm(options.vlm), *where, args, num_steps=TIMED_STEPS)
            },
        )
        minutes = timed["step"] * ROWS[name].steps * options.max_steps / 60
        total += minutes
        lines.append(f"| {name} | {timed['step']:.2f} | {minutes:.0f} |")
    return "\n".join([*lines, f"| all, number of seeds: {len(options.seeds)} | | {total * len(options.seeds):.0f} |"])


# ------------------------------------------------------------------------------------------------------------- acting
def measure(options: argparse.Namespace) -> str:
    """Roll all trained rows out; write tables and pictures, and return the tables. Others are named."""
    parts, untrained, of_loops = [], set(), {}
    for loop in rollouts_of(options.kinds) if options.held_out else options.kinds:
        rows: dict[str, dict[int, dict]] = {}
        for name in options.rows:
            measured = {}
            for seed in options.seeds:
                if not is_trained(options, name, seed):
                    untrained.add(f"{whose(name)} (seed {seed})")
                    continue
                path = options.output / f"row_{name}_{seed}_{loop}.json"
                measured[seed] = once(path, lambda name=name, seed=seed, loop=loop: outcomes(options, name, seed, loop))
            if measured:
                rows[name] = measured
        if rows:
            of_loops[ROLLOUTS[loop][0]] = rows
            parts.append(f"**{ROLLOUTS[loop][0]}**\n\n{table(rows, PHASES[ROLLOUTS[loop][1]['kinds'][0]])}")
            draw(options.output / f"hands_{loop}.png", ROLLOUTS[loop][0], rows)
    if told := answers(options):
        parts.append(f"**Questions about fresh pictures**\n\n{told}")
    if untrained:
        parts.append(f"Not trained yet: {', '.join(sorted(untrained))}.")
    if of_loops:
        draw_success(options.output / "hands.png", of_loops)
    text = "\n\n".join(parts)
    write_whole(options.output / "table.md", text + "\n")
    return text


def answers(options: argparse.Namespace) -> str | None:
    """A line for the VLM before, and for each trained policy of the rows: what it still answers right."""
    folder, found = options.output, {}
    for name in options.rows:
        for seed in options.seeds:
            if ROWS[name].acts is None and is_trained(options, name, seed):
                policy = policy_of(options, name, seed)
                path = folder / f"answers_{name}_{seed}.json"
                asked = once(path, lambda policy=policy: ask_policy(policy, options.num_episodes))
                found.setdefault(name, []).append(asked["accuracy"]["all"])
    if not found:
        return None
    before = once(folder / "answers_before.json", lambda: ask_vlm(find_vlm(options.vlm), options.num_episodes))
    lines = ["| row | answered right | by seed |", "|---|--:|--:|"]
    for name, of_seeds in {BEFORE: [before["accuracy"]["all"]], **found}.items():
        right, asked = (sum(one[what] for one in of_seeds) for what in ("correct", "asked"))
        by_seed = " ".join(f"{100 * one['accuracy']:.1f} %" for one in of_seeds)
        rate = success_rate([True] * right + [False] * (asked - right))
        lines.append(f"| {name if name == BEFORE else ROWS[name].title} | {_percent(rate)} | {by_seed} |")
    return "\n".join(lines)


def outcomes(options: argparse.Namespace, name: str, seed: int, loop: str) -> dict:
    """What happened in every scene, as `evaluate` says it, without the sentences."""
    row, env = ROWS[name], TabletopVectorEnv(min(options.num_episodes, 100), **ROLLOUTS[loop][1])
    pipe = pipeline("action-prediction", model=str(policy_of(options, name, seed)))
    noise_scale = None if row.noise_scale == 1.0 else row.noise_scale  # tokens know none
    policy: Policy = PipelinePolicy(pipe, seed, acts_by=row.acts_by, noise_scale=noise_scale)
    if row.closes_above:
        policy = closing_above(row.closes_above, policy)
    scenes = range(EVALUATION_SEED, EVALUATION_SEED + options.num_episodes)
    acting = Acting(fresh_noise=row.fresh_noise)
    figures, _ = evaluate(policy, env, scenes, arguments_of(options, name).replan_every, env.max_steps, acting=acting)
    return {
        "success": [episode["success"] for episode in figures["episodes"]],
        "swapped_original": [episode["success"] for episode in figures["swapped"]["episodes"]],
        "swapped_done": [episode["swapped_success"] for episode in figures["swapped"]["episodes"]],
        "phases": figures["phases"],
        "mean_steps": figures["mean_steps"],
    }


def closing_above(threshold: float, policy: Policy) -> Policy:
    """The same policy with a gripper that closes where its action, the last value, is above a threshold."""

    def acts(observations: list[dict]) -> np.ndarray:
        chunks = policy(observations)
        return np.concatenate([chunks[..., :-1], chunks[..., -1:] - threshold], axis=-1)

    return acts


# ------------------------------------------------------------------------------------------------------------- report
def table(rows: dict[str, dict[int, dict]], phases: tuple[str, ...]) -> str:
    """A line for each row, all its seeds together, with 95 % Wilson intervals; beside it the first row's."""
    header = ["row", "success", "by seed", "more than the first row, in points"]
    header += ["swapped: original done", "swapped: done as told", *phases[:-1], "mean steps"]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    first = next(iter(rows.values()))
    for name, of_seeds in rows.items():
        rates = [
            _percent(success_rate([outcome for of_seed in of_seeds.values() for outcome in of_seed[what]]))
            for what in ("success", "swapped_original", "swapped_done")
        ]
        by_seed = " ".join(f"{100 * np.mean(of_seed['success']):.0f} %" for of_seed in of_seeds.values())
        rates[1:1] = [by_seed, "-" if of_seeds is first else more_than(first, of_seeds)]
        rates += map(_percent, reached(of_seeds)[:-1])
        steps = np.mean([of_seed["mean_steps"] for of_seed in of_seeds.values()])
        lines.append(f"| {ROWS[name].title} | {' | '.join(rates)} | {steps:.1f} |")
    return "\n".join(lines)


def more_than(first: dict[int, dict], second: dict[int, dict]) -> str:
    """Of how many more scenes, in points, the second row does as told: same seeds, same scenes, 95 % interval."""
    both = [seed for seed in first if seed in second]
    if not both:
        return "no seed in common"
    ours, theirs = (np.array([row[seed]["success"] for seed in both], float) for row in (second, first))
    found = bootstrap_seeds(ours - theirs)
    return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def reached(of_seeds: dict[int, dict]) -> list[dict]:
    """How many episodes of all seeds reached each phase, as `success_rate` has it."""
    found = []
    for phase in zip(*(of_seed["phases"] for of_seed in of_seeds.values()), strict=True):
        successes, episodes = (sum(one["reached"][what] for one in phase) for what in ("successes", "episodes"))
        found.append(success_rate([True] * successes + [False] * (episodes - successes)))
    return found


def draw(path: Path, title: str, rows: dict[str, dict[int, dict]]) -> None:
    """Draw which share of the episodes reached each phase, row by row."""
    names = [phase["name"] for phase in next(iter(next(iter(rows.values())).values()))["phases"]]
    shares = np.array([[100 * rate["rate"] for rate in reached(of_seeds)] for of_seeds in rows.values()])
    figure = Figure(figsize=(3.4 + 1.5 * len(names), 1.2 + 0.32 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            axis.text(x, y, f"{share:.0f}", ha="center", va="center", color="white" if share > 60 else "black")
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.xaxis.tick_top()
    axis.set_yticks(range(len(rows)), [ROWS[name].title for name in rows], fontsize=8)
    axis.set_xlabel(f"{title}: % of the episodes that reached the phase", fontsize=9)
    figure.savefig(path, dpi=120)


def draw_success(path: Path, of_loops: dict[str, dict[str, dict[int, dict]]]) -> None:
    """Draw how often each row does as told: a panel for each kind of roll-out, 95 % intervals, a small dot a seed."""
    names = list(dict.fromkeys(name for rows in of_loops.values() for name in rows))
    figure = Figure(figsize=(1.6 + 2.3 * len(of_loops), 1.1 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(of_loops), sharey=True, squeeze=False)[0]
    for axis, (title, rows) in zip(axes, of_loops.items(), strict=True):
        for name, of_seeds in rows.items():
            y, seeds = names.index(name), [100 * np.mean(of_seed["success"]) for of_seed in of_seeds.values()]
            rate = success_rate([outcome for of_seed in of_seeds.values() for outcome in of_seed["success"]])
            low, mean, high = (100 * rate[what] for what in ("low", "rate", "high"))
            axis.plot([low, high], [y, y], color=OTHER, lw=5, alpha=0.35, solid_capstyle="butt")
            axis.plot(mean, y, "o", color=OTHER, ms=7)
            axis.plot(seeds, [y] * len(seeds), ".", color=DEMONSTRATED, ms=4)
        axis.set(xlim=(-3, 103), title=title.split(",")[0])
        axis.title.set_size(9)
        axis.grid(axis="x", alpha=0.25)
    recipes = [ROWS[whose(name)].changes.get("recipe", "insulated") for name in names]
    labels = [f"{name}\n(recipe {recipe})" for name, recipe in zip(names, recipes, strict=True)]
    axes[0].set_yticks(range(len(names)), labels, fontsize=8)
    axes[0].invert_yaxis()
    figure.supxlabel("does as told, % of the scenes (small dots: single seeds)", fontsize=9)
    figure.savefig(path, dpi=130)


def _percent(rate: dict) -> str:
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.1f} - {100 * rate['high']:.1f})"


if __name__ == "__main__":
    main()

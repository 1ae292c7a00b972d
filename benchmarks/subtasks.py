"""`python -m benchmarks.subtasks`: does a policy that says its sub-task, and acts on it, do better than one without?

The tabletop's task "touch the red star, then touch the blue circle". Two policies go on from the same one, which can
touch single objects (`kivla demo` makes it), with the same demonstrations, seed, steps and questions. One is taught to
say what is to be done now ("touch the blue circle"), and its expert reads it; when it acts it says its own, at every
plan anew. The other goes by the whole sentence alone.

Every row goes to OUTPUT/row_*.json when it is measured; the same command goes on where it was stopped.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import pipeline

from kivla.demo.stages import EVALUATION_SEED, TabletopArguments, fine_tune, once, record
from kivla.simulation import TabletopVectorEnv
from kivla.simulation.rollout import PipelinePolicy, rollout
from kivla.simulation.rollout_evaluation import success_rate
from kivla.training.evaluation.confidence import mcnemar_test

from .options import claim, count

KIND = "touch_then_touch"
START, WITH, WITHOUT = "start", "policy_with_subtasks", "policy_without"


class Row(NamedTuple):
    """A policy, whether it may say what it learned to say, and whether it is told the true sub-task as its sentence."""

    name: str
    policy: str
    says: bool = True
    is_told: bool = False


ROWS = (
    Row("says its sub-task and acts on it", WITH),
    Row("the same policy, saying nothing", WITH, says=False),
    Row("learned without sub-tasks", WITHOUT),
    Row("before learning, told the whole sentence", START),
    Row("before learning, told the true sub-task", START, is_told=True),
)


class TellsSubtask(TabletopVectorEnv):
    """The tabletop that tells the sub-task in place of the sentence: what knowing it is worth at most."""

    def _info(self) -> dict:
        info = super()._info()
        return {**info, "instruction": info["subtask"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subtasks", description=__doc__)
    parser.add_argument("--start", default="outputs/demo/policy", help="a policy that can touch (default: the demo's)")
    parser.add_argument("--max_steps", type=count, default=1200, help="optimiser steps of each policy (default: 1200)")
    parser.add_argument("--num_episodes", type=count, default=200, help="scenes, the same for all (default: 200)")
    parser.add_argument("--num_demonstrations", type=count, default=1500, help="(default: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order of the data and noise (default: 0)")
    parser.add_argument("--threads", type=count, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("outputs/subtasks"), help="where everything goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    facts = {name: value for name, value in vars(options).items() if name not in ("output", "threads")}
    claim(parser, options.output, facts, ("*.json", "demonstrations"))
    print(format_rows(measure(options)))


def measure(options: argparse.Namespace) -> list[dict]:
    """Train both policies, and roll all out; what is there is not done again."""
    demonstrations = options.output / "demonstrations"
    record(demonstrations, arguments(options, subtasks=True))
    rows = []
    for number, row in enumerate(ROWS):
        policy, minutes = Path(options.start), 0.0
        if row.policy != START:
            policy = options.output / row.policy
            args = arguments(options, subtasks=row.policy == WITH)
            trained = once(
                options.output / f"{row.policy}.json",
                lambda policy=policy, args=args: fine_tune(
                    options.start, demonstrations, policy, args, options.max_steps, options.seed
                ),
            )
            minutes = trained["minutes"]
        measured = once(
            options.output / f"row_{number}.json",
            lambda row=row, policy=policy: {"touched": roll_out(row, policy, options.num_episodes)},
        )
        rows.append({"name": row.name, **measured, "training_minutes": minutes})
    return rows


def arguments(options: argparse.Namespace, subtasks: bool) -> TabletopArguments:
    return TabletopArguments(
        kinds=[KIND], subtasks=subtasks, num_demonstrations=options.num_demonstrations, noise_scale=1.0
    )


def roll_out(row: Row, policy: Path, num_episodes: int) -> list[int]:
    """In every scene: how many of the two objects the policy touched, in the order that was asked for."""
    env = (TellsSubtask if row.is_told else TabletopVectorEnv)(num_episodes, kinds=[KIND])
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + num_episodes)
    acts = PipelinePolicy(pipeline("action-prediction", model=str(policy)), respond=row.says)
    result = rollout(acts, env, seeds, TabletopArguments.replan_every, env.max_steps, description=row.name)
    touched = env.num_touched  # all scenes in one round, and a finished table keeps its state
    if ((touched == 2) != result.success).any():
        raise AssertionError("Success must be both objects touched in this order.")
    return touched.tolist()


def format_rows(rows: list[dict]) -> str:
    """The rows as a Markdown table, with 95 % Wilson intervals; and whether sub-tasks and none differ by chance."""
    lines = ["| policy | both, in this order | touched the first | of these, the second | training |"]
    lines.append("|---|--:|--:|--:|--:|")
    for row in rows:
        touched = np.array(row["touched"])
        first = touched[touched >= 1]
        shares = [_percent(touched == 2), _percent(touched >= 1), _percent(first == 2) if len(first) else "-"]
        lines.append(f"| {row['name']} | {' | '.join(shares)} | {row['training_minutes']:.0f} min |")
    both = [np.array(row["touched"]) == 2 for row in rows]
    test = mcnemar_test(both[0], both[2])
    return "\n".join(
        [
            *lines,
            "",
            f"In {len(both[0])} scenes, the same for all. Only the policy that says its sub-task succeeds in "
            f"{test.only_first}, only the one that learned without in {test.only_second}: p = {test.p_value:.2g} "
            "(McNemar's exact test).",
        ]
    )


def _percent(outcomes: np.ndarray) -> str:
    rate = success_rate(outcomes.tolist())
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.1f} - {100 * rate['high']:.1f})"


if __name__ == "__main__":
    main()

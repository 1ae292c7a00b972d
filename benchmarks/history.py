"""`python -m benchmarks.history train`, then `... measure`: does a policy that looks back act on what was hidden since?

On the hidden tabletop (`kivla rollout --env hidden`) the objects are covered before the gripper can move. `train`
records demonstrations and trains two policies on them, which differ in their history alone: one sees the present, the
other also what was 16 steps before. Both begin as the VLM of the repository. `measure` lets both act in the same
scenes, compares them, and draws an episode. Both go on where they were stopped. `cost` says what a history costs, by
arithmetic.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import pipeline

from kivla.demo.stages import EVALUATION_SEED, TabletopArguments, fine_tune, once
from kivla.named_models import TABLETOP_VLM
from kivla.processing.observation_history import ObservationHistory
from kivla.simulation import HiddenTabletopVectorEnv, record_demonstrations
from kivla.simulation.hidden_tabletop import HELD, SHOWN
from kivla.simulation.rollout import Episode, PipelinePolicy, rollout
from kivla.simulation.rollout_evaluation import success_rate
from kivla.training.evaluation.confidence import mcnemar_test
from kivla.training.run_folder import write_whole

from .options import Distinct, claim, count

matplotlib.use("Agg")

# The oldest frame that is seen at the release is from before the covers, and still so some steps later
HISTORIES = {"without": ObservationHistory(), "with": ObservationHistory(2, HELD)}
CHUNK_SIZE = HELD - SHOWN  # a chunk that was planned before the covers ends before the release
REPLAN_EVERY = 4
CHANCE = 1 / 3
DISTURBANCE = 0.6  # of the expert's motion, as in the demo: it shows how to get back
DRAWN = (0, SHOWN, HELD, HELD + 4)  # steps of the picture, and the last one

FRAMES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Size:
    """What the expert reads of a VLM's published size, for one image of one camera.

    Attributes:
        image: its size in pixels.
        tokens: of the image.
        layers, heads, head_size: decoder layers, and key/value heads of each.
    """

    image: str
    tokens: int
    layers: int
    heads: int
    head_size: int

    def megabytes(self, frames: int) -> float:
        """Keys and values of so many frames, in bfloat16."""
        return frames * self.tokens * self.layers * 2 * self.heads * self.head_size * 2 / 1e6


SIZES = {
    "the tabletop's": Size("48 x 48", 36, 4, 2, 32),
    "SmolVLM2 500M, image not split": Size("512 x 512", 64, 32, 5, 64),
    "PaliGemma (of π0.5)": Size("224 x 224", 256, 18, 1, 256),
    "PaliGemma 2 3B": Size("224 x 224", 256, 26, 4, 256),
    "Qwen3-VL 2B": Size("448 x 448", 196, 28, 8, 128),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("what", choices=("train", "measure", "cost"))
    parser.add_argument(
        "--policies", nargs="+", action=Distinct, choices=HISTORIES, default=list(HISTORIES), help="which; both"
    )
    parser.add_argument("--num_episodes", type=count, default=200, help="scenes, the same for both; 200")
    parser.add_argument("--max_steps", type=count, default=1100, help="optimiser steps of a policy; 1100")
    parser.add_argument("--num_demonstrations", type=count, default=3000, help="3000")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data; 0")
    parser.add_argument("--threads", type=count, default=1, help="CPU threads; 1")
    parser.add_argument("--output", type=Path, default=Path("outputs/history"), help="where everything goes")
    options = parser.parse_args(arguments)
    if options.what == "cost":
        print(cost())
        return
    torch.set_num_threads(options.threads)
    facts = {name: getattr(options, name) for name in ("num_episodes", "max_steps", "num_demonstrations", "seed")}
    claim(parser, options.output, facts, ("*.json", "demonstrations"))
    if options.what == "train":
        for name in options.policies:
            train(options, name)
    else:
        print(measure(options))


def train(options: argparse.Namespace, name: str) -> None:
    """Record demonstrations, the same for both, and train a policy."""
    demonstrations = options.output / "demonstrations"
    if not demonstrations.is_dir():  # it appears when it is complete
        env = HiddenTabletopVectorEnv(min(options.num_demonstrations, 100))
        noise = [DISTURBANCE, DISTURBANCE, 0.0]  # the gripper is not disturbed
        record_demonstrations(
            env,
            demonstrations,
            options.num_demonstrations,
            image_format="image",
            action_noise=noise,
            max_failures=20 * options.num_demonstrations,
        )
    history = HISTORIES[name]
    args = TabletopArguments(
        chunk_size=CHUNK_SIZE,
        history=history.frames,
        history_stride=history.stride,
        question_share=0,
        noise_scale=1.0,
    )
    folder, steps = options.output / f"policy_{name}", options.max_steps
    once(
        folder.with_suffix(".json"),
        lambda: fine_tune(TABLETOP_VLM, demonstrations, folder, args, steps, options.seed),
    )


def measure(options: argparse.Namespace) -> str:
    """Roll both policies out in the same scenes; write rows, a table and the picture, and return the table."""
    rows = {}
    for name in options.policies:
        rows[name] = once(options.output / f"rollouts_{name}.json", lambda name=name: outcomes(options, name))
    lines = ["| policy | sees | success | 95 % Wilson interval |", "|---|---|--:|---|"]
    for name, row in rows.items():
        rate = success_rate([bit == "1" for bit in row["success"]])
        bounds = f"{100 * rate['low']:.1f} - {100 * rate['high']:.1f} %"
        sees = HISTORIES[name]
        lines.append(f"| {name} history | {sees} | {100 * rate['rate']:.1f} % of {rate['episodes']} | {bounds} |")
    lines.append(f"| chance | | {100 * CHANCE:.1f} % | |")
    if len(rows) == len(HISTORIES):
        outcomes_of = [np.array([bit == "1" for bit in rows[name]["success"]]) for name in HISTORIES]
        test = asdict(mcnemar_test(*outcomes_of))
        lines.append(f"\nIn the same scenes: p = {test['p_value']:.2g} (McNemar's exact test)")
        only_with = np.flatnonzero(outcomes_of[1] & ~outcomes_of[0])
        if len(only_with):
            draw(options, first=int(only_with[0]))
    table = "\n".join(lines)
    write_whole(options.output / "table.md", table + "\n")
    return table


def outcomes(options: argparse.Namespace, name: str) -> dict:
    """What happened in every scene."""
    policy, env = the_policy(options, name), HiddenTabletopVectorEnv(min(options.num_episodes, 100))
    scenes = range(EVALUATION_SEED, EVALUATION_SEED + options.num_episodes)
    episodes = rollout(policy, env, scenes, REPLAN_EVERY, env.max_steps, description=name).episodes
    return {
        "success": "".join("1" if episode.success else "0" for episode in episodes),
        "steps": [episode.steps for episode in episodes],
    }


def the_policy(options: argparse.Namespace, name: str) -> PipelinePolicy:
    return PipelinePolicy(pipeline("action-prediction", model=str(options.output / f"policy_{name}")), options.seed)


def draw(options: argparse.Namespace, first: int) -> None:
    """Draw a scene in which only the policy with history succeeds: what both see, row by row."""
    env = HiddenTabletopVectorEnv(1)
    rows = {name: frames_of(the_policy(options, name), env, EVALUATION_SEED + first) for name in HISTORIES}
    figure = Figure(figsize=(2.2 * (len(DRAWN) + 1), 2.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(DRAWN) + 1)
    for row, (name, (episode, frames)) in zip(axes, rows.items(), strict=True):
        for axis, step in zip(row, [*DRAWN, len(frames) - 1], strict=True):
            axis.imshow(frames[min(step, len(frames) - 1)])
            axis.set_title(f"step {min(step, len(frames) - 1)}", fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"{name} history")
        outcome = "the one that was meant" if episode.success else "another one"
        row[-1].set_title(f"step {len(frames) - 1}: {outcome}", fontsize=9)
    figure.suptitle(f"\u201c{episode.instruction}\u201d: shown for {SHOWN} steps, released after {HELD}", fontsize=10)
    figure.savefig(options.output / "history.png", dpi=110)


def frames_of(policy: PipelinePolicy, env: HiddenTabletopVectorEnv, seed: int) -> tuple[Episode, np.ndarray]:
    """An episode and its pictures, (steps + 1, height, width, 3)."""
    (episode,) = rollout(policy, env, [seed], REPLAN_EVERY, env.max_steps, record=1).episodes
    return episode, episode.frames


def cost() -> str:
    """What the frames of one camera cost: tokens of the prompt, and what the expert reads of them."""
    lines = ["| VLM | image | frames | tokens of a camera | its keys and values, MB |", "|---|---|--:|--:|--:|"]
    for name, size in SIZES.items():
        for frames in FRAMES:
            lines.append(
                f"| {name} | {size.image} | {frames} | {frames * size.tokens:,} | {size.megabytes(frames):.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

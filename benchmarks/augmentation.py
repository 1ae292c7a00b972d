"""`python -m benchmarks.augmentation`: does image augmentation help where light and camera are not those of the data?

A policy of the tabletop learns its task without augmentation, for each seed. Two go on from it, with the same
demonstrations, steps and questions; one of them with `augment="robot"`. (From the small VLM itself, which has seen the
tabletop's sharp pictures alone, 700 steps with augmentation are too few to learn the task at all; see
`benchmarks/README.md`.) Both act in the same scenes: as recorded; darker and brighter by 30 %; with the camera
shifted by 5 % of the picture's width, in another direction in every scene; and with another light and another shift in
every scene.

What is measured goes to OUTPUT/row_*.json; the same command goes on where it was stopped.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

from kivla.demo.stages import EVALUATION_SEED, TabletopArguments, fine_tune, once, record
from kivla.named_models import TABLETOP_VLM
from kivla.simulation import TabletopVectorEnv
from kivla.simulation.rollout import PipelinePolicy, rollout
from kivla.simulation.rollout_evaluation import success_rate
from kivla.simulation.tabletop.rendering import BACKGROUND
from kivla.training.evaluation.confidence import paired_difference

from .options import Distinct, claim, count, natural


@dataclass(frozen=True)
class View:
    """How the camera sees the scenes.

    Attributes:
        light: the smallest and the largest factor of the brightness; each scene has its own, uniform between them.
        shift: how far the camera is moved, as a share of the picture's width; each scene has its own direction.
    """

    name: str
    light: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0


VIEWS = (
    View("as recorded"),
    View("30 % darker", (0.7, 0.7)),
    View("30 % brighter", (1.3, 1.3)),
    View("camera shifted by 5 %", shift=0.05),
    View("light ±30 % and camera shifted by 5 %", (0.7, 1.3), 0.05),
)
PLAIN, AUGMENTED = "none", "robot"


class SeenDifferently(TabletopVectorEnv):
    """The tabletop in another light, by a camera that was moved. The table itself stays."""

    def __init__(self, num_envs: int, view: View):
        super().__init__(num_envs)
        self.view = view

    def reset(self, *, seed, options=None) -> tuple[dict, dict]:
        seeds = list(self._seeds(seed))
        rngs = [np.random.default_rng((s, 1)) for s in seeds]  # not what the scene itself is drawn from
        self.light = [rng.uniform(*self.view.light) for rng in rngs]
        angles = [rng.uniform(0, 2 * np.pi) for rng in rngs]
        self.shifts = [self.view.shift * self.image_size * np.array([np.cos(a), np.sin(a)]) for a in angles]
        return super().reset(seed=seeds, options=options)

    def _observe(self) -> dict:
        observation = super()._observe()
        seen = [
            see(image, light, shift)
            for image, light, shift in zip(observation["images"]["top"], self.light, self.shifts, strict=True)
        ]
        return {**observation, "images": {"top": np.stack(seen)}}


def see(image: np.ndarray, light: float, shift: np.ndarray) -> np.ndarray:
    """Shift a picture by (x, y) pixels over an endless table, and multiply its brightness."""
    places = (1, 0, -shift[0], 0, 1, -shift[1])
    moved = Image.fromarray(image).transform(
        image.shape[1::-1], Image.Transform.AFFINE, places, Image.Resampling.BILINEAR, fillcolor=BACKGROUND
    )
    return (np.asarray(moved) * light).round().clip(0, 255).astype(np.uint8)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.augmentation", description=__doc__)
    parser.add_argument("--first_steps", type=count, default=700, help="steps without augmentation (default: 700)")
    parser.add_argument("--max_steps", type=count, default=1400, help="steps of each that follow (default: 1400)")
    parser.add_argument("--learn_vision", action="store_true", help="the vision tower learns, too, in what follows")
    parser.add_argument("--num_episodes", type=count, default=200, help="scenes, the same for all (default: 200)")
    parser.add_argument("--num_demonstrations", type=count, default=1500, help="(default: 1500)")
    parser.add_argument(
        "--seeds", type=natural, nargs="+", action=Distinct, default=[0, 1], help="a run each, of both (default: 0 1)"
    )
    parser.add_argument("--threads", type=count, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("outputs/augmentation"), help="where everything goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    facts = {name: value for name, value in vars(options).items() if name not in ("output", "threads", "seeds")}
    claim(parser, options.output, facts, ("*.json", "demonstrations"))
    print(format_rows(measure(options), options.seeds))


def measure(options: argparse.Namespace) -> dict[str, dict[str, list[bool]]]:
    """Train the policies and let them act; what is there is not done again.

    Returns:
        By view and augmentation: success in every scene, of one seed after the other.
    """
    args = TabletopArguments(num_demonstrations=options.num_demonstrations, noise_scale=1.0)
    demonstrations = options.output / "demonstrations"
    record(demonstrations, args)
    outcomes = {view.name: {PLAIN: [], AUGMENTED: []} for view in VIEWS}

    def train(start: str | Path, name: str, max_steps: int, seed: int, augment: str, args=args) -> Path:
        policy = options.output / f"policy_{name}_{seed}"
        once(
            policy.with_suffix(".json"),
            lambda: fine_tune(start, demonstrations, policy, args, max_steps, seed, augment=augment),
        )
        return policy

    later = replace(args, freeze_vision=not options.learn_vision)
    for seed in options.seeds:
        first = train(TABLETOP_VLM, "first", options.first_steps, seed, PLAIN)
        for augment in (PLAIN, AUGMENTED):
            policy = train(first, augment, options.max_steps, seed, augment, later)
            for number, view in enumerate(VIEWS):
                row = once(
                    options.output / f"row_{augment}_{seed}_{number}.json",
                    lambda policy=policy, view=view: {"success": roll_out(policy, view, options.num_episodes)},
                )
                outcomes[view.name][augment] += row["success"]
    return outcomes


def roll_out(policy: Path, view: View, num_episodes: int) -> list[bool]:
    """Success in every scene."""
    env = SeenDifferently(min(num_episodes, 100), view)
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + num_episodes)
    acts = PipelinePolicy(pipeline("action-prediction", model=str(policy)))
    result = rollout(acts, env, seeds, TabletopArguments.replan_every, env.max_steps, description=view.name)
    return result.success.tolist()


def format_rows(outcomes: dict[str, dict[str, list[bool]]], seeds: list[int]) -> str:
    """The success rates as a Markdown table, with 95 % Wilson intervals and the paired difference (Newcombe)."""
    count = len(outcomes[VIEWS[0].name][PLAIN]) // len(seeds)
    lines = [
        "| the camera sees the scenes | went on without augmentation | with `augment=robot` | difference, in points |",
        "|---|--:|--:|--:|",
    ]
    for name, row in outcomes.items():
        difference = paired_difference(row[AUGMENTED], row[PLAIN])
        mean, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
        rates = f"{_percent(row[PLAIN])} | {_percent(row[AUGMENTED])}"
        lines.append(f"| {name} | {rates} | {mean:+.1f} ({low:+.1f} to {high:+.1f}) |")
    runs = "1 run" if len(seeds) == 1 else f"{len(seeds)} runs"
    return "\n".join([*lines, "", f"{runs} of each (seeds {seeds}), {count} scenes each, the same for all."])


def _percent(outcomes: list[bool]) -> str:
    rate = success_rate(outcomes)
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.1f} - {100 * rate['high']:.1f})"


if __name__ == "__main__":
    main()

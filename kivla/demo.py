"""`kivla demo`: the whole chain on a small machine, in a few minutes.

A small VLM is made from a config (no pretrained weights are needed), fine-tuned with knowledge insulation on a small
LeRobot dataset, saved, loaded again with `pipeline("action-prediction")`, and its chunks are compared with the
demonstrated ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import pipeline

from . import LeRobotDataset, train
from .cli import parse
from .predict import draw, predict_dataset
from .tiny_vlm import save_tiny_vlm

CHUNK_SIZE = 16
HELD_OUT = 1  # one of the two "reach" episodes


@dataclass
class DemoArguments:
    dataset: str = field(default="tests/data/lerobot_v3_metaworld", metadata={"help": "LeRobot dataset to learn from."})
    output_dir: str = field(default="outputs/demo", metadata={"help": "Where everything goes."})
    max_steps: int = field(default=700, metadata={"help": "Optimiser steps."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order and noise."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((DemoArguments,), arguments, prog="kivla demo")
    folder = Path(args.output_dir)
    vlm, policy = folder / "vlm", folder / "policy"
    print(f"1. A small VLM with random weights: {vlm}")
    save_tiny_vlm(vlm, seed=args.seed)

    print("2. Fine-tuning with knowledge insulation: the VLM learns action tokens, the expert learns the flow")
    train.run(
        [
            *("--vlm", str(vlm), "--dataset", args.dataset, "--eval_episodes", str(HELD_OUT)),
            *("--output_dir", str(policy), "--max_steps", str(args.max_steps), "--seed", str(args.seed)),
            *("--chunk_size", str(CHUNK_SIZE), "--max_action_dim", "4", "--max_state_dim", "4"),
            *("--expert_hidden_size", "128", "--expert_intermediate_size", "384", "--num_flow_samples", "4"),
            *("--per_device_train_batch_size", "16", "--learning_rate", "5e-4", "--expert_learning_rate", "2e-3"),
            *("--lr_scheduler_type", "cosine", "--warmup_steps", "50", "--logging_steps", "50"),
            *("--action_vocab_size", "256", "--save_strategy", "no", "--report_to", "none"),
            *("--dataloader_pin_memory", "false"),
        ]
    )

    print('\n3. Loading it again: pipeline("action-prediction")')
    pipe = pipeline("action-prediction", model=str(policy))
    data = LeRobotDataset(args.dataset, CHUNK_SIZE, cameras=pipe.processor.cameras)
    results = predict_dataset(pipe, data, num_frames=64, seed=args.seed)
    picture = folder / "chunks.png"
    draw(picture, results, data, count=4)
    print(
        f"   {len(results['predicted'])} frames of all episodes: mean absolute error {results['action_mae']:.4f} in "
        f"robot units, {results['times_better_than_mean']:.2f} times better than always the mean action "
        f"({results['mean_action_mae']:.4f}); episode {HELD_OUT} was held out\n"
        f"   Predicted against demonstrated: {picture}"
    )

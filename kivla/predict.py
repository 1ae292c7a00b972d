"""`kivla predict`: action chunks of a trained policy, on a dataset or on images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers import pipeline

from . import LeRobotDataset
from .cli import parse
from .plots import plot_chunks


@dataclass
class PredictArguments:
    """Give --dataset, or --images with --text (and --state if the policy reads one)."""

    policy: str = field(metadata={"help": "Trained KIVLA policy: a Hub id or a folder."})
    dataset: str | None = field(default=None, metadata={"help": "LeRobot dataset to predict on."})
    episodes: list[int] | None = field(default=None, metadata={"help": "Episodes of it; all."})
    num_frames: int = field(default=64, metadata={"help": "Frames to predict at, spread evenly."})
    num_plots: int = field(default=4, metadata={"help": "Chunks to draw, spread evenly."})
    images: list[str] | None = field(default=None, metadata={"help": "Image files, in the order of the cameras."})
    text: str | None = field(default=None, metadata={"help": "Instruction."})
    state: list[float] | None = field(default=None, metadata={"help": "The robot's state."})
    robot: str | None = field(default=None, metadata={"help": "Whose data it is, of a policy of several robots."})
    num_steps: int | None = field(default=None, metadata={"help": "Euler steps; the policy's default."})
    seed: int = field(default=0, metadata={"help": "Seed of the noise."})
    batch_size: int = field(default=16, metadata={"help": "Observations at once."})
    output_dir: str = field(default="outputs/predict", metadata={"help": "Where picture and JSON go."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((PredictArguments,), arguments, prog="kivla predict", positional="policy")
    if (args.dataset is None) == (args.images is None):
        raise SystemExit("kivla predict: give either --dataset, or --images and --text.")
    others = ("text", "state") if args.dataset is not None else ("episodes",)
    for name in [name for name in others if getattr(args, name) is not None]:
        reason = "there is no --dataset" if args.dataset is None else "--dataset has its own"
        raise SystemExit(f"kivla predict: --{name} cannot apply: {reason}.")
    pipe = pipeline("action-prediction", model=args.policy)
    options = {"seed": args.seed, "num_steps": args.num_steps}
    if args.images is not None:
        observation = {"images": args.images, "text": args.text or "", "state": args.state, "robot": args.robot}
        result = pipe(observation, **options)
        np.set_printoptions(precision=4, suppress=True)
        print(result["actions"])
        return
    processor = pipe.processor
    cameras = processor.robot(args.robot).cameras
    data = LeRobotDataset(args.dataset, processor.chunk_size, args.episodes, cameras, args.robot)
    results = predict_dataset(pipe, data, args.num_frames, args.batch_size, **options)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report = {name: value for name, value in results.items() if isinstance(value, float)}
    (folder / "predict.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(folder / "chunks.png", results, data, args.num_plots)
    print(
        f"{len(results['predicted'])} chunks: mean absolute error {report['action_mae']:.4f} in robot units; always "
        f"the mean action: {report['mean_action_mae']:.4f} ({report['times_better_than_mean']:.2f} times better)\n"
        f"{folder / 'chunks.png'}"
    )


def predict_dataset(pipe, data: LeRobotDataset, num_frames: int, batch_size: int = 16, **options) -> dict:
    """Predict at evenly spread frames and compare with what was demonstrated.

    Returns:
        `episodes` and `frames` (n,) and `texts`, `predicted` and `demonstrated` (n, H, D) in robot units, `decoded`
        (n,) bool, False where action tokens were no chunk (`predicted` is NaN there), and over all other real values
        `action_mae`, `mean_action_mae` (always the mean action of the policy's training data) and
        `times_better_than_mean`.

    Raises:
        ValueError: no chunk decoded.
    """
    frames = np.unique(np.linspace(0, len(data) - 1, min(num_frames, len(data))).round().astype(int))
    predicted, examples = [], []
    for start in tqdm(range(0, len(frames), batch_size), desc="Predicting", leave=False):
        batch = [data[int(i)] for i in frames[start : start + batch_size]]
        observations = [{key: e[key] for key in ("images", "text", "state", "robot") if key in e} for e in batch]
        predicted += [result["actions"] for result in pipe(observations, **options)]
        examples += batch
    decoded = np.array([chunk is not None for chunk in predicted])
    if not decoded.any():
        raise ValueError(
            f"None of the {len(decoded)} sequences of action tokens is a chunk of {data.chunk_size} x "
            f"{data.action_dim} values: there is nothing to measure. Train the policy longer, or let it act by flow."
        )
    missing = np.full((data.chunk_size, data.action_dim), np.nan, dtype=np.float32)
    predicted = np.stack([missing if chunk is None else chunk for chunk in predicted])
    demonstrated = np.stack([e["actions"] for e in examples])
    real = ~np.stack([e["action_is_pad"] for e in examples]) & decoded[:, None]
    statistics = pipe.processor.robot(data.robot).statistics or data.statistics
    mean = statistics["actions"]["mean"]
    error, mean_error = np.abs(predicted - demonstrated)[real].mean(), np.abs(mean - demonstrated)[real].mean()
    return {
        "episodes": [e["episode_index"] for e in examples],
        "frames": [e["frame_index"] for e in examples],
        "predicted": predicted,
        "decoded": decoded,
        "demonstrated": demonstrated,
        "texts": [e["text"] for e in examples],
        "action_mae": float(error),
        "mean_action_mae": float(mean_error),
        "times_better_than_mean": float(mean_error / error),
    }


def draw(path: Path, results: dict, data: LeRobotDataset, count: int) -> None:
    """Some of the predicted chunks against the demonstrated ones."""
    # From the middle of each of `count` equal stretches: the ends of episodes are mostly padding.
    chosen = ((np.arange(count) + 0.5) * len(results["frames"]) / count).astype(int)
    plot_chunks(
        path,
        results["predicted"][chosen],
        results["demonstrated"][chosen],
        data.fps,
        [f"{results['texts'][i]}\nepisode {results['episodes'][i]}, frame {results['frames'][i]}" for i in chosen],
        data.action_names,
    )

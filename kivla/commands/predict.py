"""`kivla predict`: action chunks of a trained policy, on a dataset or on images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from ..command_line import parse, policy_pipeline
from ..modeling_kivla.pipeline_kivla import DTYPE_OPTION, NOISE_SCALE_OPTION
from ..processing.camera_names import CAMERAS_HELP, parse_cameras
from ..training.data.camera_naming import unseen_note
from ..training.dataset_options import DatasetOptions
from ..training.evaluation.predictions import draw, predict_dataset
from ..training.run_folder import refuse_inputs
from ..training.training_facts import compare_with_policy


@dataclass
class PredictArguments(DatasetOptions):
    """Give --dataset, or --images with --text (and --state if the policy reads one)."""

    policy: str = field(metadata={"help": "Trained KIVLA policy: a Hub id or a folder."})
    dataset: str | None = field(default=None, metadata={"help": "LeRobot dataset to predict on."})
    num_frames: int = field(default=64, metadata={"help": "Frames to predict at, spread evenly."})
    num_plots: int = field(default=4, metadata={"help": "Chunks to draw, spread evenly."})
    images: list[str] | None = field(
        default=None, metadata={"help": "Image files, in the order of the policy's cameras, or of --cameras."}
    )
    text: str | None = field(default=None, metadata={"help": "Instruction."})
    state: list[float] | None = field(default=None, metadata={"help": "The robot's state."})
    robot: str | None = field(default=None, metadata={"help": "Whose data it is, of a policy of several robots."})
    cameras: list[str] | None = field(default=None, metadata={"help": CAMERAS_HELP})
    num_steps: int | None = field(default=None, metadata={"help": "Euler steps; the policy's default."})
    noise_scale: float | None = field(default=None, metadata=NOISE_SCALE_OPTION)
    dtype: str = field(default="auto", metadata=DTYPE_OPTION)
    seed: int = field(default=0, metadata={"help": "Seed of the noise."})
    batch_size: int = field(default=16, metadata={"help": "Observations at once."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the policy."})
    output_dir: str = field(default="outputs/predict", metadata={"help": "Where picture and JSON go."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((PredictArguments,), arguments, prog="kivla predict", positional="policy")
    refuse_inputs(args.output_dir, policy=args.policy, dataset=args.dataset)
    if (args.dataset is None) == (args.images is None):
        raise ValueError("Give either --dataset, or --images and --text.")
    of_dataset = [entry.name for entry in fields(DatasetOptions) if entry.default is None]
    others = ("text", "state") if args.dataset is not None else of_dataset
    for name in [name for name in others if getattr(args, name) is not None]:
        reason = "there is no --dataset" if args.dataset is None else "--dataset has its own"
        raise ValueError(f"--{name} cannot apply: {reason}.")
    pipe = policy_pipeline(args.policy, args.trust_remote_code, dtype=args.dtype)
    names = parse_cameras(args.cameras)
    pipe.processor.check_cameras(names)
    options = {"seed": args.seed, "num_steps": args.num_steps, "noise_scale": args.noise_scale}
    options["cameras"] = names
    # One observation, from the command line.
    if args.images is not None:
        observation = {
            "images": args.images,
            "cameras": names and [name for name in names.values() if name],
            "text": args.text or "",
            "state": args.state,
            "robot": args.robot,
        }
        result = pipe(observation, **options)
        np.set_printoptions(precision=4, suppress=True)
        print(result["actions"])
        return
    # Or frames of a dataset, with what was demonstrated beside what is predicted.
    processor = pipe.processor
    there = args.camera_names(args.dataset)
    cameras = processor.robot(args.robot).among(there, names)
    data = args.open(args.dataset, processor.chunk_size, cameras, args.robot, pipe.observation_history)
    for note in [*data.notes, *unseen_note(data, there)]:
        print(f"{data.name}: {note}")
    for note in compare_with_policy(args.policy, processor.robot(args.robot), data):
        print(note)
    results = predict_dataset(pipe, data, args.num_frames, args.batch_size, **options)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report = {name: value for name, value in results.items() if isinstance(value, float)}
    (folder / "predict.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(folder / "chunks.png", results, data, args.num_plots)
    print(
        f"{len(results['predicted'])} chunks: mean absolute error {report['action_mae']:.4f} in robot units; of the "
        f"mean action {report['mean_action_mae']:.4f}; times better {report['times_better_than_mean']:.2f} (below 1: "
        f"worse)\n{folder / 'chunks.png'}"
    )

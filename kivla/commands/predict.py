"""`kivla predict`: action chunks of a trained policy, on a dataset or on images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from ..command_line import parse, policy_pipeline
from ..training.dataset_options import DatasetOptions
from ..training.evaluation.predictions import draw, predict_dataset
from ..training.policy_data_options import PolicyDataOptions
from ..training.policy_options import refuse
from ..training.run_folder import check_for_results

# What applies to frames of a dataset alone
_OF_FRAMES = ("num_frames", "num_plots", "batch_size", "output_dir", *(entry.name for entry in fields(DatasetOptions)))
_OF_IMAGES = ("text", "state")


@dataclass
class PredictArguments(PolicyDataOptions):
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
    batch_size: int = field(default=16, metadata={"help": "Observations at once."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the policy."})
    output_dir: str = field(default="outputs/predict", metadata={"help": "Where picture and JSON go."})

    def __post_init__(self):
        super().__post_init__()
        if (self.dataset is None) == (self.images is None):
            raise ValueError("Give either --dataset, or --images and --text.")
        given = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
        others, reason = (_OF_IMAGES, "--dataset has its own")
        if self.dataset is None:
            others, reason = (_OF_FRAMES, "there is no --dataset, and the one chunk is printed")
        refuse({name: reason for name in given if name in others})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((PredictArguments,), arguments, prog="kivla predict", positional="policy")
    if args.dataset is not None:
        check_for_results(args.output_dir, policy=args.policy, dataset=args.dataset)
    pipe = policy_pipeline(args.policy, args.trust_remote_code, dtype=args.dtype)
    options = args.acting_options(pipe)
    # One observation, from the command line.
    if args.images is not None:
        names = options["cameras"]
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
    data = args.open_for(pipe, args.policy, args.dataset)
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

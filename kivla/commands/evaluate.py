"""`kivla evaluate`: what a policy predicts against what was demonstrated, in figures and on one page of plots."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..command_line import parse, policy_pipeline, refusals
from ..processing.camera_names import CAMERAS_HELP, parse_cameras
from ..training.data.camera_naming import unseen_note
from ..training.dataset_options import DatasetOptions
from ..training.evaluation.policy_evaluation import draw, format_report, measure_answers, measure_chunks, predict
from ..training.evaluation.tokenizer_error import measure
from ..training.training_facts import trained_columns


@dataclass
class EvaluateArguments(DatasetOptions):
    policy: str = field(metadata={"help": "Trained KIVLA policy: a Hub id or a folder."})
    dataset: str = field(metadata={"help": "LeRobot dataset to measure on, best on held-out episodes."})
    num_frames: int = field(default=256, metadata={"help": "Frames to predict at, spread evenly."})
    robot: str | None = field(default=None, metadata={"help": "Whose data it is, of a policy of several robots."})
    cameras: list[str] | None = field(default=None, metadata={"help": CAMERAS_HELP})
    num_steps: int | None = field(default=None, metadata={"help": "Euler steps; the policy's default."})
    seed: int = field(default=0, metadata={"help": "Seed of the noise."})
    batch_size: int = field(default=16, metadata={"help": "Observations at once."})
    acts_by: str | None = field(default=None, metadata={"help": "flow or tokens; the policy's own way."})
    vlm_dataset: str | None = field(
        default=None,
        metadata={"help": "Questions to ask as well: a folder of a `datasets` dataset with images and messages; JSON."},
    )
    num_plots: int = field(default=4, metadata={"help": "Chunks to draw, spread evenly."})
    output_dir: str = field(default="outputs/evaluate", metadata={"help": "Where figures and plots go."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((EvaluateArguments,), arguments, prog="kivla evaluate", positional="policy")
    pipe = policy_pipeline("kivla evaluate", args.policy)
    robot = pipe.processor.robot(args.robot)
    with refusals("kivla evaluate"):
        names = parse_cameras(args.cameras)
        pipe.processor.check_cameras(names)
        there = args.camera_names(args.dataset)
        cameras = robot.among(there, names)
    if args.dataset_format == "lerobot" and args.dataset_keys is None:
        for key, columns in trained_columns(args.policy, args.robot).items():
            if getattr(args, key) is None:
                setattr(args, key, columns)
                print(f"{args.dataset}: read as what the policy was trained on, --{key} {' '.join(columns)}")
    data = args.open(args.dataset, pipe.processor.chunk_size, cameras, args.robot)
    for note in [*data.notes, *unseen_note(data, there)]:
        print(f"{data.name}: {note}")
    options = {"seed": args.seed, "num_steps": args.num_steps, "cameras": names}
    if args.acts_by is not None:
        options["acts_by"] = args.acts_by
    chunks = predict(pipe, data, args.num_frames, args.batch_size, **options)
    acts_by = args.acts_by or pipe.model.config.acts_by
    report = {**asdict(args), "acts_by": acts_by, **measure_chunks(chunks, data), "tokenizer": None, "answers": None}
    if pipe.processor.action_tokenizer is not None:
        report["tokenizer"] = measure(pipe.processor.action_tokenizer, chunks["demonstrated"], robot.actions)
    if args.vlm_dataset is not None:
        report["answers"] = measure_answers(pipe, args.vlm_dataset, args.batch_size)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluate.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(folder / "evaluate.png", chunks, report, data.fps, args.num_plots)
    print(f"{format_report(report)}\n\n{folder / 'evaluate.json'}\n{folder / 'evaluate.png'}")

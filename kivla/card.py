"""`kivla card`: the card of a trained policy, from the facts that its training left, or of a LeRobot dataset."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import pipeline

from .cli import parse
from .hub_cards import fine_tuned_card, lerobot_dataset_card
from .machine import machine
from .predict import draw, predict_dataset
from .training import KIVLATrainer, LeRobotDataset

FACTS = "training_facts.json"


@dataclass
class CardArguments:
    path: str = field(metadata={"help": "Folder of a policy from `kivla train`, or of a LeRobot dataset."})
    license: str | None = field(default=None, metadata={"help": "Identifier of the Hub, e.g. apache-2.0."})
    name: str | None = field(default=None, metadata={"help": "Title of the card; the folder's name."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((CardArguments,), arguments, prog="kivla card", positional="path")
    folder = Path(args.path)
    if (folder / "meta" / "info.json").is_file():
        lerobot_dataset_card(dataset_facts(folder, args.name), args.license).save(folder / "README.md")
    elif (folder / FACTS).is_file():
        write_card(folder, args.license, args.name)
    else:
        raise SystemExit(
            f"{folder} is no LeRobot dataset and has no {FACTS}, which `kivla train` leaves with a policy and from "
            "which its card is made."
        )
    print(folder / "README.md")


def dataset_facts(folder: Path, name: str | None = None) -> dict:
    """What a card says of a LeRobot dataset."""
    data = LeRobotDataset(folder, chunk_size=1)
    parts = {
        "actions": ("action", data.action_names, data.action_dim),
        "state": ("state", data.state_names, data.state_dim),
    }
    return {
        "name": name or folder.resolve().name,
        "path": str(folder),
        "version": data.version,
        "episodes": data.num_episodes,
        "frames": len(data),
        "fps": data.fps,
        "minutes": len(data) / data.fps / 60,
        "robot_type": data.robot_type,
        "tasks": list(data.tasks.values()),
        "cameras": [
            {"name": camera, "shape": data.features[camera]["shape"], "dtype": data.features[camera]["dtype"]}
            for camera in data.cameras
        ],
        "vectors": [
            {
                "title": title,
                "names": names or [f"{title} {i}" for i in range(dim)],
                **{key: values.tolist() for key, values in data.statistics[part].items()},
            }
            for part, (title, names, dim) in parts.items()
            if part in data.statistics
        ],
    }


def write_card(folder: Path, license: str | None = None, name: str | None = None) -> None:
    """`README.md` in the policy's folder, from its `training_facts.json`."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if name is not None:
        facts["name"] = name
    fine_tuned_card(facts, license).save(folder / "README.md")


def write_facts(
    folder: Path,
    trainer: KIVLATrainer,
    sources: Sequence[LeRobotDataset],
    metrics: dict[str, float],
    sets: dict[str, dict[str, float]],
    arguments: Sequence[str],
    **facts,
) -> None:
    """What a card says of a policy, and the picture of its chunks.

    Args:
        folder: of the saved policy.
        sources: what it was trained on.
        metrics, sets: of its evaluation.
        arguments: of `kivla train`.
        **facts: `recipe`, `what_it_is`, `vlm`, `vlm_dataset`, `trains_vlm_data`, `minutes`.
    """
    pipe = pipeline("action-prediction", model=str(folder))
    model, processor, args = pipe.model, pipe.processor, trainer.args
    results = predict_dataset(pipe, sources[0], num_frames=8, seed=0)
    draw(folder / "chunks.png", results, sources[0], count=4)
    tokenizer = processor.action_tokenizer
    robots = []
    for data in sources:
        robot = processor.robot(data.robot)
        statistics = (robot.statistics or data.statistics)["actions"]
        robots.append(
            {
                "name": data.robot,
                "dataset": data.name,
                "episodes": data.num_episodes,
                "frames": len(data),
                "fps": data.fps,
                "cameras": data.cameras,
                "action_names": data.action_names or [f"action {i}" for i in range(data.action_dim)],
                "state_names": data.state_names or [f"state {i}" for i in range(data.state_dim)],
                **{key: statistics[key].tolist() for key in ("q01", "q99", "mean", "std")},
            }
        )
    expert_parameters = sum(parameter.numel() for parameter in model.expert.parameters())
    batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    report = {
        "name": folder.resolve().name,
        "path": str(folder),
        "vlm_class": type(model.vlm).__name__,
        "vlm_parameters": sum(parameter.numel() for parameter in model.vlm.parameters()),
        "expert_parameters": expert_parameters,
        "acts_by": model.config.acts_by,
        "chunk_size": model.config.chunk_size,
        "action_tokens": "none" if tokenizer is None else f"{tokenizer.kind}, {tokenizer.vocab_size} codes",
        "state_encoding": processor.state_encoding,
        "normalization": processor.normalization,
        "max_steps": trainer.state.max_steps,
        "batch_size": batch_size,
        "machine": machine(),
        "robots": robots,
        "example_text": results["texts"][0],
        "command": shlex.join(["kivla", "train", *arguments]),
        "sets": sets,
        "before": metrics.get("before_vlm_answer_accuracy"),
        "after": metrics.get("eval_vlm_answer_accuracy"),
        **facts,
    }
    (folder / FACTS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

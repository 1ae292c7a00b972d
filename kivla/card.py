"""`kivla card`: the card of a trained policy, from the facts that its training left, or of a LeRobot dataset."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from huggingface_hub import RepoCard
from transformers import pipeline

from .cli import parse
from .hub_cards import fine_tuned_card, lerobot_dataset_card
from .machine import machine
from .predict import draw, predict_dataset
from .training import KIVLATrainer, LeRobotDataset
from .training.policy_card import evaluated_sets, shown, trainer_facts
from .training.readme import split, write_readme

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
        write(folder / "README.md", partial(lerobot_dataset_card, dataset_facts(folder, args.name)), args.license)
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
        "path": shown(folder),
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
    """`README.md` in the policy's folder, from its `training_facts.json`; what its author wrote there stays."""
    facts = {**json.loads((folder / FACTS).read_text(encoding="utf-8")), "path": shown(folder)}
    if name is not None:
        facts["name"] = name
    write(folder / "README.md", partial(fine_tuned_card, facts), license)


def write(path: Path, card: Callable[[str | None], RepoCard], license: str | None) -> None:
    """Write a card; without a license, the one that its author wrote into the metadata stays."""
    if license is None and path.is_file():
        license = split(path.read_text(encoding="utf-8"))[0].get("license")
    if write_readme(path, card(license)):
        print(f"{path}: its author's words stay; the card stands between the two comments.")


def write_facts(
    folder: Path,
    trainer: KIVLATrainer,
    sources: Sequence[LeRobotDataset],
    metrics: dict[str, float],
    arguments: Sequence[str],
    **facts,
) -> None:
    """What a card says of a policy, and the picture of its chunks.

    Args:
        folder: of the saved policy.
        sources: what it was trained on.
        metrics: of its evaluation.
        arguments: of `kivla train`.
        **facts: `recipe`, `what_it_is`, `vlm`, `vlm_dataset`, `trains_vlm_data`, `minutes`.
    """
    pipe = pipeline("action-prediction", model=str(folder))
    results = predict_dataset(pipe, sources[0], num_frames=8, seed=0)
    draw(folder / "chunks.png", results, sources[0], count=4)
    trainer.card_facts = {
        "example_text": results["texts"][0],
        "machine": machine(),
        "command": shlex.join(["kivla", "train", *map(_without_machine, arguments)]),
        "sets": evaluated_sets(metrics),
        "before": metrics.get("before_vlm_answer_accuracy"),
        "after": metrics.get("eval_vlm_answer_accuracy"),
        **facts,
        **{name: shown(facts[name]) for name in ("vlm", "vlm_dataset")},
    }
    report = {**trainer_facts(trainer, sources), **trainer.card_facts}
    (folder / FACTS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _without_machine(word: str) -> str:
    """An argument as strangers may read it: where something lies on this machine is not theirs to know."""
    return shown(word) if Path(word).is_absolute() else word

"""What the card of a trained policy says, written down at the end of its training: `training_facts.json`."""

import json
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from huggingface_hub import RepoCard
from transformers import pipeline
from transformers.utils import cached_file

from ..hub_cards import fine_tuned_card
from ..hub_cards.environment_info import environment_info
from ..hub_cards.hub_names import public_name, vlm_name
from ..hub_cards.readme import split_metadata, write_readme
from ..processing.robot_spec import RobotSpec
from .data.data_ranges import range_problems, size_differences
from .data.lerobot.vector_keys import NO_STATE, USUAL_KEYS
from .data.robot_dataset import RobotDataset
from .data_parallel import unsharded_init
from .evaluation.predictions import predict_dataset
from .policy_card import evaluated_sets, trainer_facts
from .trainer import KIVLATrainer

FACTS = "training_facts.json"


def write_card(folder: Path, license: str | None = None, name: str | None = None) -> None:
    """Write `README.md` in the policy's folder from its `training_facts.json`; what its author wrote there stays."""
    facts = {**json.loads((folder / FACTS).read_text(encoding="utf-8")), "path": public_name(folder)}
    if name is not None:
        facts["name"] = name
    write(folder / "README.md", partial(fine_tuned_card, facts), license)


def trained_columns(policy: str, robot: str | None) -> dict[str, list[str]]:
    """Columns of the data that a policy was trained on, where they are not LeRobot's own.

    Args:
        policy: a folder or a Hub id.
        robot: the robot's name, of a policy of several.

    Returns:
        `action_key` and `state_key`, those that are said: nothing for a policy whose training left no facts.
    """
    row = _trained_robot(policy, robot)
    keys = {name: row.get(name) for name, usual in USUAL_KEYS.items() if row.get(name) not in (None, [], usual)}
    if row.get("action_key") and row.get("state_key") == []:
        keys["state_key"] = [NO_STATE]
    return keys


def other_than_trained(policy: str, data: RobotDataset) -> list[str]:
    """Say where data has another rate, or other names of dimensions, than what a policy was trained on.

    Args:
        policy: a folder or a Hub id; of one whose training left no facts there is nothing to say.
    """
    row, notes = _trained_robot(policy, data.robot), []
    if row.get("fps") not in (None, data.fps):
        notes.append(
            f"{data.name} has {data.fps:g} frames a second, and what {policy} was trained on {row['fps']:g}: its "
            "chunks would take another time"
        )
    for vector, names in (("action", data.action_names), ("state", data.state_names)):
        before = row.get(f"{vector}_names")
        if before and names and list(names) != before and before != [f"{vector} {i}" for i in range(len(before))]:
            first = next((pair for pair in zip(before, names, strict=False) if pair[0] != pair[1]), (before, names))
            notes.append(
                f"{data.name} has other names of {vector} dimensions than what {policy} was trained on, first "
                f"{first[1]!r} where that had {first[0]!r}: are they the same, in the same order?"
            )
    return notes


def compare_with_policy(policy: str, robot: RobotSpec, data: RobotDataset) -> list[str]:
    """Say in what data differ from what a policy acts on, before it is to act on them.

    Args:
        policy: a folder or a Hub id.
        robot: what its processor knows of the robot whose data it is.

    Raises:
        ValueError: other numbers of dimensions.
    """
    if differences := size_differences(robot, data):
        raise ValueError(f"{policy} cannot act on these data: {'; '.join(differences)}.")
    return other_than_trained(policy, data) + [problem.text for problem in range_problems(robot, data)]


def _trained_robot(policy: str, robot: str | None) -> dict:
    """What a policy's training facts say of the data of a robot; nothing without any."""
    path = cached_file(policy, FACTS, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return {}
    rows = json.loads(Path(path).read_text(encoding="utf-8")).get("robots", [])
    return next((row for row in rows if row["name"] == robot), {})


def write(path: Path, card: Callable[[str | None], RepoCard], license: str | None) -> None:
    """Write a card; without a license, the one that its author wrote into the metadata stays."""
    if license is None and path.is_file():
        license = split_metadata(path.read_text(encoding="utf-8"))[0].get("license")
    if write_readme(path, card(license)):
        print(f"{path}: its author's words stay; the card stands between the two comments.")


def chunks_to_show(trainer: KIVLATrainer, data: RobotDataset, folder: Path, num_frames: int = 8) -> dict | None:
    """Let the trainer's policy act at some frames, spread evenly; to be called on all devices.

    Args:
        folder: of the saved policy. With ZeRO-3, where no device holds all weights, it is read from there.

    Returns:
        What `draw` needs: `texts`, `episodes` and `frames` (n,); `predicted` and `demonstrated` (n, H, D), robot units.
        None on other devices than the first with ZeRO-3.
    """
    if trainer.is_zero3:
        if not trainer.is_world_process_zero():
            return None
        with unsharded_init(trainer.args):
            return predict_dataset(pipeline("action-prediction", model=str(folder)), data, num_frames, seed=0)
    examples = [data[i] for i in np.linspace(0, len(data) - 1, min(num_frames, len(data))).round().astype(int).tolist()]
    output = trainer.predict(examples)
    return {
        "texts": [example["text"] for example in examples],
        "episodes": [example["episode_index"] for example in examples],
        "frames": [example["frame_index"] for example in examples],
        "predicted": output.predictions[..., : data.action_dim],
        "demonstrated": output.label_ids[..., : data.action_dim],
    }


def write_facts(
    folder: Path,
    trainer: KIVLATrainer,
    sources: Sequence[RobotDataset],
    metrics: dict[str, float],
    arguments: Sequence[str] | None,
    **facts,
) -> None:
    """Write down what a card says of a policy.

    Args:
        folder: of the saved policy.
        sources: what it was trained on.
        metrics: of its evaluation.
        arguments: of `kivla train`; None if it was trained from Python.
        **facts: `example_text`, `recipe`, `what_it_is`, `vlm`, `made_from`, `cameras`, `vlm_dataset`,
            `trains_vlm_data`, `texts` (`summarize_texts` and where they are from; or None), `text_dataset`,
            `text_share` (of what it is trained on), `minutes`.
    """
    command = None if arguments is None else shlex.join(["kivla", "train", *map(_without_machine, arguments)])
    trainer.card_facts = {
        "machine": environment_info(),
        "command": command,
        "sets": evaluated_sets(metrics),
        "before": metrics.get("before_vlm_answer_accuracy"),
        "after": metrics.get("eval_vlm_answer_accuracy"),
        **facts,
        **{name: public_name(facts[name]) for name in ("vlm_dataset", "text_dataset")},
        "vlm": vlm_name(facts["vlm"]),
    }
    report = {**trainer_facts(trainer, sources), **trainer.card_facts}
    (folder / FACTS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _without_machine(word: str) -> str:
    """Write an argument as strangers may read it: where something lies on this machine is not theirs to know."""
    return public_name(word) if Path(word).is_absolute() else word

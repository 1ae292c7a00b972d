"""What the card of a trained policy says, written down at the end of its training: `training_facts.json`."""

import json
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import RepoCard
from transformers import pipeline

from ..hub_cards import fine_tuned_card
from ..hub_cards.environment_info import environment_info
from ..hub_cards.hub_names import shown
from ..hub_cards.readme import split, write_readme
from .data.robot_dataset import RobotDataset
from .evaluation.predictions import draw, predict_dataset
from .policy_card import evaluated_sets, trainer_facts
from .trainer import KIVLATrainer

FACTS = "training_facts.json"


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
    sources: Sequence[RobotDataset],
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
        "machine": environment_info(),
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

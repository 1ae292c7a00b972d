"""The card of a trained policy: what its trainer knows, and what `kivla train` adds (data, pictures, command)."""

import re
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel

from ..hub_cards.hub_names import public_name, vlm_name
from ..hub_cards.readme import join_readmes, readme_on_hub, split_metadata, with_card
from ..hub_cards.trained_policy import fine_tuned_card
from ..modeling_kivla.hub_card import base_name
from ..processing.vlm_processor import backend_name, image_backend
from .data.dataset_checks import robot_datasets
from .data.robot_dataset import RobotDataset

# Facts that a trainer alone does not know: the card is then silent about them.
UNKNOWN = dict.fromkeys(
    ("recipe", "what_it_is", "machine", "vlm_dataset", "trains_vlm_data", "command", "before", "after")
)

# Options of the library's `create_model_card` -> metadata of the Hub
_OPTIONS = {
    **{"tags": "tags", "language": "language"},
    **{"finetuned_from": "base_model", "tasks": "pipeline_tag", "dataset_tags": "datasets"},
}


def trainer_facts(trainer, sources: Sequence[RobotDataset] | None = None) -> dict:
    """Collect what a `KIVLATrainer` knows of its policy, for `fine_tuned_card`.

    Args:
        sources: the demonstrations; by default those of its training dataset.
    """
    # The policy itself, without what trains it.
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    processor, args, log = trainer.processing_class, trainer.args, trainer.state.log_history
    tokenizer = processor.action_tokenizer
    sources = robot_datasets(trainer.train_dataset) if sources is None else sources
    tasks = [task for data in sources for task in data.tasks.values()]
    metrics = {name: value for entry in log for name, value in entry.items()}  # the last of each
    folder = Path(args.output_dir)
    backend = image_backend(processor.vlm_processor)
    return {
        **UNKNOWN,
        "name": folder.resolve().name,
        "path": str(folder),
        "vlm": vlm_name(base_name(model)) if base_name(model) else type(model.vlm).__name__,
        "vlm_class": type(model.vlm).__name__,
        "vlm_parameters": sum(parameter.numel() for parameter in model.vlm.parameters()),
        "expert_parameters": sum(parameter.numel() for parameter in model.expert.parameters()),
        "acts_by": model.config.acts_by,
        "chunk_size": model.config.chunk_size,
        "action_tokens": "none" if tokenizer is None else f"{tokenizer.kind}, {tokenizer.vocab_size} codes",
        "state_encoding": processor.state_encoding,
        "history": None if processor.history == 1 else str(processor.observation_history),
        "images": None if backend is None else f"prepared by {backend_name(backend)}",
        "normalization": processor.normalization,
        "max_steps": trainer.state.global_step,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "minutes": metrics["train_runtime"] / 60 if "train_runtime" in metrics else None,
        "robots": _robots(processor, sources),
        "example_text": tasks[0] if tasks else "what the robot is to do",
        "sets": evaluated_sets(metrics),
    }


def write_trainer_card(trainer, license: str | None, model_name: str | None, options: dict) -> None:
    """Write the card of a trainer's policy: `KIVLATrainer.create_model_card` on its first process."""
    if unknown := sorted(options.keys() - _OPTIONS.keys()):
        raise TypeError(f"The card has no {', '.join(unknown)}; options are {', '.join(_OPTIONS)}.")
    path = Path(trainer.args.output_dir) / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    facts = {**trainer_facts(trainer), **trainer.card_facts}
    if trainer.hub_model_id is not None:
        text = with_author_words(trainer, text)
        facts["path"] = trainer.hub_model_id
    card = fine_tuned_card(
        facts | {"name": model_name or facts["name"]}, license or split_metadata(text)[0].get("license")
    )
    for name, value in options.items():
        if name == "tags":
            value = list(dict.fromkeys([*card.data.tags, *([value] if isinstance(value, str) else value)]))
        card.data[_OPTIONS[name]] = value
    path.write_text(with_card(text, card), encoding="utf-8")


def with_author_words(trainer, text: str) -> str:
    """Join a README of this machine with what its author wrote on the Hub."""
    on_hub = readme_on_hub(trainer.hub_model_id, trainer.args.hub_revision, trainer.args.hub_token)
    return join_readmes(on_hub, text) if on_hub else text


def evaluated_sets(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """Pick the errors of each set of demonstrations, in robot units; a set without a name is "evaluation"."""
    columns = ("action_mae", "mean_action_mae", "times_better_than_mean")
    found = [re.fullmatch(r"eval_(?:(.+)_)?times_better_than_mean", name) for name in metrics]
    names = {match[1] or "evaluation": match[0].removesuffix(columns[-1]) for match in found if match}
    return {name: {column: metrics[prefix + column] for column in columns} for name, prefix in names.items()}


def _robots(processor, sources: Sequence[RobotDataset]) -> list[dict]:
    """Describe each dataset; without any, each robot that the processor knows."""
    rows = []
    for name, data in [(data.robot, data) for data in sources] or [(name, None) for name in processor.robots]:
        robot = processor.robot(name)
        statistics = robot.statistics or (data.statistics if data else {})
        state_dim = data.state_dim if data else len(statistics.get("state", {}).get("mean", ()))
        of_data = {"dataset": None, "episodes": None, "frames": None, "fps": None, "notes": []}
        if data:
            of_data = {
                "dataset": public_name(data.name),
                "episodes": data.num_episodes,
                "frames": len(data),
                "fps": data.fps,
                "notes": list(data.notes),
                "action_key": list(data.action_key),
                "state_key": list(data.state_key),
            }
        rows.append(
            {
                "name": name,
                **of_data,
                "cameras": robot.cameras or (data.cameras if data else ["image"]),
                "action_names": (data and data.action_names) or [f"action {i}" for i in range(robot.action_dim)],
                "state_names": (data and data.state_names) or [f"state {i}" for i in range(state_dim)],
                "needs_state": robot.needs_state,
                "relative": None if robot.units.relative is None else str(robot.units.relative),
                "adapt_to_pi": robot.adapt_to_pi,
                **{kind: statistics["actions"][kind].tolist() for kind in _STATISTICS if "actions" in statistics},
            }
        )
    return rows


_STATISTICS = ("q01", "q99", "mean", "std")

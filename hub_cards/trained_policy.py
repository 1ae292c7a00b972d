"""The card of a trained policy."""

import math
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .hub_names import hub_id
from .rendering import render

FACTS = (
    "name", "path", "recipe", "what_it_is", "vlm", "vlm_class", "vlm_parameters", "expert_parameters", "acts_by",
    "chunk_size", "action_tokens", "state_encoding", "normalization", "max_steps", "batch_size", "minutes", "machine",
    "robots", "example_text", "vlm_dataset", "trains_vlm_data", "command", "sets", "before", "after",
)  # fmt: skip


def fine_tuned_card(facts: dict, license: str | None = None) -> ModelCard:
    """The card of a trained policy.

    Args:
        facts: what `kivla train` writes as `training_facts.json`, or `trainer_facts`.
        license: identifier of the Hub, e.g. "apache-2.0".

    Raises:
        ValueError: facts are missing; the message says which.
    """
    if missing := [name for name in FACTS if name not in facts]:
        raise ValueError(f"The card needs the facts {missing}, which training_facts.json does not have.")
    others = (facts["vlm_dataset"], facts.get("text_dataset"))  # without the second before there were plain texts
    data = ModelCardData(
        license=license,
        library_name="kivla",
        pipeline_tag="robotics",
        base_model=_hub_ids([facts["vlm"]]),
        datasets=_hub_ids([*(robot["dataset"] for robot in facts["robots"]), *others]),
        tags=["kivla", "lerobot", "vision-language-action", *([facts["recipe"]] if facts["recipe"] else [])],
        model_name=facts["name"],
        eval_results=_results(facts) or None,
    )
    return render(
        ModelCard, Path(__file__).with_name("trained_policy.md.jinja"), data, facts={**facts, "license": license}
    )


def _results(facts: dict) -> list[EvalResult]:
    """Every evaluated set is a dataset of its own in the model index, which takes those of one type, configuration and
    split together. What is not finite cannot stand there."""
    by_robot = {f"train_{robot['name']}": robot["dataset"] for robot in facts["robots"]}
    results = []
    for name, row in facts["sets"].items():
        dataset = Path(by_robot.get(name, facts["robots"][0]["dataset"]) or "demonstrations")
        dataset = str(dataset if hub_id(str(dataset)) else dataset.name)
        if math.isfinite(row["action_mae"]):
            results.append(
                EvalResult(
                    task_type="robotics",
                    dataset_type=dataset,
                    dataset_name=f"{dataset}, {name}",
                    dataset_split=name,
                    metric_type="mae",
                    metric_name="mean absolute action error, robot units",
                    metric_value=round(row["action_mae"], 6),
                )
            )
    return results


def _hub_ids(names: Sequence[str | None]) -> list[str] | None:
    """Those that are names on the Hub and not folders; None if there are none."""
    return list(dict.fromkeys(name for name in names if hub_id(name))) or None

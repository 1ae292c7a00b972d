"""Fills the templates of this folder."""

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

TEMPLATES = Path(__file__).parent


def tabletop_vlm_card(report: dict, command: str) -> ModelCard:
    """The card of a VLM from `kivla pretrain-tiny`.

    Args:
        report: what that command writes as `accuracy.json`.
        command: how to make the VLM again.
    """
    data = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["visual-question-answering", "synthetic"],
    )
    return ModelCard.from_template(
        data, template_path=str(TEMPLATES / "tabletop_vlm.md.jinja"), report=report, command=command
    )


def policy_card(report: dict, command: str) -> ModelCard:
    """The card of a policy from `kivla demo`.

    Args:
        report: what that command writes as `report.json`. Beside the card it leaves the pictures `training.png`,
            `chunks.png` and `contact_sheet.png`.
        command: how to make the policy again.
    """
    data = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="kivla",
        pipeline_tag="robotics",
        tags=["lerobot", "vla"],
        model_name="A tabletop policy",
        eval_results=[
            EvalResult(
                task_type="robotics",
                dataset_type="kivla-tabletop",
                dataset_name=result["title"],
                metric_type="success_rate",
                metric_value=result["success"]["rate"],
            )
            for result in report["rollouts"]
        ],
    )
    return ModelCard.from_template(
        data, template_path=str(TEMPLATES / "policy.md.jinja"), report=report, command=command
    )


FACTS = (
    "name", "path", "recipe", "what_it_is", "vlm", "vlm_class", "vlm_parameters", "expert_parameters", "acts_by",
    "chunk_size", "action_tokens", "state_encoding", "normalization", "max_steps", "batch_size", "minutes", "machine",
    "robots", "example_text", "vlm_dataset", "trains_vlm_data", "command", "sets", "before", "after",
)  # fmt: skip


def fine_tuned_card(facts: dict, license: str | None = None) -> ModelCard:
    """The card of a policy from `kivla train`.

    Args:
        facts: what `kivla train` writes as `training_facts.json`.
        license: identifier of the Hub, e.g. "apache-2.0".

    Raises:
        ValueError: facts are missing; the message says which.
    """
    if missing := [name for name in FACTS if name not in facts]:
        raise ValueError(f"The card needs the facts {missing}, which training_facts.json does not have.")
    results = [
        EvalResult(
            task_type="robotics",
            dataset_type=facts["robots"][0]["dataset"],
            dataset_name=name,
            metric_type="mae",
            metric_name="mean absolute action error, robot units",
            metric_value=round(row["action_mae"], 6),
        )
        for name, row in facts["sets"].items()
    ]
    data = ModelCardData(
        license=license,
        library_name="kivla",
        pipeline_tag="robotics",
        base_model=_hub_ids([facts["vlm"]]),
        datasets=_hub_ids([robot["dataset"] for robot in facts["robots"]] + [facts["vlm_dataset"]]),
        tags=["kivla", "lerobot", "vision-language-action", facts["recipe"]],
        model_name=facts["name"],
        eval_results=results,
    )
    facts = {**facts, "license": license}
    return ModelCard.from_template(data, template_path=str(TEMPLATES / "fine_tuned.md.jinja"), facts=facts)


def lerobot_dataset_card(facts: dict, license: str | None = None) -> DatasetCard:
    """The card of a LeRobot dataset.

    Args:
        facts: `name`, `path`, `version`, `episodes`, `frames`, `fps`, `minutes`, `robot_type`, `tasks`; `cameras`, each
            with `name`, `shape` and `dtype`; `vectors`, each with `title`, `names` and lists of statistics.
        license: identifier of the Hub.
    """
    data = DatasetCardData(
        license=license,
        task_categories=["robotics"],
        tags=["LeRobot"],
        configs=[{"config_name": "default", "data_files": "data/*/*.parquet"}],
    )
    return DatasetCard.from_template(data, template_path=str(TEMPLATES / "lerobot_dataset.md.jinja"), facts=facts)


def _hub_ids(names: list[str | None]) -> list[str] | None:
    """Those that are names on the Hub and not folders here; None if there are none."""
    ids = [
        name for name in dict.fromkeys(names) if name is not None and not Path(name).exists() and name.count("/") == 1
    ]
    return ids or None

"""Fills the templates of this folder."""

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from .rendering import render
from .trained_policy import fine_tuned_card

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
    return render(ModelCard, TEMPLATES / "tabletop_vlm.md.jinja", data, report=report, command=command)


def policy_card(report: dict, command: str) -> ModelCard:
    """The card of a policy from `kivla demo`.

    Args:
        report: what that command writes as `report.json`. Beside the card it leaves the pictures `training.png`,
            `chunks.png` and, if there are roll-outs to show, `contact_sheet.png` and `phases.png`.
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
                dataset_config=result["title"],  # without it the Hub takes all for results on one dataset
                metric_type="success_rate",
                metric_value=result["success"]["rate"],
            )
            for result in report["rollouts"]
        ],
    )
    media = (report["rollouts"][0].get("media") if report["rollouts"] else None) or {}
    values = {"report": report, "command": command}
    values |= {picture: media.get(picture) for picture in ("contact_sheet", "phases")}
    return render(ModelCard, TEMPLATES / "policy.md.jinja", data, **values)


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
    return render(DatasetCard, TEMPLATES / "lerobot_dataset.md.jinja", data, facts=facts)


__all__ = ["fine_tuned_card", "lerobot_dataset_card", "policy_card", "tabletop_vlm_card"]

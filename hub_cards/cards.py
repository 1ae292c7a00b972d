"""Fills the templates of this folder."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

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
        report: what that command writes as `report.json`.
        command: how to make the policy again.
    """
    data = ModelCardData(
        language="en", license="apache-2.0", library_name="kivla", pipeline_tag="robotics", tags=["lerobot", "vla"]
    )
    return ModelCard.from_template(
        data, template_path=str(TEMPLATES / "policy.md.jinja"), report=report, command=command
    )


def fine_tuned_card(report: dict) -> ModelCard:
    """The card of a policy from `kivla train`.

    Args:
        report: `recipe`, `vlm`, `datasets`, `vlm_dataset`, `max_steps`; `sets`: name -> action errors in robot units;
            `before` and `after`: the share of right answers to VLM data, None without any.
    """
    data = ModelCardData(library_name="kivla", pipeline_tag="robotics", tags=["lerobot", "vla", report["recipe"]])
    return ModelCard.from_template(data, template_path=str(TEMPLATES / "fine_tuned.md.jinja"), report=report)

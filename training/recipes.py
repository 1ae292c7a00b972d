"""Every training system of the knowledge-insulation paper as plain data: who is trained by which loss, in which order.

The systems are those of Driess et al. 2025 (arXiv 2505.23705), section 6, and of the papers that it compares with. All
run on one model class, one processor and one trainer, so that the difference between two runs is the recipe.
"""

import math
from dataclasses import dataclass, replace

from torch import nn

from ..modeling_kivla import KIVLAForActionPrediction

BACKBONE, EXPERT = "backbone", "expert"


@dataclass(frozen=True)
class Stage:
    """One training run of a recipe.

    Attributes:
        trains: the parts whose parameters are trained; the others are frozen.
        flow_loss_weight: of `KIVLAConfig`; 0: the expert rests, and the policy acts by tokens.
        backbone_gradient_scale: of `KIVLAConfig`.
        share: its share of the optimiser steps.

    Raises:
        ValueError: a value out of its range, a stage that trains nothing, an expert that no loss reaches, or a frozen
            backbone that the flow loss is meant to train.
    """

    trains: tuple[str, ...]
    flow_loss_weight: float = 1.0
    backbone_gradient_scale: float = 0.0
    share: float = 1.0

    def __post_init__(self):
        weight, scale = self.flow_loss_weight, self.backbone_gradient_scale
        if unknown := set(self.trains) - {BACKBONE, EXPERT}:
            raise ValueError(f"A stage trains {BACKBONE} and {EXPERT}, or one of them; got {sorted(unknown)}.")
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"flow_loss_weight must be a number that is not negative, got {weight}.")
        if not 0.0 <= scale <= 1.0:
            raise ValueError(
                "backbone_gradient_scale must be between 0 (knowledge insulation) and 1 (joint training), got "
                f"{scale}. To weigh the two losses, use flow_loss_weight."
            )
        if not 0.0 < self.share < math.inf:
            raise ValueError(f"A stage's share of the steps must be positive, got {self.share}.")
        if not self.trains:
            raise ValueError("A stage that trains [] has nothing to train.")
        if EXPERT in self.trains and weight == 0:
            raise ValueError(
                f"A stage that trains {list(self.trains)} with flow_loss_weight = 0 has nothing to train the expert "
                "with: it learns from the flow loss alone. A policy that acts by tokens is recipe pi0-fast."
            )
        if BACKBONE not in self.trains and scale > 0:
            raise ValueError(f"The backbone is frozen, so backbone_gradient_scale must be 0, got {scale}.")

    @property
    def config(self) -> dict[str, float]:
        """Fields of `KIVLAConfig` that it sets."""
        return {"flow_loss_weight": self.flow_loss_weight, "backbone_gradient_scale": self.backbone_gradient_scale}


TOKENS_ONLY = Stage((BACKBONE,), flow_loss_weight=0.0)
INSULATED = Stage((BACKBONE, EXPERT))
JOINT = Stage((BACKBONE, EXPERT), backbone_gradient_scale=1.0)
PARTIAL = Stage((BACKBONE, EXPERT), backbone_gradient_scale=0.1)
EXPERT_ONLY = Stage((EXPERT,))


@dataclass(frozen=True)
class Recipe:
    """Who is trained by which loss, in which order.

    Attributes:
        description: a line for people.
        action_tokenizer: what the backbone learns: "fast", "bins" or "none".
        state_encoding: "text" or "continuous".
        vlm_data: whether examples without actions are mixed in, where there are any.
        stages: one after the other, each starting from the weights of the one before.
    """

    description: str
    action_tokenizer: str = "fast"
    state_encoding: str = "text"
    vlm_data: bool = True
    stages: tuple[Stage, ...] = (INSULATED,)


RECIPES = {
    "insulated": Recipe("FAST tokens and text train the VLM, flow the expert, which is insulated (the paper's)"),
    "autoregressive": Recipe(
        "no expert: the VLM says every value as one of 256 bins (RT-2, OpenVLA)",
        action_tokenizer="bins",
        vlm_data=False,
        stages=(TOKENS_ONLY,),
    ),
    "pi0-fast": Recipe("no expert: the VLM says FAST tokens (pi0-FAST)", vlm_data=False, stages=(TOKENS_ONLY,)),
    "pi0": Recipe(
        "flow trains expert and VLM, without tokens; the state goes into the expert (pi0)",
        action_tokenizer="none",
        state_encoding="continuous",
        vlm_data=False,
        stages=(JOINT,),
    ),
    # 280k steps of tokens, then 80k with the expert (pi0.5)
    "pi0.5": Recipe(
        "first FAST tokens and text, then flow as well, into the VLM, too (pi0.5)",
        stages=(
            replace(TOKENS_ONLY, share=7),
            replace(JOINT, share=2),
        ),
    ),
    "joint": Recipe("as insulated, but the flow loss trains the VLM, too (joint training)", stages=(JOINT,)),
    "frozen": Recipe(
        "flow trains the expert; the VLM stays as it is", action_tokenizer="none", vlm_data=False, stages=(EXPERT_ONLY,)
    ),
    "insulated-bins": Recipe("insulated, with 256 bins in place of FAST", action_tokenizer="bins"),
    "insulated-no-vlm-data": Recipe("insulated, without VLM data", vlm_data=False),
    "insulated-continuous-state": Recipe(
        "insulated, with the state as a vector for the expert", state_encoding="continuous"
    ),
    "insulated-partial": Recipe("a tenth of the flow loss's gradient reaches the VLM", stages=(PARTIAL,)),
    "joint-no-vlm-data": Recipe("joint, without VLM data", vlm_data=False, stages=(JOINT,)),
}


def get_recipe(name: str) -> Recipe:
    """Find a recipe by its name.

    Raises:
        ValueError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}. Recipes: {', '.join(RECIPES)}.")
    return RECIPES[name]


def set_stage(model: KIVLAForActionPrediction, stage: Stage) -> None:
    """Prepare a model for a stage: the fields of its config, and which parameters are trained."""
    for name, value in stage.config.items():
        setattr(model.config, name, value)
    _set_trained(model.vlm, BACKBONE in stage.trains)
    _set_trained(model.expert, EXPERT in stage.trains)


def _set_trained(module: nn.Module, is_trained: bool) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(is_trained)


def split_steps(stages: tuple[Stage, ...], max_steps: int) -> list[int]:
    """Share out the optimiser steps among the stages; together they are `max_steps`.

    Raises:
        ValueError: fewer steps than stages.
    """
    if max_steps < len(stages):
        raise ValueError(f"{max_steps} steps cannot be shared out among {len(stages)} stages.")
    total, ends, share = sum(stage.share for stage in stages), [], 0.0
    for number, stage in enumerate(stages, 1):
        share += stage.share
        # Every stage has a step, whatever the rounding
        ends.append(min(max(round(max_steps * share / total), number), max_steps - len(stages) + number))
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


__all__ = ["RECIPES", "Recipe", "Stage", "get_recipe", "set_stage", "split_steps"]

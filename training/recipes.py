"""Every training system of the knowledge-insulation paper as plain data: who is trained by which loss, in which order.

The systems are those of Driess et al. 2025 (arXiv 2505.23705), section 6, and of the papers that it compares with. All
run on one model class, one processor and one trainer, so that the difference between two runs is the recipe.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from ..modeling_kivla import KIVLAForActionPrediction
from .parts import BACKBONE, EXPERT, NEW_TOKENS, PARTS, PROJECTOR, RATE_ARGUMENTS, set_trained_parts


@dataclass(frozen=True)
class Stage:
    """One training run of a recipe.

    Attributes:
        trains: the parts that are trained; the others are frozen. "backbone" is the whole VLM, "expert" the action
            expert. For a warm-up the VLM can rest but for its "new_tokens" (the action tokens' rows in embedding and
            output layer; other rows stay as they are, bit for bit) and its "projector" (from pictures to the width of
            the text model).
        flow_loss_weight: of `KIVLAConfig`; 0: the expert rests, and the policy acts by tokens.
        backbone_gradient_scale: of `KIVLAConfig`.
        share: its share of the optimiser steps.
        learning_rates: of its parts, where the run's arguments give none (`new_token_learning_rate`, ...). The
            backbone's is always the run's.

    Raises:
        ValueError: a value out of its range, a stage that trains nothing, an expert that no loss reaches, a frozen
            backbone that the flow loss is meant to train, or a learning rate of what is not trained.
    """

    trains: tuple[str, ...]
    flow_loss_weight: float = 1.0
    backbone_gradient_scale: float = 0.0
    share: float = 1.0
    learning_rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        # Types first: a recipe may come from a YAML file.
        weight, scale = self.flow_loss_weight, self.backbone_gradient_scale
        for name in ("flow_loss_weight", "backbone_gradient_scale", "share"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{name} must be a number, got {value!r}.")
        if not isinstance(self.learning_rates, Mapping):
            raise ValueError(f"learning_rates must be a map of parts to numbers, got {self.learning_rates!r}.")
        if isinstance(self.trains, str):
            raise ValueError(f"trains must be a list of parts, got {self.trains!r}: write [{self.trains}].")
        if unknown := set(self.trains) - set(PARTS):
            raise ValueError(f"A stage trains some of {', '.join(PARTS)}; got {sorted(unknown)}.")
        # Then each number alone, then whether they make sense together.
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
        if BACKBONE in self.trains and (inside := {NEW_TOKENS, PROJECTOR} & set(self.trains)):
            raise ValueError(f"{BACKBONE} is the whole VLM, {' and '.join(sorted(inside))} among it: leave out either.")
        for part, rate in self.learning_rates.items():
            if part not in self.parts & RATE_ARGUMENTS.keys():
                raise ValueError(
                    f"learning_rates are for those of {', '.join(RATE_ARGUMENTS)} that the stage trains; got {part!r}."
                )
            if not isinstance(rate, int | float) or not 0.0 < rate < math.inf:
                raise ValueError(f"The learning rate of {part} must be a positive number, got {rate!r}.")
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
        scale = float(self.backbone_gradient_scale)  # YAML has whole numbers, too
        return {"flow_loss_weight": float(self.flow_loss_weight), "backbone_gradient_scale": scale}

    @property
    def parts(self) -> set[str]:
        """Those of `PARTS` that it trains; of the backbone its own parts, too."""
        return {*self.trains, *((NEW_TOKENS, PROJECTOR) if BACKBONE in self.trains else ())}

    def rate_arguments(self, **given: float | None) -> dict[str, float | None]:
        """Return the arguments of a run of this stage that are learning rates of parts: those given, or its own.

        None is left of a part that it does not train: another stage of the recipe may.
        """
        own = {RATE_ARGUMENTS[part]: rate for part, rate in self.learning_rates.items()}
        rates = own | {name: rate for name, rate in given.items() if rate is not None}
        return {name: rates.get(name) if part in self.parts else None for part, name in RATE_ARGUMENTS.items()}


TOKENS_ONLY = Stage((BACKBONE,), flow_loss_weight=0.0)
INSULATED = Stage((BACKBONE, EXPERT))
JOINT = Stage((BACKBONE, EXPERT), backbone_gradient_scale=1.0)
PARTIAL = Stage((BACKBONE, EXPERT), backbone_gradient_scale=0.1)
EXPERT_ONLY = Stage((EXPERT,))
# Brand-new tokens have a large gradient and know nothing yet: the VLM rests until they have learned the most of it.
WARM_UP = Stage((NEW_TOKENS, PROJECTOR, EXPERT), learning_rates={NEW_TOKENS: 3e-3})


@dataclass(frozen=True)
class Recipe:
    """Who learns what from which loss, in which order.

    One of your own is an entry of `RECIPES`, or a YAML file with these names (`kivla train --recipe my_recipe.yaml`):

        description: tokens first, then the expert alone
        stages:
          - {trains: [backbone], flow_loss_weight: 0, share: 3}
          - {trains: [expert]}

    Attributes:
        description: a line for people.
        action_tokenizer: what the backbone learns: "fast", "bins", "none", or one of your own (`pkg.module:Class`).
        state_encoding: "text", "continuous" or "none".
        vlm_data: whether examples without actions are mixed in, where there are any.
        stages: one after the other, each starting from the weights of the one before.

    Raises:
        ValueError: a value that cannot be.
    """

    description: str
    action_tokenizer: str = "fast"
    state_encoding: str = "text"
    vlm_data: bool = True
    stages: tuple[Stage, ...] = (INSULATED,)

    def __post_init__(self):
        for name, kind in (("description", str), ("action_tokenizer", str), ("vlm_data", bool)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be of type {kind.__name__}, got {getattr(self, name)!r}.")
        if self.state_encoding not in ("text", "continuous", "none"):
            raise ValueError(f'state_encoding must be "text", "continuous" or "none", got {self.state_encoding!r}.')
        if not self.stages:
            raise ValueError("A recipe needs at least one stage.")
        if self.action_tokenizer == "none" and any(NEW_TOKENS in stage.trains for stage in self.stages):
            raise ValueError(f'A recipe with action_tokenizer "none" has no {NEW_TOKENS} to train.')


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
    "insulated-warmup": Recipe(
        "first new tokens, projector and expert while the VLM rests, then insulated",
        stages=(WARM_UP, replace(INSULATED, share=9)),
    ),
    "joint-warmup": Recipe(
        "first new tokens, projector and expert while the VLM rests, then joint",
        stages=(WARM_UP, replace(JOINT, share=9)),
    ),
    "joint-no-vlm-data": Recipe("joint, without VLM data", vlm_data=False, stages=(JOINT,)),
}


def get_recipe(name: str) -> Recipe:
    """Find a recipe by its name, or read it from a YAML file.

    Raises:
        ValueError: there is no such recipe, or the file is none.
    """
    if name.endswith((".yaml", ".yml")):
        return _read_recipe(Path(name))
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"There is no recipe {name!r}.{hint} Recipes: {', '.join(RECIPES)}, or a YAML file of your own."
        )
    return RECIPES[name]


def recipe_name(name: str) -> str:
    """What a recipe is called in cards and reports: of a YAML file the name alone."""
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


def _read_recipe(path: Path) -> Recipe:
    if not path.is_file():
        raise ValueError(f"There is no recipe file {path}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    try:
        _check_keys(values, Recipe, "the file")
        stages = values.pop("stages", None)
        if not isinstance(stages, list):
            raise ValueError(f"stages must be a list, got {stages!r}.")
        for number, stage in enumerate(stages, 1):
            _check_keys(stage, Stage, f"stage {number}")
            stage["trains"] = tuple(stage["trains"]) if isinstance(stage["trains"], list) else stage["trains"]
            if isinstance(rates := stage.get("learning_rates"), dict):  # 1e-3 is text in YAML; 1.0e-3 is a number
                stage["learning_rates"] = {p: float(r) if isinstance(r, str) else r for p, r in rates.items()}
        return Recipe(**values, stages=tuple(Stage(**stage) for stage in stages))
    except ValueError as error:
        raise ValueError(f"{path} is no recipe: {error}") from error


def _check_keys(values, kind: type, where: str) -> None:
    """Check that a map has names of this dataclass alone, and those without a default."""
    known = [field.name for field in fields(kind)]
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a map of {', '.join(known)}; got {values!r}.")
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
            raise ValueError(f"{where} has the unknown name {name!r}. {hint}")
    if known[0] not in values:  # the only one without a default
        raise ValueError(f"{where} lacks {known[0]!r}.")


def set_stage(model: KIVLAForActionPrediction, stage: Stage) -> None:
    """Prepare a model for a stage: the fields of its config, and which parameters are trained."""
    for name, value in stage.config.items():
        setattr(model.config, name, value)
    set_trained_parts(model, stage.trains)


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


__all__ = ["RECIPES", "Recipe", "Stage", "get_recipe", "recipe_name", "set_stage", "split_steps"]

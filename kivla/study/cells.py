"""Which runs a study has: recipes under conditions. What would be no run of its own is left out, and named."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..training.recipes import WARM_UP, Stage, get_recipe, recipe_name

COLD = "cold"
# What a condition may add to a recipe; several are joined by "+".
WARMUP, REPLAY, ANCHOR, QUESTIONS = "warmup", "replay", "anchor", "questions"
INGREDIENTS = (WARMUP, REPLAY, ANCHOR, QUESTIONS)


@dataclass(frozen=True)
class Cell:
    """A recipe under a condition: "cold", or what is added to it (of `INGREDIENTS`), joined by "+"."""

    recipe: str
    condition: str = COLD

    @property
    def added(self) -> tuple[str, ...]:
        return () if self.condition == COLD else tuple(self.condition.split("+"))

    @property
    def name(self) -> str:
        return f"{recipe_name(self.recipe)}, {self.condition}"

    @property
    def folder(self) -> str:
        return f"{recipe_name(self.recipe)}_{self.condition}"

    def stages(self, max_steps: int, warmup_steps: int) -> tuple[Stage, ...]:
        """Return the stages of a run; the warm-up's steps are part of `max_steps`."""
        stages = get_recipe(self.recipe).stages
        if WARMUP not in self.added:
            return stages
        per_share = (max_steps - warmup_steps) / sum(stage.share for stage in stages)
        rest = tuple(replace(stage, share=stage.share * per_share) for stage in stages)
        return (replace(WARM_UP, share=warmup_steps), *rest)


def choose_cells(recipes: Sequence[str], conditions: Sequence[str]) -> tuple[list[Cell], dict[Cell, str]]:
    """Combine recipes and conditions: the cells of a study, and those that are left out with the reason.

    Raises:
        ValueError: an unknown recipe or condition, or one that is named twice.
    """
    for names, what in ((recipes, "recipes"), (conditions, "conditions")):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"--{what} takes one or more, each once; got {' '.join(names)}.")
    for condition in conditions:
        check_condition(condition)
    cells, left_out = [], {}
    for cell in (Cell(recipe, condition) for condition in conditions for recipe in recipes):
        if reason := _no_run_of_its_own(cell):
            left_out[cell] = reason
        else:
            cells.append(cell)
    return cells, left_out


def check_condition(condition: str) -> None:
    added = condition.split("+")
    if condition != COLD and (set(added) - set(INGREDIENTS) or len(set(added)) < len(added)):
        raise ValueError(
            f"A condition is {COLD}, or one or more of {', '.join(INGREDIENTS)} joined by +, as in "
            f"{WARMUP}+{REPLAY}; got {condition!r}."
        )
    if ANCHOR in added and REPLAY not in added:
        raise ValueError(f"The VLM is anchored on the texts that are replayed: {condition}+{REPLAY}, not {condition}.")


def _no_run_of_its_own(cell: Cell) -> str | None:
    recipe = get_recipe(cell.recipe)
    if WARMUP in cell.added and recipe.action_tokenizer == "none":
        return "it has no new tokens to warm up"
    if not recipe.vlm_data and (REPLAY in cell.added or QUESTIONS in cell.added):
        return "it trains on no VLM data"
    return None

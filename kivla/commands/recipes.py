"""`kivla recipes`: what `kivla train --recipe NAME` and `kivla study --recipes NAME ...` can train."""

from collections.abc import Sequence

from ..training.recipes import RECIPES, Recipe


def run(arguments: Sequence[str]) -> None:
    if arguments:
        raise ValueError(
            f"There is no place for {' '.join(arguments)}: it lists the recipes. One of your own is a "
            "YAML file, `kivla train --recipe FILE.yaml` (docs/extend.md)."
        )
    print(f"{'recipe':28}{'tokens':8}{'state':12}{'VLM data':10}{'acts by':9}what it is")
    for name, recipe in RECIPES.items():
        print(
            f"{name:28}{recipe.action_tokenizer:8}{recipe.state_encoding:12}{'yes' if recipe.vlm_data else 'no':10}"
            f"{acts_by(recipe):9}{recipe.description}"
        )


def acts_by(recipe: Recipe) -> str:
    return "flow" if recipe.stages[-1].flow_loss_weight > 0 else "tokens"

"""The parts of a policy that are trained, each perhaps at a learning rate of its own; new tokens' rows among them.

A torch optimiser steps whole tensors, and new tokens are rows of a matrix whose other rows were pretrained. `TokenRows`
gives the optimiser views of both in their place.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from torch import nn

from ..modeling_kivla import KIVLAForActionPrediction

BACKBONE, NEW_TOKENS, PROJECTOR, EXPERT = "backbone", "new_tokens", "projector", "expert"
PARTS = (BACKBONE, NEW_TOKENS, PROJECTOR, EXPERT)
# The arguments that give a part a learning rate of its own; `learning_rate` is the backbone's, and of what has none.
RATE_ARGUMENTS = {
    NEW_TOKENS: "new_token_learning_rate",
    PROJECTOR: "projector_learning_rate",
    EXPERT: "expert_learning_rate",
}
# What maps pictures to the text model's width, as families call it. (Deepstack mergers feed deeper layers, and Ovis
# looks pictures up in a table.)
_PROJECTORS = frozenset(
    {"multi_modal_projector", "mm_projector", "projector", "vision_projection", "connector", "aligner", "merger"}
    | {"deepstack_merger_list", "embed_vision", "resampler_model", "visual_embeddings_table", "vision_embed_tokens"}
    | {"language_projection", "image_to_text_projection"}
    | {"patch_merger", "layerwise_projectors", "spatial_projectors"}
)
_ROWS_OF_LORA = "trainable_tokens_delta"  # as peft calls the rows that it trains


def part_of(name: str) -> str:
    """Find the part that a parameter belongs to by its name, in a policy with or without LoRA; rows have no names."""
    pieces = set(name.split("."))
    if "expert" in pieces:
        return EXPERT
    if pieces & _PROJECTORS:
        return PROJECTOR
    return NEW_TOKENS if _ROWS_OF_LORA in pieces else BACKBONE


def set_trained_parts(model: KIVLAForActionPrediction, trains: Iterable[str]) -> None:
    """Let these parts be trained, and freeze the others.

    Args:
        trains: some of `PARTS`; "backbone" is the whole VLM, new tokens and projector among it.

    Raises:
        ValueError: the VLM has no projector that is known.
    """
    whole, is_new = BACKBONE in trains, NEW_TOKENS in trains
    projector = 0
    for name, parameter in model.vlm.named_parameters():
        is_projector = part_of(name) == PROJECTOR
        projector += is_projector
        parameter.requires_grad_(whole or (is_projector and PROJECTOR in trains))
    for weight in vocabulary_weights(model):
        weight.requires_grad_(whole or is_new)
    model.trains_new_rows_only = is_new and not whole
    for parameter in model.expert.parameters():
        parameter.requires_grad_(EXPERT in trains)
    if PROJECTOR in trains and not projector:
        raise ValueError(
            f"'{model.config.vlm_config.model_type}' has no module by a name that projectors are known by "
            f"({', '.join(sorted(_PROJECTORS))}). Leave out {PROJECTOR!r}."
        )


def freeze_vision(model: KIVLAForActionPrediction) -> None:
    """Leave the vision tower as it is. The projector goes on to learn, also where it is a module of the tower.

    Raises:
        ValueError: the VLM has no vision tower that could rest alone.
    """
    tower = model.vlm.get_encoder("image")
    if model.get_decoder() in tower.modules() or tower is model.get_decoder():
        raise ValueError(
            f"'{model.config.vlm_config.model_type}' has no vision tower of its own that could rest: leave out "
            "freeze_vision."
        )
    for name, parameter in tower.named_parameters():
        if part_of(name) != PROJECTOR:
            parameter.requires_grad_(False)


def vocabulary_weights(model: KIVLAForActionPrediction) -> list[nn.Parameter]:
    """Of the embedding and the output layer, the parameters with a row for each token; a tied one once."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = [weight for layer in layers for weight in layer.parameters(recurse=False)]
    return list(dict.fromkeys(weights))


class TokenRows:
    """Rows of the vocabulary's weights as parameters of their own, in the same memory, for an optimiser to step.

    New rows can so have a learning rate of their own, and old ones can rest: what the optimiser is not given, neither
    gradient, weight decay nor momentum moves. Needs whole weights on every device.

    Args:
        weights: of `vocabulary_weights`.
        new_ids: the new tokens.
        old_rows_rest: whether they are left out.
    """

    def __init__(self, weights: Iterable[nn.Parameter], new_ids: Iterable[int], old_rows_rest: bool):
        new = set(new_ids)
        self._views: dict[nn.Parameter, list[tuple[slice, str, nn.Parameter]]] = {}
        for weight in weights:
            runs = [(rows, is_new) for rows, is_new in _runs(new, len(weight)) if is_new or not old_rows_rest]
            parts = [(rows, NEW_TOKENS if is_new else BACKBONE) for rows, is_new in runs]
            self._views[weight] = [(rows, part, nn.Parameter(weight.data[rows])) for rows, part in parts]

    def of(self, weight: nn.Parameter) -> list[tuple[str, nn.Parameter]] | None:
        """Return parts and rows in the place of a weight; None if it is not split."""
        return [(part, view) for _, part, view in self._views[weight]] if weight in self._views else None

    def follow(self, *_) -> None:
        """Take memory and gradient from the weights, whatever has become of them since; before they are used."""
        for weight, views in self._views.items():
            for rows, _, view in views:
                view.data = weight.data[rows]
                view.grad = None if weight.grad is None else weight.grad[rows]


def _runs(new: set[int], length: int) -> Iterator[tuple[slice, bool]]:
    """Cut rows 0 to `length` where new and old ones meet."""
    cuts = sorted({0, length} | {i for i in new if i - 1 not in new} | {i + 1 for i in new if i + 1 not in new})
    for first, end in pairwise(cuts):
        yield slice(first, end), first in new


def split_groups(groups: list[dict], parts: Mapping[nn.Parameter, str], rates: dict[str, float]) -> list[dict]:
    """Split an optimiser's groups of parameters by part.

    Args:
        parts: the part of every parameter.
        rates: learning rates of the parts that do not have the group's.
    """
    split = []
    for group in groups:
        for part in PARTS:
            parameters = [parameter for parameter in group["params"] if parts[parameter] == part]
            if parameters:
                split.append({**group, "params": parameters, "lr": rates.get(part, group["lr"])})
    return split


__all__ = [
    "BACKBONE",
    "EXPERT",
    "NEW_TOKENS",
    "PARTS",
    "PROJECTOR",
    "RATE_ARGUMENTS",
    "TokenRows",
    "freeze_vision",
    "part_of",
    "set_trained_parts",
    "split_groups",
    "vocabulary_weights",
]

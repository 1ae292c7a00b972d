"""What the two losses ask of the language model: how strongly each pulls, and whether in the same direction."""

from collections.abc import Mapping, Sequence

import torch

from ...modeling_kivla import KIVLAForActionPrediction
from ...modeling_kivla.backbone_attention import decoder_layers, find_text_decoder
from ...modeling_kivla.eval_mode import eval_mode
from .token_sums import token_sums


def gradient_conflict(
    model: KIVLAForActionPrediction, batch: Mapping, action_token_ids: Sequence[int], seed: int = 0
) -> dict[str, float | None]:
    """Measure both losses of a batch, and the gradient that each alone gives the language model's layers.

    The flow loss is let through for it (`backbone_gradient_scale` 1), also where the policy is insulated or its VLM
    frozen: it is what insulation keeps away. Weights, gradients and random numbers stay as they were.

    Args:
        batch: what the collator makes of examples; the same one every time for figures that can be compared.
        action_token_ids: (codes,), which tokens are actions.
        seed: of noise and flow time.

    Returns:
        `token_loss`, `flow_loss`, `action_token_accuracy`; `token_gradient` and `flow_gradient`, the norms over all
        parameters of the text decoder's layers (without the embedding), and their `cosine`. None where the policy has
        no such loss.
    """
    layers = [parameter for layer in decoder_layers(find_text_decoder(model.vlm)) for parameter in layer.parameters()]
    were_trained = [parameter.requires_grad for parameter in layers]
    scale, model.config.backbone_gradient_scale = model.config.backbone_gradient_scale, 1.0
    inputs = {name: values for name, values in batch.items() if name != "robot"}
    try:
        for parameter in layers:
            parameter.requires_grad_(True)
        with eval_mode(model), torch.enable_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            output = model(**inputs)
            losses = [loss for loss in (output.token_loss, output.flow_loss) if loss is not None]
            gradients = {id(loss): _gradient(loss, layers, keep=loss is not losses[-1]) for loss in losses}
    finally:
        model.config.backbone_gradient_scale = scale
        for parameter, was_trained in zip(layers, were_trained, strict=True):
            parameter.requires_grad_(was_trained)
    # Norms, and the cosine where there are both.
    token, flow = gradients.get(id(output.token_loss)), gradients.get(id(output.flow_loss))
    norms = [None if gradient is None else _dot(gradient, gradient) ** 0.5 for gradient in (token, flow)]
    accuracy = None
    if output.token_loss is not None:
        sums = token_sums(output, inputs["labels"], torch.as_tensor(action_token_ids))
        actions = float(sums["action_tokens"].sum())
        accuracy = float(sums["correct_action_tokens"].sum()) / actions if actions else None
    return {
        "token_loss": None if output.token_loss is None else output.token_loss.item(),
        "flow_loss": None if output.flow_loss is None else output.flow_loss.item(),
        "action_token_accuracy": accuracy,
        "token_gradient": norms[0],
        "flow_gradient": norms[1],
        "cosine": None if not all(norms) else _dot(token, flow) / (norms[0] * norms[1]),
    }


def _gradient(loss: torch.Tensor, parameters: list[torch.Tensor], keep: bool) -> list[torch.Tensor | None]:
    return list(torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True))


def _dot(first: list[torch.Tensor | None], second: list[torch.Tensor | None]) -> float:
    pairs = zip(first, second, strict=True)
    return sum(float((a.double() * b.double()).sum()) for a, b in pairs if a is not None and b is not None)


__all__ = ["gradient_conflict"]

"""What an evaluation counts, as pure functions of one batch. Every sum is per example, so that batches add up."""

import torch
import torch.nn.functional as F

TOKEN_SUMS = ("token_loss", "tokens", "correct_tokens", "action_tokens", "correct_action_tokens")
ACTION_ERROR_SUMS = (
    "absolute_error",
    "squared_error",
    "baseline_absolute_error",
    "baseline_squared_error",
    "values",
)


def token_sums(logits: torch.Tensor, labels: torch.Tensor, action_token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cross-entropy and hits of the next-token predictions.

    Args:
        logits: (n, vocabulary), those of the supervised positions in batch order (`KIVLAOutput.logits`).
        labels: (B, S), -100 where nothing is learned.
        action_token_ids: (codes,), which tokens are actions.

    Returns:
        (B,) sums, named as in `TOKEN_SUMS`.
    """
    supervised = labels[:, 1:] != -100
    targets = labels[:, 1:][supervised]
    example = supervised.nonzero()[:, 0]
    is_action = torch.isin(targets, action_token_ids.to(targets.device))
    correct = logits.argmax(-1) == targets
    per_token = {
        "token_loss": F.cross_entropy(logits.float(), targets, reduction="none"),
        "tokens": torch.ones_like(targets),
        "correct_tokens": correct,
        "action_tokens": is_action,
        "correct_action_tokens": correct & is_action,
    }
    zeros = torch.zeros(len(labels), device=labels.device)
    return {name: zeros.index_add(0, example, values.float()) for name, values in per_token.items()}


def action_error_sums(
    predicted: torch.Tensor, actions: torch.Tensor, baseline: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Errors of chunks against the demonstrated ones, beside those of a constant action.

    Args:
        predicted, actions: (B, H, D), robot units.
        baseline: (D,), the constant action, e.g. the mean of the training data.
        mask: (B, H, D) bool, True where a value is real.

    Returns:
        sums over steps, (B, D), named as in `ACTION_ERROR_SUMS`.
    """
    error = (predicted - actions).masked_fill(~mask, 0.0)
    baseline_error = (baseline - actions).masked_fill(~mask, 0.0)
    return {
        "absolute_error": error.abs().sum(1),
        "squared_error": error.square().sum(1),
        "baseline_absolute_error": baseline_error.abs().sum(1),
        "baseline_squared_error": baseline_error.square().sum(1),
        "values": mask.sum(1),
    }

"""Next-token prediction on the positions that are supervised, as pure functions."""

import torch
import torch.nn.functional as F


def supervised_tokens(labels: torch.Tensor | None, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat indices (n,) into B·S of the positions that predict a supervised token, and those tokens (n,)."""
    if labels is None:
        empty = torch.empty(0, dtype=torch.long, device=tokens.device)
        return empty, empty
    if labels.shape != tokens.shape[:2]:
        raise ValueError(f"`labels` must be (batch, sequence) = {tuple(tokens.shape[:2])}, got {tuple(labels.shape)}.")
    targets = F.pad(labels[:, 1:], (0, 1), value=-100).flatten()  # position j predicts token j + 1
    rows = (targets != -100).nonzero().squeeze(-1)
    return rows, targets[rows]


def next_token_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    num_supervised: torch.Tensor | float | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy in float32 of logits (n, vocabulary) and tokens (n,): sum over `num_supervised`, or mean.

    `weights` (n,) say what every token weighs in the sum.
    """
    if weights is None:
        total = F.cross_entropy(logits.float(), targets.to(logits.device), reduction="sum")
    else:
        losses = F.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")
        total = losses @ weights.to(losses)
    return total / (max(len(targets), 1) if num_supervised is None else num_supervised)

"""Next-token prediction on the positions that are supervised, as pure functions."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

BLOCK = 2**21  # numbers that the cross-entropy computes with at once: they stay in a cache, and keep a GPU busy


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


class ClosedChoice(NamedTuple):
    """Which supervised positions choose among some tokens alone, and not among the whole vocabulary.

    Attributes:
        is_closed: (n,) bool, of the supervised positions in batch order.
        candidates: (k,) ids of these tokens, in ascending order.
    """

    is_closed: torch.Tensor
    candidates: torch.Tensor


def closed_choice(
    rows: torch.Tensor, targets: torch.Tensor, candidates: torch.Tensor | None, mask: torch.Tensor | None
) -> ClosedChoice | None:
    """Find the supervised positions that choose among `candidates` (k,), where `mask` (B, S) marks their labels.

    Args:
        rows, targets: of `supervised_tokens`.

    Raises:
        ValueError: one is given without the other, or a marked label is no candidate.
    """
    if candidates is None and mask is None:
        return None
    if candidates is None or mask is None:
        raise ValueError("`candidates` and `candidates_mask` go together: give both, or neither.")
    candidates = candidates.to(targets.device).sort().values
    is_closed = F.pad(mask.to(targets.device)[:, 1:], (0, 1)).flatten()[rows]  # position j predicts token j + 1
    if not torch.isin(targets[is_closed], candidates).all():
        raise ValueError("`candidates_mask` marks labels that are not among `candidates`: they could not be learned.")
    return ClosedChoice(is_closed, candidates)


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of each row in float32; of all that it makes, only the gradient is as large as the logits.

    PyTorch's makes log-probabilities and two gradients of that size, and with bfloat16 logits a copy of them before.
    """

    @staticmethod
    def forward(ctx, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        blocks = _blocks(logits)
        normalizers = torch.cat([logits.new_empty(0, dtype=torch.float32), *(b.float().logsumexp(-1) for b in blocks)])
        ctx.save_for_backward(logits, targets, normalizers)
        return normalizers - logits.gather(1, targets[:, None]).squeeze(1).float()

    @staticmethod
    @once_differentiable
    def backward(ctx, weights: torch.Tensor):
        logits, targets, normalizers = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        start = 0
        for block, into in zip(_blocks(logits), _blocks(gradient), strict=True):
            rows = slice(start, start := start + len(block))
            probabilities = (block.float() - normalizers[rows, None]).exp_()
            probabilities.scatter_add_(1, targets[rows, None], -torch.ones_like(probabilities[:, :1]))
            into.copy_(probabilities.mul_(weights[rows, None]))
        return gradient, None


def _blocks(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows in blocks of about `BLOCK` numbers."""
    return logits.split(max(1, BLOCK // max(1, logits.shape[1])))


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in float32, (n,), of logits (n, vocabulary) and tokens (n,)."""
    return _CrossEntropy.apply(logits, targets.to(logits.device))


def choice_losses(
    logits: torch.Tensor, candidate_logits: torch.Tensor | None, targets: torch.Tensor, closed: ClosedChoice | None
) -> torch.Tensor:
    """Cross-entropy in float32, (n,) in batch order, also where some positions choose among candidates alone.

    Args:
        logits: (n - m, vocabulary), of the positions that choose among all tokens.
        candidate_logits: (m, k), of the closed ones.
        targets: (n,).
    """
    if closed is None:
        return token_losses(logits, targets)
    targets, is_closed = targets.to(logits.device), closed.is_closed.to(logits.device)
    places = torch.searchsorted(closed.candidates.to(logits.device), targets[is_closed])
    losses = logits.new_zeros(len(targets), dtype=torch.float32)
    losses = losses.masked_scatter(~is_closed, token_losses(logits, targets[~is_closed]))
    return losses.masked_scatter(is_closed, token_losses(candidate_logits, places))


def likeliest_tokens(
    logits: torch.Tensor, candidate_logits: torch.Tensor | None, closed: ClosedChoice | None
) -> torch.Tensor:
    """The token (n,) that each supervised position finds the likeliest of those that it chooses among."""
    best = logits.argmax(-1)
    if closed is None:
        return best
    is_closed, candidates = (values.to(logits.device) for values in closed)
    tokens = best.new_zeros(len(is_closed)).masked_scatter(~is_closed, best)
    return tokens.masked_scatter(is_closed, candidates[candidate_logits.argmax(-1)])


def next_token_loss(
    losses: torch.Tensor,
    num_supervised: torch.Tensor | float | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum of the losses (n,) over `num_supervised`, or their mean; `weights` (n,) say what each weighs in the sum."""
    total = losses.sum() if weights is None else (losses * weights.to(losses)).sum()
    return total / (max(len(losses), 1) if num_supervised is None else num_supervised)

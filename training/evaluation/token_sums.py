"""What next-token predictions of one batch cost and hit, summed up for each example so that batches add up."""

import torch

from ...modeling_kivla import KIVLAOutput
from ...modeling_kivla.next_token import choice_losses, closed_choice, likeliest_tokens, supervised_tokens
from ...processing.sequences import are_documents

_OF_TEXT = {"text_loss": "token_loss", "text_tokens": "tokens"}
TOKEN_SUMS = ("token_loss", "tokens", "correct_tokens", "action_tokens", "correct_action_tokens", *_OF_TEXT)


@torch.no_grad()
def token_sums(
    outputs: KIVLAOutput,
    labels: torch.Tensor,
    action_token_ids: torch.Tensor,
    candidates: torch.Tensor | None = None,
    candidates_mask: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Sum up cross-entropy and hits of the next-token predictions; those of plain text apart.

    Args:
        outputs: of the model, whose logits are those of the supervised positions in batch order.
        labels: (B, S), -100 where nothing is learned.
        action_token_ids: (codes,), which tokens are actions.
        candidates, candidates_mask: as the model was given them.

    Returns:
        (B,) sums, named as in `TOKEN_SUMS`.
    """
    rows, targets = supervised_tokens(labels, labels)
    closed = closed_choice(rows, targets, candidates, candidates_mask)
    logits = outputs.logits, outputs.candidate_logits
    example = rows // labels.shape[1]
    is_action = torch.isin(targets, action_token_ids.to(targets.device))
    correct = likeliest_tokens(*logits, closed) == targets
    per_token = {
        "token_loss": choice_losses(*logits, targets, closed),
        "tokens": torch.ones_like(targets),
        "correct_tokens": correct,
        "action_tokens": is_action,
        "correct_action_tokens": correct & is_action,
    }
    zeros = torch.zeros(len(labels), device=labels.device)
    sums = {name: zeros.index_add(0, example, values.float()) for name, values in per_token.items()}
    is_text = are_documents(labels)
    of_text = {name: sums[of_all] * is_text for name, of_all in _OF_TEXT.items()}
    return {name: values * ~is_text for name, values in sums.items()} | of_text


__all__ = ["TOKEN_SUMS", "token_sums"]

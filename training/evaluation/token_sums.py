"""What next-token predictions of one batch cost and hit, summed up for each example so that batches add up."""

import torch
import torch.nn.functional as F

from ...processing.sequences import are_documents

_OF_TEXT = {"text_loss": "token_loss", "text_tokens": "tokens"}
TOKEN_SUMS = ("token_loss", "tokens", "correct_tokens", "action_tokens", "correct_action_tokens", *_OF_TEXT)


def token_sums(logits: torch.Tensor, labels: torch.Tensor, action_token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sum up cross-entropy and hits of the next-token predictions; those of plain text apart.

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
    sums = {name: zeros.index_add(0, example, values.float()) for name, values in per_token.items()}
    is_text = are_documents(labels)
    of_text = {name: sums[of_all] * is_text for name, of_all in _OF_TEXT.items()}
    return {name: values * ~is_text for name, values in sums.items()} | of_text


__all__ = ["TOKEN_SUMS", "token_sums"]

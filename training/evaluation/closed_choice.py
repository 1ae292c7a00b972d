"""Which tokens are learned as a choice among action tokens alone (`action_token_softmax`)."""

import torch
import torch.nn.functional as F

from ...processing import KIVLAProcessor
from ...processing.sequences import are_documents

AMONG_ALL, AMONG_ACTIONS = "all", "action_tokens"
SOFTMAXES = (AMONG_ALL, AMONG_ACTIONS)


def chosen_among_actions(
    labels: torch.Tensor, action_token_ids: torch.Tensor, end_token_id: int, responds_first: bool
) -> torch.Tensor:
    """Find the labels that are action tokens, or the end behind them.

    Args:
        labels: (B, S).
        action_token_ids: (codes,).
        responds_first: whether the policy may say words before it acts. Where actions begin is then a choice among all
            tokens: a chunk's first one is left out. It always is behind words.

    Returns:
        (B, S) bool.
    """
    is_action = torch.isin(labels, action_token_ids.to(labels.device))
    before = F.pad(labels, (1, 0), value=-100)[:, :-1]
    goes_on = F.pad(is_action, (1, 0))[:, :-1]
    begins = is_action & (before == -100) & (not responds_first)
    return (begins | ((is_action | (labels == end_token_id)) & goes_on)) & ~are_documents(labels)[:, None]


def choice_arguments(processor: KIVLAProcessor, action_token_softmax: str, labels: torch.Tensor) -> dict:
    """Make the arguments of the model's `forward` that say which labels (B, S) are such a choice; none with "all"."""
    if action_token_softmax == AMONG_ALL:
        return {}
    ids = torch.as_tensor(processor.action_token_ids)
    says = processor.responds_first or processor.expert_reads_response
    return {
        "candidates": torch.cat([ids, torch.tensor([processor.end_token_id])]).to(labels.device),
        "candidates_mask": chosen_among_actions(labels, ids, processor.end_token_id, says),
    }


__all__ = ["AMONG_ALL", "SOFTMAXES", "choice_arguments", "chosen_among_actions"]

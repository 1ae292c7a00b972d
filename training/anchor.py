"""Anchoring: a term that keeps the VLM's predictions of plain text where the untouched VLM's are.

Replay teaches the words of a text; anchoring teaches the whole distribution that the untouched VLM has over the next
one (knowledge distillation from oneself). It needs no text that the VLM was trained on, and costs a forward of the
untouched VLM over the documents of every batch.
"""

import copy
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn

from ..modeling_kivla.eval_mode import eval_mode
from ..modeling_kivla.next_token import supervised_tokens
from ..modeling_kivla.token_logits import token_logits
from ..processing.sequences import are_documents


def kl_to_reference(logits: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """KL(reference ‖ policy) of next-token predictions, each renormalised over some tokens, in float32.

    Args:
        logits: (n, vocabulary) of the policy.
        reference: (n, vocabulary of the untouched VLM).
        tokens: (k,) ids of the tokens that both know.

    Returns:
        (n,), in nats.
    """
    ours = F.log_softmax(logits[:, tokens].float(), dim=-1)
    theirs = F.log_softmax(reference[:, tokens].float(), dim=-1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


class Anchor:
    """The untouched VLM, beside the policy that is trained from it.

    With LoRA it is the policy with its adapters off, and costs no memory. Otherwise it is a copy of the VLM's weights.

    Args:
        model: the policy before its first step, with or without LoRA.
        action_token_ids: (codes,), which the untouched VLM does not know (or knows as something else).
        num_tokens: of the processor's tokenizer. The embedding may have rows beyond it, which nobody learned.
        reference: the untouched VLM, where the policy's has been trained already.
    """

    def __init__(
        self,
        model: nn.Module,
        action_token_ids: torch.Tensor,
        num_tokens: int,
        reference: nn.Module | None = None,
    ):
        self._policy = model if reference is None and isinstance(model, PeftModel) else None
        if self._policy is not None:
            self._vlm = model.get_base_model().vlm
        else:
            self._vlm = copy.deepcopy(model.vlm) if reference is None else reference.to(model.device)
            self._vlm.requires_grad_(False)
        known = torch.arange(min(num_tokens, self._vlm.get_input_embeddings().weight.shape[0]))
        self._tokens = known[~torch.isin(known, action_token_ids)]

    @torch.no_grad()
    def predictions(self, batch: dict) -> torch.Tensor:
        """Let the untouched VLM predict the documents of a batch: logits (n, vocabulary) of their learned tokens.

        To be called before the policy's own forward: with LoRA the adapters are off for a moment.
        """
        documents = are_documents(batch["labels"])
        shape = batch["input_ids"].shape
        text = {
            name: values[documents]
            for name, values in batch.items()
            if torch.is_tensor(values) and values.shape == shape
        }
        rows, _ = supervised_tokens(text.pop("labels"), text["input_ids"])
        text.pop("expert_attention_mask")
        without_adapters = nullcontext() if self._policy is None else self._policy.disable_adapter()
        with without_adapters, eval_mode(self._vlm), token_logits(self._vlm, rows):
            return self._vlm(**text, use_cache=False).logits[0]

    def divergence(
        self,
        logits: torch.Tensor,
        predictions: torch.Tensor,
        labels: torch.Tensor,
        candidates_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum up the KL divergence over the tokens of documents.

        Args:
            logits: (n, vocabulary), of the learned positions (`KIVLAOutput.logits`).
            predictions: of `predictions`.
            labels: (B, S).
            candidates_mask: (B, S) bool, those that `logits` leaves out; no document has such.
        """
        is_learned = labels != -100 if candidates_mask is None else (labels != -100) & ~candidates_mask
        example = is_learned[:, 1:].nonzero()[:, 0]
        of_documents = are_documents(labels)[example]
        return kl_to_reference(logits[of_documents], predictions, self._tokens.to(logits.device)).sum()


__all__ = ["Anchor", "kl_to_reference"]

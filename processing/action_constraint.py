"""Decoding of action tokens: only what can still become a chunk may be said."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor


@dataclass(frozen=True)
class CodeGrammar:
    """How codes add up to the values of a chunk.

    A code may stand for several values. Byte-level codes may also begin a value (a UTF-8 character) without ending it.

    Attributes:
        values: (vocab_size,) int, values that a code begins; -1 for a code that means nothing.
        closes: (vocab_size,) int, bytes that it adds to a value which was begun before.
        opens: (vocab_size,) int, bytes that the last value which it begins still lacks.
    """

    values: np.ndarray
    closes: np.ndarray
    opens: np.ndarray


class ActionTokenConstraint(LogitsProcessor):
    """Lets `generate` say action tokens only, and the end exactly when the chunk is complete.

    A policy that was taught to say a response first may say it: words are free until the first action token, and there
    is no end without a chunk.

    With a grammar every sequence is a chunk, whatever the model wants to say: a code is allowed while what it stands
    for still fits. Without one (an action tokenizer that cannot tell) the codes and the end are always allowed, and
    what comes out may fail to decode. Beams and repeated samples of an example are understood.

    Args:
        action_token_ids: (vocab_size,), the token of every code.
        end_token_id: the token that ends the turn.
        prompt_length: tokens of `input_ids` that were there before `generate`.
        num_values: for each example of the batch, values of a complete chunk: `chunk_size · action_dim`.
        grammar: of the action tokenizer, or None.
        max_response_tokens: longest response; then actions begin. 0: they begin at once.
    """

    def __init__(
        self,
        action_token_ids: np.ndarray,
        end_token_id: int,
        prompt_length: int,
        num_values: Sequence[int],
        grammar: CodeGrammar | None,
        max_response_tokens: int = 0,
    ):
        self.action_token_ids = torch.as_tensor(action_token_ids)
        self.end_token_id = end_token_id
        self.prompt_length = prompt_length
        self.max_response_tokens = max_response_tokens
        self.num_values = torch.as_tensor(num_values)
        self.grammar = self._of_token = None
        if grammar is not None:
            rows = np.stack([grammar.values, grammar.closes, grammar.opens]).astype(np.int64)
            self.grammar = torch.from_numpy(rows)  # (3, vocab_size)
            # The same by token; the last column is for the end and the padding behind it, which count as nothing.
            self._of_token = torch.zeros(3, int(self.action_token_ids.max()) + 2, dtype=torch.long)
            self._of_token[:, self.action_token_ids] = self.grammar

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        ids = self.action_token_ids.to(scores.device)
        said = input_ids[:, self.prompt_length :]
        acts = torch.isin(said, ids).any(1) | (said.shape[1] >= self.max_response_tokens)  # (B,)
        if self.grammar is None:
            allowed = torch.ones(len(scores), len(ids), dtype=torch.bool, device=scores.device)
            end = acts
        else:
            allowed, end = self._allowed(said)
        constrained = scores.masked_fill(acts[:, None], -torch.inf)
        constrained[:, ids] = scores[:, ids].masked_fill(~allowed, -torch.inf)
        constrained[:, self.end_token_id] = scores[:, self.end_token_id].masked_fill(~end, -torch.inf)
        return constrained

    def is_complete(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Say which chunks are complete, (B,) bool: nothing but the end may follow. Without a grammar none is known."""
        if self.grammar is None:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        left, lacking = self._left(input_ids[:, self.prompt_length :])
        return (left == 0) & (lacking == 0)

    def _allowed(self, said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) tokens so far -> (B, vocab_size) codes that may follow, and (B,) whether the end must."""
        values, closes, _ = self.grammar.to(said.device)
        left, lacking = (x[:, None] for x in self._left(said))
        closes_it = (closes == lacking) | ((values == 0) & (closes <= lacking))
        does_something = (values > 0) | (closes > 0)
        allowed = (values >= 0) & (values <= left) & closes_it & does_something
        return allowed, ~allowed.any(1)

    def _left(self, said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) tokens so far -> (B,) values that are still to be begun, and (B,) bytes that the last one lacks."""
        device = said.device
        position = torch.arange(1, said.shape[1] + 1, device=device)
        of_token = self._of_token.to(device)
        begun, added, open_after = of_token[:, said.clamp(max=of_token.shape[1] - 1)]  # (B, T) each
        last = ((begun > 0) * position).amax(1) if said.shape[1] else torch.zeros(len(said), device=device)  # from 1
        lacking = (open_after * (position == last[:, None])).sum(1)
        lacking = lacking - (added * (position > last[:, None])).sum(1)
        repeats = len(said) // len(self.num_values)  # beams and samples of an example follow each other
        left = self.num_values.to(device).repeat_interleave(repeats) - begun.sum(1)
        return left, lacking


__all__ = ["ActionTokenConstraint", "CodeGrammar"]

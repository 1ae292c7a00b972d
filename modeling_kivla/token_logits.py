"""Logits of the supervised positions alone, and one gradient for the vocabulary's matrix.

With 257,000 tokens the matrix of the vocabulary is a fifth of a VLM of three billion parameters, and a buffer of its
size is what the memory of a backward pass ends with. Where embedding and output layer share the matrix, PyTorch makes
three: the output layer's gradient, the embedding's, and their sum. Here the embedding's few rows are added to the
output layer's gradient in place, by autograd's own order and so with whatever stands around the model.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from .backbone_attention import find_language_head
from .call_hooks import call_hook, has_other_hooks
from .next_token import ClosedChoice

# Families that do something to the logits of some tokens alone: Chameleon never says a picture, and Inkling 2 leaves
# out the last rows. Their candidates are taken from the logits of all tokens.
_CHANGE_COLUMNS = ("chameleon", "inkling2", "inkling2_loop")
# What becomes of the VLM's logits: those among all tokens (n, vocabulary), and among candidates (m, k) or None.
SplitLogits = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


class _MatrixAndRows(torch.autograd.Function):
    """A matrix (V, W) as it is, and rows of it (..., W) for every tensor of ids; their gradients are one buffer."""

    @staticmethod
    def forward(ctx, matrix: torch.Tensor, padding_idx: int | None, *ids: torch.Tensor):
        ctx.save_for_backward(*ids)
        ctx.shape, ctx.padding_idx = matrix.shape, padding_idx
        ctx.set_materialize_grads(False)
        return matrix.view_as(matrix), *(F.embedding(i, matrix) for i in ids)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_matrix: torch.Tensor | None, *of_rows: torch.Tensor | None):
        ids = ctx.saved_tensors
        given = [(i, gradient) for i, gradient in zip(ids, of_rows, strict=True) if gradient is not None]
        if of_matrix is None and given:
            of_matrix = given[0][1].new_zeros(ctx.shape)
        for i, gradient in given:
            gradient = gradient.flatten(0, -2)  # (n, W)
            if ctx.padding_idx is not None:  # a row that an embedding never learns
                gradient = gradient.masked_fill((i.flatten() == ctx.padding_idx)[:, None], 0.0)
            # (A GPU adds to one row in any order, unless torch is told to be deterministic.)
            of_matrix.add_(torch.sparse_coo_tensor(i.flatten()[None], gradient, ctx.shape, check_invariants=False))
        return of_matrix, None, *[None] * len(ids)


class _LookUp(TorchFunctionMode):
    """While an embedding runs, its look-up also gives its matrix for the output layer."""

    def __init__(self, embedding: nn.Embedding, *ids: torch.Tensor):
        super().__init__()
        self.embedding, self.ids = embedding, ids
        self.outputs: tuple[torch.Tensor, ...] | None = None  # the matrix, and its rows of `ids`

    def __torch_function__(self, func, types, args=(), kwargs=None):
        weight = self.embedding.weight
        if func is not F.embedding or args[1] is not weight or self.outputs is not None:
            return func(*args, **(kwargs or {}))
        matrix, looked_up, *rows = _MatrixAndRows.apply(weight, self.embedding.padding_idx, args[0], *self.ids)
        self.outputs = matrix, *rows
        return looked_up


@contextmanager
def token_logits(vlm: PreTrainedModel, rows: torch.Tensor, closed: ClosedChoice | None = None) -> Iterator[SplitLogits]:
    """Make the VLM compute logits at some positions only, and at some of those of some tokens only.

    Everything happens inside the VLM's own forward, so that whatever the family does to its logits afterwards
    (soft-capping, scaling) is kept. An output layer that is not a plain `nn.Linear` (quantised, wrapped by peft,
    offloaded or sharded by itself) runs as it is, on all tokens, of which the candidates are then taken.

    Args:
        rows: flat indices (n,) into B·S.
        closed: which of them choose among some tokens alone.

    Yields:
        A function that turns the logits which the VLM returned into those of the other positions (n - m, vocabulary)
        and those of the closed ones (m, k).
    """
    head: Any = find_language_head(vlm).get_output_embeddings()
    embedding: Any = vlm.get_input_embeddings()
    device, is_plain = head.weight.device, _is_plain(head)
    is_closed, candidates = (None, None) if closed is None else closed
    chosen = () if candidates is None else (candidates := candidates.to(device),)
    shares = is_plain and _shares_its_gradient(embedding, head)
    look_up = _LookUp(embedding, *chosen) if shares else None
    waiting: list[torch.Tensor] = []

    def select(args: tuple, _) -> tuple:
        hidden = args[0].flatten(0, 1)  # (B·S, W)
        if not computes:
            return (hidden[rows.to(hidden.device)][None],)
        waiting.append(hidden)
        return (hidden[None, :0],)

    def compute(output: torch.Tensor) -> torch.Tensor:
        """What the layer would have returned: (1, n, vocabulary). With candidates, both kinds of logits as one column:
        what a family does to every number (capping, scaling) suits it, and what is about columns fails."""
        if not computes:
            return output
        hidden, bias = waiting.pop(), head.bias
        outputs = None if look_up is None else look_up.outputs
        if outputs is None:  # the embedding was not asked, or has a matrix of its own
            outputs = _MatrixAndRows.apply(head.weight, None, *chosen) if chosen else (head.weight,)
        hidden = hidden[rows.to(device)]  # (n, W)
        if is_closed is None:
            return F.linear(hidden, outputs[0], bias)[None]
        mask = is_closed.to(device)
        logits = F.linear(hidden[~mask], outputs[0], bias)  # (n - m, vocabulary)
        among = F.linear(hidden[mask], outputs[1], None if bias is None else bias[candidates])  # (m, k)
        return torch.cat([logits.flatten(), among.flatten()])[None, :, None]

    def split(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = logits[0]
        if is_closed is None:
            return logits, None
        mask = is_closed.to(logits.device)
        if not computes:
            return logits[~mask], logits[mask][:, candidates.to(logits.device)]
        sizes = [int((~mask).sum()) * head.out_features, int(mask.sum()) * len(candidates)]
        among_all, among_candidates = logits.squeeze(-1).split(sizes)
        return among_all.view(-1, head.out_features), among_candidates.view(-1, len(candidates))

    treats_all_alike = vlm.config.model_type not in _CHANGE_COLUMNS
    computes = is_plain and (look_up is not None if is_closed is None else treats_all_alike)
    with ExitStack() as stack:
        stack.enter_context(call_hook(head, before=select, after=compute))
        if look_up is not None:
            stack.enter_context(_running_with(look_up, embedding))
        yield split


@contextmanager
def _running_with(look_up: _LookUp, embedding: nn.Module) -> Iterator[None]:
    """Let the mode be on while the embedding runs, and no longer: every operation of a call would go through it."""
    with ExitStack() as running:

        def enter(*_) -> None:
            running.enter_context(look_up)

        def leave(output: torch.Tensor) -> torch.Tensor:
            running.close()
            return output

        with call_hook(embedding, before=enter, after=leave):
            yield


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is its product and nothing else, which may then be computed here."""
    return type(layer) is nn.Linear and "forward" not in vars(layer) and not has_other_hooks(layer)


def _shares_its_gradient(embedding: nn.Module, head: nn.Linear) -> bool:
    """Whether embedding and output layer are one matrix that learns now, looked up and nothing else."""
    weight = head.weight
    return (
        isinstance(embedding, nn.Embedding)
        and embedding.weight is weight
        and weight.requires_grad
        and torch.is_grad_enabled()
        and weight.device.type in ("cpu", "cuda")  # which can add a sparse gradient to a dense one
        and not (embedding.max_norm or embedding.scale_grad_by_freq or embedding.sparse)
        and not has_other_hooks(embedding)
    )


__all__ = ["token_logits"]

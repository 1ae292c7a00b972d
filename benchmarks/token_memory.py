"""How much memory does the token loss of a large vocabulary need, beside what PyTorch does by itself?

python -m benchmarks.token_memory
python -m benchmarks.token_memory --width 512 --vocabularies 4096 32768 257152

Forward and backward of a step in which the VLM alone learns tokens. Three ways, with the same weights and inputs:

    plain           logits of the supervised positions, PyTorch's cross-entropy, embedding and output layer tied
    exact           the same loss and gradients, as `KIVLAForActionPrediction` computes them
    action tokens   `--action_token_softmax action_tokens`, another loss: 1,024 codes and the end are all there is

Memory is that of all tensors that the step makes, at its peak, in units of the vocabulary's matrix (tokens x width).
The gradient itself is one unit, so nothing can be below 1. It is exact and the same in every run, and no clock is read.
"""

import argparse
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from kivla.modeling_kivla import KIVLAForActionPrediction
from kivla.modeling_kivla.call_hooks import call_hook
from kivla.modeling_kivla.next_token import supervised_tokens

from .options import count
from .policies import SMALL, TINY, Size, gradient, policy, token_batch
from .timing import peak_memory

CODES = 1024
BATCHES = (1, 16)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.token_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=count, default=SMALL.hidden_size, help="of the VLM (default: %(default)s)")
    parser.add_argument("--vocabularies", type=count, nargs="+", default=[32_768, 257_152], help="numbers of tokens")
    parser.add_argument("--quick", action="store_true", help="one tiny size: shows that it works, no more")
    options = parser.parse_args(arguments)
    sizes = [
        replace(SMALL, hidden_size=options.width, num_layers=2, suffix_length=40, vocab_size=n)
        for n in options.vocabularies
    ]
    print(make_table([replace(TINY, vocab_size=2048)] if options.quick else sizes))


def make_table(sizes: list[Size]) -> str:
    """One row for each vocabulary and batch; gradients of the first two ways are compared before anything is measured.

    Raises:
        AssertionError: they differ.
    """
    lines = ["| vocabulary | learned tokens | plain | exact | action tokens |", "|--:|--:|--:|--:|--:|"]
    for size in sizes:
        model = policy(size)
        unit = model.get_output_embeddings().weight.nbytes
        for batch_size in BATCHES:
            batch = token_batch(size, batch_size)
            ways = (_plain, _exact, _among_action_tokens)
            _step(model, batch, _plain)
            expected = gradient(model.vlm)
            _step(model, batch, _exact)
            torch.testing.assert_close(gradient(model.vlm), expected, rtol=1e-4, atol=1e-6)
            peaks = []
            for way in ways:
                model.zero_grad()  # so that every way makes room for the gradients
                peaks.append(peak_memory(partial(_step, model, batch, way)) / unit)
            learned = batch_size * size.suffix_length
            cells = [f"{size.vocab_size:,}", f"{learned:,}", *(f"{peak:.2f}" for peak in peaks)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _step(model: KIVLAForActionPrediction, batch: dict[str, torch.Tensor], way) -> None:
    model.zero_grad()
    way(model, batch).backward()


def _plain(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    rows, targets = supervised_tokens(batch["labels"], batch["input_ids"])

    def select(args: tuple, _) -> tuple:
        return (args[0].flatten(0, 1)[rows][None],)

    with call_hook(model.get_output_embeddings(), before=select):
        logits = model.vlm(**inputs, use_cache=False).logits[0]
    return F.cross_entropy(logits.float(), targets)


def _exact(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).token_loss


def _among_action_tokens(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The inputs' tokens are drawn from the whole vocabulary: here they are codes, as many as there are of them."""
    learned = batch["labels"] != -100
    codes = torch.arange(CODES + 1)
    labels = batch["labels"].where(~learned, batch["labels"] % len(codes))
    return model(**{**batch, "labels": labels}, candidates=codes, candidates_mask=learned).token_loss


if __name__ == "__main__":
    main()

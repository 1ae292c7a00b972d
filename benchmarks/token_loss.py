"""What logits at supervised positions only save with a large vocabulary."""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from kivla.modeling_kivla.next_token import next_token_loss, token_losses
from kivla.modeling_kivla.token_logits import token_logits

from .policies import SMALL, TINY, gradient, policy, token_batch, train
from .report import Comparison, Measurement
from .timing import interleaved, peak_memory

BATCH = 1
LARGE_VOCABULARY = replace(  # PaliGemma's, and a prefix of 800 tokens
    SMALL, num_layers=2, image_size=266, prompt_length=78, suffix_length=40, vocab_size=257_152
)


def measure(quick: bool) -> Measurement:
    size = TINY if quick else LARGE_VOCABULARY
    measurement = Measurement(
        "Token loss without the full logits",
        f"Forward and backward of the token loss; vocabulary {size.vocab_size:,}, hidden size {size.hidden_size}, "
        f"batch {BATCH}, {size.prefix_length + size.suffix_length} tokens of which {size.suffix_length} are "
        "supervised, float32. The alternative is the VLM's own loss on the same weights. The loss alone goes from the "
        "last hidden states to the gradients of them and of the output matrix; the whole step is that of a VLM of "
        f"{size.num_layers} layers, whose embedding is that matrix and has a gradient as large once more. "
        "Memory is that of all tensors that one step makes, at its peak, gradients included (torch's profiler).",
    )

    model = policy(size)
    batch = token_batch(size, BATCH)
    loss, own_gradient = train(model, batch), gradient(model.vlm)
    measurement.check_equal("Token losses", loss, train(model.vlm, batch), 1e-5)
    measurement.check_equal("Gradients of the backbone", own_gradient, gradient(model.vlm), 1e-4)

    hidden = torch.randn(*batch["labels"].shape, size.hidden_size, requires_grad=True)
    whole, alone = "the whole step", "the loss alone"
    calls = {
        whole: (partial(train, model, batch), partial(train, model.vlm, batch)),
        alone: (
            partial(_loss_at_supervised, model.vlm, hidden, batch["labels"]),
            partial(_loss_of_the_vlm, model.vlm, hidden, batch["labels"]),
        ),
    }
    ours, theirs = (call() for call in calls[alone])
    measurement.check_equal("Token losses of the same hidden states", ours[0], theirs[0], 1e-5)
    measurement.check_equal("Gradients of the hidden states", ours[1], theirs[1], 1e-4)
    for what, pair in calls.items():
        names = ("supervised positions", "all positions")
        seconds = interleaved(what, dict(zip(names, pair, strict=True)), repetitions=2 if quick else 5)
        memory = []
        for call in pair:
            model.zero_grad()  # so that both make room for the gradients
            memory.append([peak_memory(call)])
        measurement.comparisons += [
            Comparison(f"{what}, supervised positions", seconds[names[0]], names[1], seconds[names[1]]),
            Comparison(f"peak memory of {what}", memory[0], names[1], memory[1], unit="bytes"),
        ]
    return measurement


def _loss_at_supervised(vlm: nn.Module, hidden: torch.Tensor, labels: torch.Tensor):
    """What the model does with the last hidden states (B, S, W); the loss, and its gradient with respect to them."""
    targets = labels[0, 1:]
    rows = (targets != -100).nonzero().squeeze(-1)  # of one example
    with token_logits(vlm, rows):
        logits = vlm.get_output_embeddings()(hidden)[0]
    return _backward(vlm, hidden, next_token_loss(token_losses(logits, targets[rows])))


def _loss_of_the_vlm(vlm: nn.Module, hidden: torch.Tensor, labels: torch.Tensor):
    logits = vlm.get_output_embeddings()(hidden)
    return _backward(vlm, hidden, vlm.loss_function(logits, labels, vocab_size=logits.shape[-1]))


def _backward(vlm: nn.Module, hidden: torch.Tensor, loss: torch.Tensor):
    vlm.zero_grad()
    hidden.grad = None
    loss.backward()
    return loss.detach(), hidden.grad

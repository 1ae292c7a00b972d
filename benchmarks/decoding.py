"""What acting by tokens costs: with and without a cache, with fewer logits, in a batch, and up to the last code."""

import copy
from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import torch

from kivla.demo.stages import TabletopArguments
from kivla.modeling_kivla import generation_kivla

from .demo import demonstrated
from .policies import millions
from .report import Comparison, Measurement
from .timing import interleaved

BATCH = 8
VOCABULARY = 257_152  # PaliGemma's


def measure(quick: bool) -> Measurement:
    args = TabletopArguments(num_demonstrations=2 if quick else 50)
    with demonstrated(args) as (data, model, processor):
        examples = [data[i] for i in np.linspace(0, len(data) - 1, BATCH).astype(int).tolist()]
    model.eval()
    torch.manual_seed(0)
    with torch.no_grad():  # codes far apart, so that rounding decides nothing
        embedding = model.get_input_embeddings()
        embedding.weight[processor.action_token_ids] = torch.randn(
            len(processor.action_token_ids), embedding.embedding_dim
        )
    large = copy.deepcopy(model)
    large.resize_token_embeddings(1000 if quick else VOCABULARY, mean_resizing=False)
    prompts = {name: [example[name] for example in examples] for name in ("images", "text")}
    inputs = processor(**prompts)
    ones = [processor(**{name: values[i : i + 1] for name, values in prompts.items()}) for i in range(BATCH)]
    measurement = Measurement(
        "Acting by tokens",
        f"{BATCH} chunks of {args.chunk_size} x {data.action_dim} values as FAST tokens, greedy; {millions(model)} "
        f"parameters, and {millions(large)} with a vocabulary of {large.get_input_embeddings().num_embeddings:,}; the "
        "action tokens have random weights, so what the policy does means nothing.",
    )

    def with_all_logits():
        with patch.object(generation_kivla, "logits_of", lambda *_: nullcontext()):
            return large.generate_actions(processor, **inputs)

    def to_the_end():
        with patch.object(generation_kivla.ChunkComplete, "__call__", lambda _, ids, *__, **___: ids[:, 0] < 0):
            return model.generate_actions(processor, **ones[0])

    cached, uncached, single = "with a cache, as one batch", "without a cache", "one by one"
    last, end = "one chunk, up to its last code", "up to the end of the turn"
    some, every = "large vocabulary, logits of action tokens", "logits of all tokens"
    calls = {
        cached: lambda: model.generate_actions(processor, **inputs),
        uncached: lambda: model.generate_actions(processor, **inputs, use_cache=False),
        single: lambda: [model.generate_actions(processor, **one)[0] for one in ones],
        last: lambda: model.generate_actions(processor, **ones[0]),
        end: to_the_end,
        some: lambda: large.generate_actions(processor, **inputs),
        every: with_all_logits,
    }
    pairs = [(cached, uncached), (cached, single), (last, end), (some, every)]
    for a, b in pairs:
        ours, theirs = (torch.tensor(np.stack(calls[name]())) for name in (a, b))
        measurement.check_equal(f"Chunks {a} and {b}", ours, theirs)
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 10)
    measurement.comparisons = [Comparison(a, seconds[a], b, seconds[b]) for a, b in pairs]
    return measurement

"""What logits at supervised positions only save with a large vocabulary."""

from dataclasses import replace
from functools import partial

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
        f"{size.num_layers} layers, batch {BATCH}, {size.prefix_length + size.suffix_length} tokens of which "
        f"{size.suffix_length} are supervised, float32. The alternative is the VLM's own loss on the same weights. "
        "Memory is that of all tensors that one step makes, at its peak, gradients included (torch's profiler).",
    )

    model = policy(size)
    batch = token_batch(size, BATCH)
    loss, own_gradient = train(model, batch), gradient(model.vlm)
    measurement.check_equal("Token losses", loss, train(model.vlm, batch), 1e-5)
    measurement.check_equal("Gradients of the backbone", own_gradient, gradient(model.vlm), 1e-4)

    calls = {"ours": partial(train, model, batch), "theirs": partial(train, model.vlm, batch)}
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 5)
    memory = {}
    for who, call in calls.items():
        model.zero_grad()  # so that both make room for the gradients
        memory[who] = [peak_memory(call)]
    measurement.comparisons = [
        Comparison("time, supervised positions", seconds["ours"], "all positions", seconds["theirs"]),
        Comparison(
            "peak memory, supervised positions", memory["ours"], "all positions", memory["theirs"], unit="bytes"
        ),
    ]
    return measurement

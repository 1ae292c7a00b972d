"""`python -m benchmarks.bfloat16`: what bfloat16 saves on a CPU, in a chunk and in a training step.

Attention is computed in float32 there; beside it stands what attention in bfloat16 would take.
"""

import argparse
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch

from kivla.modeling_kivla import KIVLAForActionPrediction, action_expert, backbone_attention

from .options import count
from .policies import (
    ACTION_DIM,
    MEDIUM,
    PROPORTIONED,
    TINY,
    WIDE_EXPERT,
    Size,
    action_inputs,
    flow_draws,
    millions,
    observation,
    policy,
    token_batch,
    train,
)
from .report import Comparison, Measurement, as_markdown
from .sampling import STEPS
from .timing import interleaved

BATCH, DRAWS = 4, 4
FLOAT32, NARROW = "float32", "bfloat16, attention too"
SIZES = {"proportioned": PROPORTIONED, "medium": MEDIUM, "wide": replace(WIDE_EXPERT, chunk_size=16)}


def measure_chunk(size: Size, repetitions: int) -> Measurement:
    full = policy(size).eval()
    half = copy.deepcopy(full).to(torch.bfloat16)
    mixed = copy.deepcopy(half)
    mixed.expert.float()
    measurement = Measurement(
        f"A chunk in bfloat16, {_about(full, size)}",
        f'Prefix of {size.prefix_length} and {STEPS} Euler steps, batch 1. bfloat16 is `dtype="bfloat16"`.',
    )
    noise = torch.randn(1, size.chunk_size, ACTION_DIM, generator=torch.Generator().manual_seed(5))
    inputs = {**observation(size, 1), "noise": noise}
    models = {FLOAT32: full, "bfloat16": half, "bfloat16, its expert in float32": mixed}
    sample = {name: partial(model.sample_actions, **inputs) for name, model in models.items()}
    sample[NARROW] = partial(_with_narrow_attention, sample["bfloat16"])
    expected = sample[FLOAT32](num_steps=STEPS)
    for name in list(sample)[1:]:
        measurement.check_equal(f"Actions, {name}, and {FLOAT32}", sample[name](num_steps=STEPS), expected, 2e-2)
    calls = {f"{name}, {n}": partial(call, num_steps=n) for name, call in sample.items() for n in (1, STEPS)}
    seconds = interleaved(measurement.title, calls, repetitions)
    one, whole = ({name: seconds[f"{name}, {n}"] for name in sample} for n in (1, STEPS))
    measurement.comparisons = _comparisons("a chunk", whole) + _comparisons("prefix and 1 step", one)
    return measurement


def measure_step(size: Size, repetitions: int) -> Measurement:
    model = policy(size)
    model.config.num_flow_samples = DRAWS
    half = copy.deepcopy(model).to(torch.bfloat16)
    batch = token_batch(size, BATCH) | action_inputs(size, BATCH) | flow_draws(size, BATCH * DRAWS)
    measurement = Measurement(
        f"A training step in bfloat16, {_about(model, size)}",
        f"Forward and backward, insulated, batch {BATCH}, {DRAWS} noise draws, prefix {size.prefix_length}, "
        f"{size.suffix_length} tokens to learn. bfloat16 is mixed precision (`bf16=True`).",
    )
    calls = {FLOAT32: partial(train, model, batch), "bfloat16": partial(_mixed, model, batch)}
    calls[NARROW] = partial(_with_narrow_attention, calls["bfloat16"])
    calls["bfloat16, its weights too"] = partial(train, half, batch)
    expected = calls[FLOAT32]()
    for name in list(calls)[1:]:
        measurement.check_equal(f"Losses, {name}, and {FLOAT32}", calls[name](), expected, 2e-2)
    measurement.comparisons = _comparisons("a step", interleaved(measurement.title, calls, repetitions))
    return measurement


def _comparisons(what: str, seconds: dict[str, list[float]]) -> list[Comparison]:
    rows = [Comparison(f"{what}, {name}", seconds[name], FLOAT32, seconds[FLOAT32]) for name in list(seconds)[1:]]
    return [*rows, Comparison(f"{what}, bfloat16", seconds["bfloat16"], NARROW, seconds[NARROW])]


def _mixed(model: KIVLAForActionPrediction, batch: dict) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return train(model, batch)


def _with_narrow_attention(call: Callable, **kwargs):
    """Call it with attention in the type of the layers around it."""
    of_layers = {"attention_dtype": lambda device, dtype: dtype}
    with (
        patch.multiple(action_expert, **of_layers, without_autocast=_as_it_is),
        patch.multiple(backbone_attention, **of_layers, is_autocast_on=lambda device: False),
    ):
        return call(**kwargs)


def _as_it_is(device: torch.device) -> AbstractContextManager:
    return nullcontext()


def _about(model: KIVLAForActionPrediction, size: Size) -> str:
    return f"backbone {millions(model.vlm)}, expert {millions(model.expert)}, chunk {size.chunk_size}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bfloat16", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, a few seconds: shows that it works, no more")
    parser.add_argument("--threads", type=count, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES], help="policies (default: all)")
    parser.add_argument("--repetitions", type=count, default=20, help="of everything (default: 20)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = [TINY] if options.quick else [SIZES[name] for name in options.sizes]
    repetitions = 2 if options.quick else options.repetitions
    print(as_markdown([measure(size, repetitions) for size in sizes for measure in (measure_chunk, measure_step)]))


if __name__ == "__main__":
    main()

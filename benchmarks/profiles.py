"""`python -m benchmarks.profiles`: where the time of acting compiled and of a training step goes.

By torch's profiler, whose own cost is in the numbers: shares count. The optimiser is timed in its three forms.
`kivla profile` looks at your own training.
"""

import argparse
import statistics
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from kivla.modeling_kivla import KIVLAForActionPrediction

from .bare_products import bare_products
from .options import count
from .policies import ACTION_DIM, MEDIUM, TINY, Size, action_inputs, millions, observation, policy, token_batch, train
from .sampling import STEPS
from .timing import interleaved

BATCH, DRAWS = 4, 4
COMPILED_GRAPH = "## Call CompiledFxGraph"
KINDS = {"attention": ("scaled_dot_product",), "matrix products": ("aten::mm", "aten::addmm", "aten::bmm")}


def self_times(call, repetitions: int) -> dict[str, float]:
    """Milliseconds of one call that every operation takes by itself."""
    for _ in range(3):
        call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repetitions):
            call()
    return {event.key: event.self_cpu_time_total / 1e3 / repetitions for event in profiler.key_averages()}


def denoising(size: Size, repetitions: int) -> dict[str, float]:
    """Milliseconds of one compiled Euler step: in the graph, around it, and its bare products."""
    model = policy(size).eval()
    prefix = model.encode_prefix(**observation(size, 1))
    noise = torch.randn(1, size.chunk_size, ACTION_DIM)
    sample = partial(model.sample_actions, prefix=prefix, noise=noise, num_steps=STEPS)
    products = bare_products(sample)
    model.compile_expert()
    times = self_times(sample, repetitions)
    graph = sum(time for name, time in times.items() if name.startswith(COMPILED_GRAPH))
    floor = sum(self_times(products, repetitions).values())
    parts = {"compiled graph": graph, "around it": sum(times.values()) - graph, "bare products": floor}
    return {name: time / STEPS for name, time in parts.items()}


def training(size: Size, repetitions: int) -> dict[str, float]:
    """Milliseconds of the expert's forward and backward, insulated, by kind of operation."""
    model: KIVLAForActionPrediction = policy(size)
    model.config.num_flow_samples = DRAWS
    prefix = model.encode_prefix(**observation(size, BATCH))
    actions = torch.randn(BATCH, size.chunk_size, ACTION_DIM)
    mask = torch.ones_like(actions, dtype=torch.bool)

    def step():
        model.zero_grad()
        _, loss = model._flow(prefix, actions, mask, None, (None, None, None), None)
        loss.backward()

    times = self_times(step, repetitions)
    parts = {kind: sum(t for n, t in times.items() if any(m in n for m in marks)) for kind, marks in KINDS.items()}
    return {**parts, "the rest": sum(times.values()) - sum(parts.values())}


def whole_step(size: Size, repetitions: int) -> dict[str, float]:
    """Milliseconds of a training step: forward and backward, clipping, and AdamW in each of torch's forms."""
    model = policy(size)
    model.config.num_flow_samples = DRAWS
    batch = token_batch(size, BATCH) | action_inputs(size, BATCH)
    parameters = list(model.parameters())
    forms = {"fused": {"fused": True}, "by lists": {"foreach": True}, "one by one": {"foreach": False}}
    optimizers = {how: torch.optim.AdamW(parameters, lr=1e-9, **form) for how, form in forms.items()}
    calls = {"forward and backward": partial(train, model, batch)}
    for how, foreach in (("by lists", True), ("one by one", False)):
        calls[f"clipping, {how}"] = partial(torch.nn.utils.clip_grad_norm_, parameters, 1e9, foreach=foreach)
    calls |= {f"AdamW, {how}": optimizer.step for how, optimizer in optimizers.items()}
    seconds = interleaved("a whole step", calls, repetitions)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiles", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, no more")
    parser.add_argument("--threads", type=count, default=2, help="CPU threads (default: 2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    size, repetitions = (TINY, 1) if options.quick else (MEDIUM, 10)
    print(f"{millions(policy(size))} parameters, {options.threads} threads\n")
    title = f"expert's training step, batch {BATCH}, {DRAWS} draws"
    tables = {"compiled denoising step": denoising, title: training, "whole training step": whole_step}
    for name, measure in tqdm(tables.items(), desc="profiles", leave=False):
        parts = measure(size, repetitions)
        print(f"| {name} | ms |\n|---|--:|")
        print("\n".join(f"| {part} | {time:.2f} |" for part, time in parts.items()) + "\n")


if __name__ == "__main__":
    main()

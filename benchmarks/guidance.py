"""What real-time chunking costs: chunks that go on from old ones, by guidance and by training, beside ordinary chunks.

`python -m benchmarks.guidance` measures it alone.
"""

import argparse
import copy
from dataclasses import replace
from functools import partial

import torch

from kivla.modeling_kivla import KIVLAForActionPrediction, RealTimeChunking

from .options import count
from .policies import ACTION_DIM, MEDIUM, SMALL, TINY, WIDE_EXPERT, Size, millions, observation, policy
from .report import Comparison, Measurement, as_markdown
from .timing import interleaved

STEPS = 10
SIZES = {"small": SMALL, "medium": MEDIUM, "wide": WIDE_EXPERT}
ORDINARY = "ordinary"


def measure(quick: bool, size: Size) -> Measurement:
    size = TINY if quick else size
    model = policy(size).eval()
    model.config.rtc_max_delay = size.chunk_size // 4
    # As a server has it: where parameters have no gradients, a compiled backward pass does not compute them.
    model.requires_grad_(False)
    compiled = copy.deepcopy(model)
    compiled.compile_expert()
    measurement = Measurement(
        f"Real-time chunking, {millions(model)} parameters",
        f"{STEPS} Euler steps, batch 1, backbone {millions(model.vlm)}, expert {millions(model.expert)} parameters, "
        f"prefix {size.prefix_length}, chunk {size.chunk_size}, of which half is left of the old one and a quarter is "
        "held. The loop is that of the expert alone, the prefix is there already; the chunk is the VLM and the loop. "
        "Compiled is `model.compile_expert()`, once it is warm.",
    )
    inputs = observation(size, batch_size=1)
    noise = torch.randn(1, size.chunk_size, ACTION_DIM, generator=torch.Generator().manual_seed(5))
    rtc = {method: _half_a_chunk(size, method) for method in ("guidance", "trained")}

    # Without weight and without a delay both are the ordinary chunk.
    ordinary = model.sample_actions(**inputs, noise=noise, num_steps=STEPS)
    no_weight = replace(rtc["guidance"], max_guidance_weight=0.0)
    no_delay = replace(rtc["trained"], delay=torch.tensor([0]))
    for what, same in (("guidance without weight", no_weight), ("training without a delay", no_delay)):
        actions = model.sample_actions(**inputs, noise=noise, num_steps=STEPS, rtc=same)
        measurement.check_equal(f"Actions, ordinary and by {what},", actions, ordinary, tolerance=1e-5)
    for method, given in rtc.items():
        expected, found = (one.sample_actions(**inputs, noise=noise, rtc=given) for one in (model, compiled))
        measurement.check_equal(f"Actions by {method}, compiled and not,", found, expected, tolerance=1e-4)

    calls = {}
    for how, one in (("", model), (", compiled", compiled)):
        for name, given in {ORDINARY: None, **rtc}.items():
            calls[f"{name}, loop{how}"] = _loop(one, inputs, noise=noise, rtc=given)
            calls[f"{name}, chunk{how}"] = partial(
                one.sample_actions, **inputs, noise=noise, num_steps=STEPS, rtc=given
            )
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 15)
    measurement.comparisons = [
        Comparison(f"{method}, {what}", seconds[f"{method}, {what}"], ORDINARY, seconds[f"{ORDINARY}, {what}"])
        for what in ("loop", "chunk", "loop, compiled", "chunk, compiled")
        for method in rtc
    ]
    return measurement


def _half_a_chunk(size: Size, method: str) -> RealTimeChunking:
    generator = torch.Generator().manual_seed(6)
    previous = torch.randn(1, size.chunk_size, ACTION_DIM, generator=generator)
    left, delay = torch.tensor([size.chunk_size // 2]), torch.tensor([size.chunk_size // 4])
    return RealTimeChunking(previous, left, delay, method)


def _loop(model: KIVLAForActionPrediction, inputs: dict, **given) -> partial:
    return partial(model.sample_actions, prefix=model.encode_prefix(**inputs), num_steps=STEPS, **given)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, a few seconds: shows that it works, no more")
    parser.add_argument("--threads", type=count, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES], help="experts to measure (default: all)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(as_markdown([measure(options.quick, SIZES[name]) for name in options.sizes]))


if __name__ == "__main__":
    main()

"""`python -m benchmarks.gpu`: a policy of π0.5's size on one GPU: latency of a chunk, training speed, their floors.

For an H100-class card with 80 GB; no network, random weights, bfloat16. Without a GPU `--tiny` runs the same code on
the CPU at toy sizes, in float32: its numbers mean nothing.

Correctness comes first: a small policy gives the same losses and actions on the device as in float32 on the CPU.

The floor of a chunk is what its arithmetic and its memory traffic cannot do without, at rates measured on the card: the
prefix takes as long as its matrix products, or as reading its weights; an expert step as reading the expert's weights
and the keys and values of the prefix.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from kivla.hub_cards.environment_info import environment_info
from kivla.modeling_kivla import KIVLAForActionPrediction
from kivla.modeling_kivla.flow_matching import euler_times
from kivla.training.memory_plan import StepShape, Training, plan_memory
from kivla.training.model_size import ExampleShape
from kivla.training.run_folder import write_whole

from . import policies
from .policies import ACTION_DIM, TINY, Size, action_inputs, flow_draws, observation, policy, token_batch

# PaliGemma-3B and π0.5's expert, with a prompt of 48 tokens, 40 action tokens and chunks of 50 actions
PI05 = Size(2048, 16384, 18, 256, 1024, 4096, 224, 48, 40, 50, vocab_size=257_152, vision=(1152, 4304, 27, 16))
CAMERAS, STEPS, DRAWS = (1, 2, 3), (10, 5), (1, 4)
BATCH = 8
PARTS = ("training", "sampling")  # in this order: sampling compiles the policy


@dataclass
class Device:
    """Where everything runs, and how to measure there."""

    name: str
    dtype: torch.dtype
    repetitions: int

    def synchronize(self):
        if self.name == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], warmup: int = 3) -> float:
        """Median time of a call."""
        for _ in range(warmup):
            call()
        times = []
        for _ in range(self.repetitions):
            self.synchronize()
            start = time.perf_counter()
            call()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def to(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch on the device; pictures in its dtype, actions and noise in float32."""
        batch = {name: values.to(self.name) for name, values in batch.items()}
        return {**batch, "pixel_values": batch["pixel_values"].to(self.dtype)}


def check(device: Device) -> list[str]:
    """A small policy on the device against float32 on the CPU.

    Raises:
        AssertionError: losses or actions differ by more than rounding.
    """
    reference = policy(TINY)
    batch = token_batch(TINY, 2) | action_inputs(TINY, 2) | flow_draws(TINY, 2)
    inputs = observation(TINY, 2) | {"noise": torch.randn(2, TINY.chunk_size, ACTION_DIM)}
    with torch.no_grad():
        expected = reference(**batch)
    chunks = reference.sample_actions(**inputs)
    checks = []
    for dtype, tolerance in {torch.float32: 1e-3, device.dtype: 5e-2}.items():
        model = policy(TINY).to(device.name, dtype)
        there = replace(device, dtype=dtype)
        with torch.no_grad():
            output = model(**there.to(batch))
        pairs = {
            "token loss": (output.token_loss, expected.token_loss),
            "flow loss": (output.flow_loss, expected.flow_loss),
            "actions": (model.sample_actions(**there.to(inputs)), chunks),
        }
        for what, (found, wanted) in pairs.items():
            error = float((found.float().cpu() - wanted).abs().max() / wanted.abs().max())
            if not error <= tolerance:
                raise AssertionError(f"{what} in {dtype} is off by {error:.1e} of the largest value (> {tolerance}).")
            checks.append(f"{what}, {dtype}: {error:.1e}")
    return checks


def new_policy(size: Size, device: Device) -> KIVLAForActionPrediction:
    with torch.device(device.name):
        return policy(size, device.dtype)


def rates(device: Device, quick: bool) -> dict[str, float]:
    """Bytes per second of a copy (read and written), floating-point operations per second of a matrix product."""
    count, width = (1 << 20, 256) if quick else (1 << 30, 8192)
    source = torch.zeros(count, dtype=device.dtype, device=device.name)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / device.seconds(partial(target.copy_, source))
    del source, target
    a, b = (torch.randn(width, width, dtype=device.dtype, device=device.name) for _ in range(2))
    return {"bytes": copied, "flops": 2 * width**3 / device.seconds(partial(torch.mm, a, b))}


def floor_seconds(
    model: KIVLAForActionPrediction, size: Size, cameras: int, steps: int, rate: dict, weight_bytes: int | None = None
) -> float:
    """Seconds without which no chunk can be made; `weight_bytes` where a weight has fewer than the policy's dtype."""
    vlm, patches = model.vlm.model, cameras * size.patches
    weight_bytes = weight_bytes or model.dtype.itemsize
    tokens = patches + size.prompt_length
    *layers, last = vlm.language_model.layers
    text = sum(map(_count, (*layers, last.self_attn.k_proj, last.self_attn.v_proj)))  # of the last only what is read
    attention_flops = 4 * len(layers) * tokens**2 * size.attention["num_attention_heads"] * size.head_dim
    flops = 2 * _count(vlm.vision_tower) * patches + 2 * text * tokens + attention_flops
    prefix = max(flops / rate["flops"], (_count(vlm.vision_tower) + text) * weight_bytes / rate["bytes"])
    key_values = 2 * size.num_layers * tokens * size.attention["num_key_value_heads"] * size.head_dim
    once = sum(_count(module) for name, module in model.expert.named_modules() if name.endswith("dense"))
    read = (_count(model.expert) - once) * weight_bytes + key_values * model.dtype.itemsize
    return prefix + steps * read / rate["bytes"]


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def graphed(model: KIVLAForActionPrediction, prefix, noise: torch.Tensor, num_steps: int) -> Callable[[], object]:
    """The denoising loop as one CUDA graph, on this prefix' memory."""
    expert = model.expert
    layout = expert.suffix_layout(prefix, model.config.chunk_size)
    conditions = expert.time_condition(euler_times(num_steps, noise.device)).rows()
    room = expert.with_room(prefix, model.config.chunk_size)

    def loop():
        x = noise
        for condition in conditions:
            x = x - expert(x, condition, room, layout) / num_steps
        return x

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            loop()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop()
    return graph.replay


EAGER = "eager"
# Modes of `compile_expert`; CUDA graphs are for a GPU alone.
MODES = {"compiled expert": None, "compiled expert, CUDA graphs": "reduce-overhead"}
# Of torchao: matrices of a byte a value, which are multiplied in the policy's dtype.
QUANTIZED = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}


def modes(device: Device) -> dict[str, str | None]:
    return {way: mode for way, mode in MODES.items() if mode is None or device.name == "cuda"}


@torch.no_grad()
def sampling(model: KIVLAForActionPrediction, size: Size, device: Device, rate: dict) -> Iterator[dict]:
    """Milliseconds of a chunk, batch 1: prefix and loop together, by way, cameras and steps."""
    for cameras in CAMERAS:
        yield from chunks(model, size, device, rate, EAGER, cameras)
    for way, mode in modes(device).items():
        model.compile_expert(mode)
        yield from chunks(model, size, device, rate, way, CAMERAS[1])


@torch.no_grad()
def quantized(kinds: list[str], size: Size, device: Device, rate: dict) -> Iterator[dict]:
    """The same of policies with int8 or fp8 weights, as `from_pretrained(quantization_config=...)` makes them."""
    torchao = importlib.import_module("torchao.quantization")
    for kind in kinds:
        model = new_policy(size, device).eval()
        left = model.get_output_embeddings()  # as the library does
        layers = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not left}
        torchao.quantize_(model, getattr(torchao, QUANTIZED[kind])(), lambda _, name, layers=layers: name in layers)
        yield from chunks(model, size, device, rate, f"{kind} weights, eager", CAMERAS[1], weight_bytes=1)
        for way, mode in modes(device).items():
            model.compile_expert(mode)
            yield from chunks(model, size, device, rate, f"{kind} weights, {way}", CAMERAS[1], weight_bytes=1)


def chunks(
    model: KIVLAForActionPrediction,
    size: Size,
    device: Device,
    rate: dict,
    way: str,
    cameras: int,
    weight_bytes: int | None = None,
) -> Iterator[dict]:
    """A row for each number of steps."""
    inputs = device.to(observation(size, 1, cameras))
    noise = torch.randn(1, size.chunk_size, ACTION_DIM, device=device.name)
    start = time.perf_counter()
    model.sample_actions(**inputs, noise=noise)
    first = time.perf_counter() - start
    prefix = model.encode_prefix(**inputs)
    prefix_ms = 1e3 * device.seconds(partial(model.encode_prefix, **inputs))
    for steps in STEPS:
        row = {"way": way, "cameras": cameras, "steps": steps, "first_s": first, "prefix_ms": prefix_ms}
        row["chunk_ms"] = 1e3 * device.seconds(partial(model.sample_actions, **inputs, noise=noise, num_steps=steps))
        row["floor_ms"] = 1e3 * floor_seconds(model, size, cameras, steps, rate, weight_bytes)
        if device.name == "cuda" and way == EAGER:
            row["graph_loop_ms"] = 1e3 * device.seconds(graphed(model, prefix, noise, steps))
        if cameras == 2 and steps == 10:
            row["_profile"] = profiled(partial(model.sample_actions, **inputs, noise=noise), device)
        yield row


def profiled(call: Callable[[], object], device: Device) -> str:
    """A table of what the device spends the time of a call with."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.name == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
        device.synchronize()
    by = f"self_{device.name}_time_total"
    return profile.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60)


def training(model: KIVLAForActionPrediction, size: Size, device: Device) -> Iterator[dict]:
    """Examples per second and peak memory of forward, backward and fused AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)
    tokens = token_batch(size, BATCH)
    both = device.to(tokens | action_inputs(size, BATCH))
    settings = [("the VLM alone", 0.0, 1, device.to(tokens))]
    settings += [(name, scale, n, both) for name, scale in (("insulated", 0.0), ("joint", 1.0)) for n in DRAWS]
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for name, scale, draws, batch in settings:
            model.config.backbone_gradient_scale, model.config.num_flow_samples = scale, draws

            def step(batch=batch):
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()

            if device.name == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = replace(device, repetitions=min(device.repetitions, 8)).seconds(step, warmup=2)
            memory = torch.cuda.max_memory_allocated() / 1e9 if device.name == "cuda" else None
            row = {
                "what": name,
                "draws": draws,
                "checkpointing": checkpointing,
                "examples_per_s": BATCH / seconds,
                "peak_gb": memory,
                "planned_gb": planned_bytes(model, size, checkpointing) / 1e9 if batch is both else None,
            }
            if name == "insulated" and draws == 1:
                row["_profile"] = profiled(step, device)
            yield row


def planned_bytes(model: KIVLAForActionPrediction, size: Size, checkpointing: bool) -> float:
    """The peak that `kivla train` plans for a step on tokens and actions; the model may be on the meta device."""
    draws = model.config.num_flow_samples
    example = ExampleShape(size.prefix_length, size.suffix_length, size.chunk_size, draws)
    shape = StepShape(example, BATCH, policies.CAMERAS * size.patches)
    return plan_memory(model, shape, Training(checkpointing=checkpointing)).peak


def as_table(rows: list[dict]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = (f"{v:.3g}" if isinstance(v := row.get(name, ""), float) else str(v) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--tiny", action="store_true", help="toy sizes, without a GPU, too: shows that it works, no more"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; all")
    parser.add_argument(
        "--quantized", nargs="+", choices=QUANTIZED, help="chunks with such weights, too; needs torchao (an extra)"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu.json"), help="where the numbers go")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here: --tiny runs toy sizes on the CPU")
    if options.quantized and importlib.util.find_spec("torchao") is None:
        parser.error("--quantized needs torchao: pip install kivla[quantization]")
    size = TINY if options.tiny else PI05
    on_gpu = Device("cuda", torch.bfloat16, 2 if options.tiny else 20)
    device = on_gpu if torch.cuda.is_available() else Device("cpu", torch.float32, 2)
    result = {"machine": environment_info()}

    def keep(what: str, found: object) -> None:
        """What was measured is written at once: a lent machine may be taken back."""
        result[what] = found
        write_whole(options.output, json.dumps(result, indent=2) + "\n")

    options.output.parent.mkdir(parents=True, exist_ok=True)
    keep("checks", check(device))
    keep("rates", rates(device, options.tiny))
    model = new_policy(size, device)
    measures = {  # sampling after training: it compiles the policy
        "training": lambda: training(model, size, device),
        "sampling": lambda: sampling(model.eval(), size, device, result["rates"]),
        "quantized": lambda: quantized(options.quantized, size, device, result["rates"]),
    }
    parts = [*options.parts, *(["quantized"] if options.quantized else [])]
    for part in parts:
        rows, profiles = [], []
        for row in tqdm(measures[part](), desc=part, unit="row"):
            profile = row.pop("_profile", None)
            rows.append(row)
            keep(part, rows)
            if profile is not None:
                profiles.append(f"{row}\n{profile}")
            text = "\n\n".join(profiles)
            write_whole(options.output.with_name(f"{options.output.stem}_{part}.txt"), text + "\n")
        model.zero_grad()
    about = result["machine"]
    print("\n".join(["Checked against float32 on the CPU:", *result["checks"]]))
    print(f"\n{about['gpu'] or about['cpu']}, torch {about['torch']}, transformers {about['transformers']}")
    for part in parts:
        print(f"\n{as_table(result[part])}")


if __name__ == "__main__":
    main()

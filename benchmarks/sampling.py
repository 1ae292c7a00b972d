"""How long sampling takes: beside transformers' PI0 with the same weights, and beside its bare matrix products."""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from kivla.modeling_kivla import KIVLAForActionPrediction

from .pi0 import as_kivla, pi0_inputs, pi0_model
from .policies import ACTION_DIM, TINY, Size, millions
from .report import Comparison, Measurement
from .timing import interleaved

STEPS = 10
FLOOR = "its matrix products and attention alone"


def measure(quick: bool, size: Size) -> Measurement:
    size = TINY if quick else size
    pi0 = pi0_model(size)
    model = as_kivla(pi0, size)
    compiled = copy.deepcopy(model)
    compiled.compile_expert()
    measurement = Measurement(
        f"Sampling actions, {millions(model)} parameters",
        f"{STEPS} Euler steps, batch 1; KIVLA configured as π0 against transformers' PI0ForConditionalGeneration; "
        f"backbone {millions(model.vlm)}, expert {millions(model.expert)} parameters, prefix {size.prefix_length}, "
        f"chunk {size.chunk_size}. The denoising loop is {STEPS} times the difference of {STEPS} steps and 1 step, "
        f"divided by {STEPS - 1}; the prefix is the rest. Compiled is `model.compile_expert()`, once it is warm.",
    )

    ours, theirs = pi0_inputs(size, batch_size=1)
    noise = torch.randn(1, size.chunk_size, ACTION_DIM, generator=torch.Generator().manual_seed(5))
    sample = {
        "KIVLA": partial(model.sample_actions, noise=noise, **ours),
        "KIVLA, compiled": partial(compiled.sample_actions, noise=noise, **ours),
        "PI0": partial(pi0.sample_actions, noise=noise, **theirs),
    }
    expected = sample["PI0"](num_steps=STEPS)
    for who in ("KIVLA", "KIVLA, compiled"):
        actions = sample[who](num_steps=STEPS)
        measurement.check_equal(f"{who}: actions after {STEPS} steps", actions, expected, tolerance=1e-5)

    calls = {f"{who} {n}": partial(call, num_steps=n) for who, call in sample.items() for n in (1, STEPS)}
    calls[FLOOR] = bare_products(model, size.prefix_length)
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 40)
    prefix, loop = {}, {FLOOR: seconds[FLOOR]}
    for who in sample:
        one, all_steps = seconds[f"{who} 1"], seconds[f"{who} {STEPS}"]
        loop[who] = [STEPS * (b - a) / (STEPS - 1) for a, b in zip(one, all_steps, strict=True)]
        prefix[who] = [b - steps for b, steps in zip(all_steps, loop[who], strict=True)]
    measurement.comparisons = [
        Comparison("prefix and 10 steps", seconds[f"KIVLA {STEPS}"], "PI0", seconds[f"PI0 {STEPS}"]),
        Comparison("prefix", prefix["KIVLA"], "PI0", prefix["PI0"]),
        *(
            Comparison(f"denoising loop{how}", loop[f"KIVLA{how}"], against, loop[against])
            for how in ("", ", compiled")
            for against in ("PI0", FLOOR)
        ),
    ]
    return measurement


def bare_products(model: KIVLAForActionPrediction, prefix_length: int) -> Callable[[], None]:
    """Every matrix product and attention call of `STEPS` expert steps, on memory that is there already."""
    expert = model.expert
    length = model.config.chunk_size + (expert.state_proj is not None)
    products = [_product(linear.weight, length) for linear in _linears(expert)]
    attentions = [_attention(layer.self_attn, length, prefix_length) for layer in expert.layers]

    @torch.no_grad()
    def run():
        for _ in range(STEPS):
            for inputs, weight, output in products:
                torch.mm(inputs, weight, out=output)
            for query, key, value, gqa in attentions:
                F.scaled_dot_product_attention(query, key, value, enable_gqa=gqa)

    return run


def _linears(expert):
    """The linear layers that run in every step."""
    once = {"state_proj", "time_mlp_in", "time_mlp_out"}  # of the flow times of all steps, or of the state
    for name, module in expert.named_modules():
        if isinstance(module, torch.nn.Linear) and name not in once and not name.endswith("dense"):
            yield module


def _product(weight: torch.Tensor, length: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(length, weight.shape[1]), weight.detach().t(), torch.empty(length, weight.shape[0])


def _attention(attention, length: int, prefix_length: int) -> tuple:
    query = torch.randn(1, attention.num_heads, length, attention.key_dim)
    key = torch.randn(1, attention.num_key_value_heads, prefix_length + length, attention.key_dim)
    value = torch.randn(1, attention.num_key_value_heads, prefix_length + length, attention.value_dim)
    return query, key, value, attention.num_heads != attention.num_key_value_heads

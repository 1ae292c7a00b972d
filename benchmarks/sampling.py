"""How long a chunk takes, prefix and loop: beside transformers' PI0 with the same weights, and its bare products."""

import copy
from functools import partial

import torch

from .bare_products import bare_products
from .pi0 import as_kivla, pi0_inputs, pi0_model
from .policies import ACTION_DIM, TINY, Size, millions
from .report import Comparison, Measurement
from .timing import interleaved

STEPS = 10
FLOOR = "its matrix products and attention alone"
EAGER, EXPERT, WHOLE = "as it is", "the expert compiled", "compiled as a whole"


def measure(quick: bool, size: Size) -> Measurement:
    size = TINY if quick else size
    pi0 = pi0_model(size)
    model = as_kivla(pi0, size)
    ours = {EAGER: model, EXPERT: copy.deepcopy(model), WHOLE: copy.deepcopy(model)}
    ours[EXPERT].compile_expert()
    ours[WHOLE].compile_policy()
    measurement = Measurement(
        f"A chunk of actions, {millions(model)} parameters",
        f"Prefix and {STEPS} Euler steps, batch 1; KIVLA configured as π0 against transformers' "
        f"PI0ForConditionalGeneration; backbone {millions(model.vlm)}, expert {millions(model.expert)} parameters, "
        f"prefix {size.prefix_length}, chunk {size.chunk_size}. Compiled is `model.compile_expert()` and "
        "`model.compile_policy()`, once they are warm.",
    )

    batch, theirs = pi0_inputs(size, batch_size=1)
    noise = torch.randn(1, size.chunk_size, ACTION_DIM, generator=torch.Generator().manual_seed(5))
    calls = {how: partial(policy.sample_actions, STEPS, noise, **batch) for how, policy in ours.items()}
    calls["PI0"] = partial(pi0.sample_actions, num_steps=STEPS, noise=noise, **theirs)
    expected = calls["PI0"]()
    for how in ours:
        measurement.check_equal(f"KIVLA, {how}: actions after {STEPS} steps", calls[how](), expected, tolerance=1e-5)
    calls[FLOOR] = bare_products(calls[EAGER])
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 40)
    measurement.comparisons = [
        Comparison(f"a chunk, {how}", seconds[how], against, seconds[against])
        for how in ours
        for against in ("PI0", FLOOR)
    ]
    return measurement

"""What several noise draws for one backbone pass cost."""

from functools import partial

from kivla.modeling_kivla import KIVLAForActionPrediction

from .policies import MEDIUM, TINY, action_inputs, flow_draws, gradient, millions, policy, token_batch
from .report import Comparison, Measurement
from .timing import interleaved

BATCH = 4
DRAWS = (2, 4, 8)


def measure(quick: bool) -> Measurement:
    size = TINY if quick else MEDIUM
    model = policy(size)
    batch = token_batch(size, BATCH) | action_inputs(size, BATCH)
    measurement = Measurement(
        "Several noise draws for one backbone pass",
        f"Forward and backward, insulated; backbone {millions(model.vlm)}, expert {millions(model.expert)} parameters, "
        f"batch {BATCH}, prefix {size.prefix_length}, {size.suffix_length} tokens to learn, chunk {size.chunk_size}. "
        "N separate passes have one draw each and sum their gradients; the optimiser is left out on both sides.",
    )

    draws = flow_draws(size, 2 * BATCH)
    train(model, 2, **batch, **draws)
    together = gradient(model)
    model.zero_grad()
    for i in range(2):
        one = {name: draw[i * BATCH : (i + 1) * BATCH] for name, draw in draws.items()}
        accumulate(model, 1, **batch, **one)
    measurement.check_equal(
        "Gradients of 2 draws in one pass, and means over 2 passes", together, gradient(model) / 2, 1e-5
    )

    calls = {f"{n} together": partial(train, model, n, **batch) for n in (1, *DRAWS)}
    calls |= {f"{n} separate": partial(train_separately, model, n, **batch) for n in DRAWS}
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 5)
    for n in DRAWS:
        measurement.comparisons += [
            Comparison(
                f"{n} draws, one pass", seconds[f"{n} together"], f"{n} separate passes", seconds[f"{n} separate"]
            ),
            Comparison(f"{n} draws, one pass", seconds[f"{n} together"], "1 draw, one pass", seconds["1 together"]),
        ]
    return measurement


def train(model: KIVLAForActionPrediction, num_draws: int, **batch):
    model.zero_grad()
    accumulate(model, num_draws, **batch)


def train_separately(model: KIVLAForActionPrediction, num_passes: int, **batch):
    model.zero_grad()
    for _ in range(num_passes):
        accumulate(model, 1, **batch)


def accumulate(model: KIVLAForActionPrediction, num_draws: int, **batch):
    model.config.num_flow_samples = num_draws
    model(**batch).loss.backward()

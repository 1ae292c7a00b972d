"""What it saves to put examples of like length into one micro-batch of a step."""

import torch

from kivla.demo.stages import TabletopArguments
from kivla.modeling_kivla import KIVLAForActionPrediction
from kivla.simulation import make_questions
from kivla.training.data.collator import KIVLACollator
from kivla.training.data.example_order import ExampleOrder
from kivla.training.data.length_buckets import StepBuckets
from kivla.training.data.mixture import Mixture
from kivla.training.data.vlm.dataset import VLMDataset

from .demo import demonstrated
from .policies import gradient
from .report import Comparison, Measurement
from .timing import interleaved

MICRO_BATCH, ACCUMULATION, STEPS = 8, 4, 3


def measure(quick: bool) -> Measurement:
    args = TabletopArguments(num_demonstrations=2 if quick else 50)
    step_size = MICRO_BATCH * ACCUMULATION
    with demonstrated(args) as (data, model, processor):
        conversations = VLMDataset(make_questions(4 if quick else 100, seed=0, multi_turn=True))
        mixture = Mixture(
            [data, conversations], [1 - args.question_share, args.question_share], STEPS * step_size, seed=0
        )
        order = ExampleOrder(len(mixture), seed=0, shuffle=False)
        orders = {"in buckets": StepBuckets(order, step_size, mixture.size_of), "as they come": order}
        collate, batches = KIVLACollator(processor), {}
        for name, indices in orders.items():
            examples = [mixture[i] for i in indices]
            parts = [examples[i : i + MICRO_BATCH] for i in range(0, len(examples), MICRO_BATCH)]
            batches[name] = [collate(part) for part in parts]
    lengths = {name: [batch["attention_mask"] for batch in parts] for name, parts in batches.items()}
    padded = {name: 1 - sum(m.sum() for m in masks) / sum(m.numel() for m in masks) for name, masks in lengths.items()}
    bucketed, plain = orders
    measurement = Measurement(
        "Micro-batches of like length",
        f"{STEPS} steps of {ACCUMULATION} micro-batches of {MICRO_BATCH} examples: demonstrations of the demo, and "
        f"conversations about pictures ({100 * args.question_share:.0f} % of the examples). Of all positions "
        f"{100 * padded[plain]:.0f} % are padding as they come, {100 * padded[bucketed]:.0f} % in buckets.",
    )
    learned = {}
    for name, parts in batches.items():
        _train(model, parts[:ACCUMULATION])
        learned[name] = gradient(model.vlm)
    measurement.check_equal("Gradients of a step", learned[bucketed], learned[plain], tolerance=1e-4)
    calls = {name: lambda parts=parts: _train(model, parts) for name, parts in batches.items()}
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 10)
    measurement.comparisons = [Comparison(bucketed, seconds[bucketed], plain, seconds[plain])]
    return measurement


def _train(model: KIVLAForActionPrediction, batches: list[dict[str, torch.Tensor]]) -> None:
    """Forward and backward of micro-batches; the losses are means over all of them, as in a step of the trainer."""
    tokens = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    actions = sum(batch["action_mask"].sum() for batch in batches if "actions" in batch)
    model.zero_grad()
    for batch in batches:
        model(**batch, num_supervised_tokens=tokens, num_supervised_actions=actions).loss.backward()

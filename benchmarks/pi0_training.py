"""What a training step on actions alone costs beside transformers' PI0 with the same weights."""

from functools import partial

import torch

from .pi0 import as_kivla, pi0_inputs, pi0_model
from .policies import MEDIUM, TINY, flow_draws, gradient, millions, train
from .report import Comparison, Measurement
from .timing import interleaved

BATCH = 4


def measure(quick: bool) -> Measurement:
    size = TINY if quick else MEDIUM
    pi0 = pi0_model(size).train()
    model = as_kivla(pi0, size).train()
    draws = flow_draws(size, BATCH)
    actions = {"actions": torch.randn(draws["noise"].shape, generator=torch.Generator().manual_seed(6)), **draws}
    ours, theirs = pi0_inputs(size, BATCH)
    ours |= {**actions, "expert_attention_mask": ours["attention_mask"].bool()}
    theirs |= actions
    measurement = Measurement(
        "A training step on actions alone",
        f"Forward and backward of the flow loss, one noise draw; KIVLA configured as π0 against transformers' "
        f"PI0ForConditionalGeneration with the same weights; backbone {millions(model.vlm)}, expert "
        f"{millions(model.expert)} parameters, batch {BATCH}, prefix {size.prefix_length}, chunk {size.chunk_size}. "
        "Insulated, the backbone has nothing to learn here; PI0 trains it.",
    )

    model.config.backbone_gradient_scale = 1.0
    joint, theirs_loss = train(model, ours), train(pi0, theirs)
    measurement.check_equal("Losses", joint, theirs_loss, 1e-5)
    measurement.check_equal(
        "Gradients of the action projection, joint and PI0",
        gradient(model.expert.action_out_proj),
        gradient(pi0.action_out_proj),
        1e-4,
    )
    calls = {
        "insulated": partial(_train_scaled, model, 0.0, ours),
        "joint": partial(_train_scaled, model, 1.0, ours),
        "PI0": partial(train, pi0, theirs),
    }
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 10)
    measurement.comparisons = [Comparison(who, seconds[who], "PI0", seconds["PI0"]) for who in ("insulated", "joint")]
    return measurement


def _train_scaled(model, gradient_scale: float, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.config.backbone_gradient_scale = gradient_scale
    return train(model, batch)

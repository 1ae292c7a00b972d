"""What a training step costs with knowledge insulation, without it, and without the expert."""

from functools import partial

import torch

from kivla.modeling_kivla import KIVLAForActionPrediction, KIVLAOutput

from .policies import MEDIUM, TINY, action_inputs, flow_draws, gradient, millions, policy, token_batch
from .report import Comparison, Measurement
from .timing import interleaved

BATCH = 4


def measure(quick: bool) -> Measurement:
    size = TINY if quick else MEDIUM
    model = policy(size)
    tokens = token_batch(size, BATCH)
    both = tokens | action_inputs(size, BATCH) | flow_draws(size, BATCH)
    actions = {name: value for name, value in both.items() if name != "labels"}
    measurement = Measurement(
        "A training step with knowledge insulation",
        f"Forward and backward, 1 noise draw; backbone {millions(model.vlm)}, expert {millions(model.expert)} "
        f"parameters, batch {BATCH}, prefix {size.prefix_length}, {size.suffix_length} tokens to learn, "
        f"chunk {size.chunk_size}. Joint training is `backbone_gradient_scale=1`; the VLM alone learns the same tokens "
        "with the same token loss, without an expert.",
    )

    insulated = train(model, 0.0, both)
    insulated_gradient = gradient(model.vlm)
    joint = train(model, 1.0, both)
    measurement.check_equal("Losses, insulated and joint", insulated.loss, joint.loss)
    measurement.check_equal("Velocities, insulated and joint", insulated.velocity, joint.velocity)
    train(model, 0.0, tokens)
    measurement.check_equal(
        "Gradients of the backbone, insulated and of the VLM alone", insulated_gradient, gradient(model.vlm)
    )
    train(model, 0.0, actions)
    measurement.check(
        "Insulated, without labels: no backbone parameter has a gradient", not gradient(model.vlm).numel()
    )

    insulated, joint, vlm = "insulated", "joint", "the VLM alone"
    insulated_actions, joint_actions = "insulated, no tokens to learn", "joint, no tokens to learn"
    calls = {
        insulated: partial(train, model, 0.0, both),
        joint: partial(train, model, 1.0, both),
        vlm: partial(train, model, 0.0, tokens),
        insulated_actions: partial(train, model, 0.0, actions),
        joint_actions: partial(train, model, 1.0, actions),
    }
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 10)
    pairs = [
        (insulated, joint),
        (insulated, vlm),
        (joint, vlm),
        (insulated_actions, joint_actions),
        (insulated_actions, insulated),
    ]
    measurement.comparisons = [Comparison(a, seconds[a], b, seconds[b]) for a, b in pairs]
    return measurement


def train(model: KIVLAForActionPrediction, gradient_scale: float, batch: dict[str, torch.Tensor]) -> KIVLAOutput:
    model.config.backbone_gradient_scale = gradient_scale
    model.zero_grad()
    out = model(**batch)
    out.loss.backward()
    return out

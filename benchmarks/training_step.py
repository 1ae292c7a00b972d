"""What a training step costs with knowledge insulation, without it, without the expert, and with several draws."""

from functools import partial

import torch

from kivla.modeling_kivla import KIVLAForActionPrediction, KIVLAOutput

from .policies import TINY, Size, action_inputs, flow_draws, gradient, millions, policy, token_batch
from .report import Comparison, Measurement
from .timing import interleaved, peak_memory

BATCH = 4
DRAWS = 4


def measure(quick: bool, size: Size) -> Measurement:
    size = TINY if quick else size
    model = policy(size)
    tokens = token_batch(size, BATCH)
    both = tokens | action_inputs(size, BATCH) | flow_draws(size, BATCH)
    actions = {name: value for name, value in both.items() if name != "labels"}
    measurement = Measurement(
        f"A training step with knowledge insulation, chunks of {size.chunk_size} actions",
        f"Forward and backward; backbone {millions(model.vlm)}, expert {millions(model.expert)} "
        f"parameters, batch {BATCH}, prefix {size.prefix_length}, {size.suffix_length} tokens to learn, "
        f"chunk {size.chunk_size}. Joint training is `backbone_gradient_scale=1`; the VLM alone learns the same tokens "
        "with the same token loss, without an expert. Memory is that of all tensors that one step makes, at its peak, "
        "gradients included (torch's profiler).",
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

    insulated, joint, vlm, draws = "insulated", "joint", "the VLM alone", f"insulated, {DRAWS} noise draws"
    insulated_actions, joint_actions = "insulated, no tokens to learn", "joint, no tokens to learn"
    calls = {
        insulated: partial(train, model, 0.0, both),
        draws: partial(train, model, 0.0, tokens | action_inputs(size, BATCH), DRAWS),
        joint: partial(train, model, 1.0, both),
        vlm: partial(train, model, 0.0, tokens),
        insulated_actions: partial(train, model, 0.0, actions),
        joint_actions: partial(train, model, 1.0, actions),
    }
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 10)
    pairs = [
        (insulated, joint),
        (insulated, vlm),
        (draws, vlm),
        (draws, insulated),
        (joint, vlm),
        (insulated_actions, joint_actions),
        (insulated_actions, insulated),
    ]
    measurement.comparisons = [Comparison(a, seconds[a], b, seconds[b]) for a, b in pairs]
    memory = {}
    for name in (insulated, draws, vlm):
        model.zero_grad()  # so that each makes room for its gradients
        memory[name] = [peak_memory(calls[name])]
    measurement.comparisons += [
        Comparison(f"peak memory, {name}", memory[name], vlm, memory[vlm], unit="bytes") for name in (insulated, draws)
    ]
    return measurement


def train(
    model: KIVLAForActionPrediction, gradient_scale: float, batch: dict[str, torch.Tensor], num_draws: int = 1
) -> KIVLAOutput:
    model.config.backbone_gradient_scale, model.config.num_flow_samples = gradient_scale, num_draws
    model.zero_grad()
    out = model(**batch)
    out.loss.backward()
    return out

"""How long sampling takes beside transformers' PI0 with the same weights."""

from functools import partial

import torch
from transformers import PI0Config, PI0ForConditionalGeneration

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction

from .policies import ACTION_DIM, CAMERAS, STATE_DIM, TINY, Size, backbone_config, millions, observation
from .report import Comparison, Measurement
from .timing import interleaved

STEPS = 10


def measure(quick: bool, size: Size) -> Measurement:
    size = TINY if quick else size
    pi0 = pi0_model(size)
    model = as_kivla(pi0, size)
    measurement = Measurement(
        f"Sampling actions, {millions(model)} parameters",
        f"{STEPS} Euler steps, batch 1; KIVLA configured as π0 against transformers' PI0ForConditionalGeneration; "
        f"backbone {millions(model.vlm)}, expert {millions(model.expert)} parameters, prefix {size.prefix_length}, "
        f"chunk {size.chunk_size}. One expert step is the difference of {STEPS} steps and 1 step, divided by "
        f"{STEPS - 1}; the prefix is the rest.",
    )

    ours = observation(size, batch_size=1)
    generator = torch.Generator().manual_seed(5)
    ours["state"] = torch.randn(1, STATE_DIM, generator=generator)
    noise = torch.randn(1, size.chunk_size, ACTION_DIM, generator=generator)
    theirs = {name: ours[name] for name in ("input_ids", "attention_mask", "state")}
    theirs["pixel_values"] = ours["pixel_values"][None]  # (B, cameras, 3, height, width)
    theirs["pixel_attention_mask"] = torch.ones(1, CAMERAS, dtype=torch.bool)
    sample = {
        "KIVLA": partial(model.sample_actions, noise=noise, **ours),
        "PI0": partial(pi0.sample_actions, noise=noise, **theirs),
    }
    measurement.check_equal(
        f"Actions after {STEPS} steps", sample["KIVLA"](num_steps=STEPS), sample["PI0"](num_steps=STEPS), tolerance=1e-5
    )

    calls = {f"{who} {n}": partial(call, num_steps=n) for who, call in sample.items() for n in (1, STEPS)}
    seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 40)
    parts = {who: _parts(seconds[f"{who} 1"], seconds[f"{who} {STEPS}"]) for who in sample}
    measurement.comparisons = [
        Comparison(part, parts["KIVLA"][part], "PI0", parts["PI0"][part]) for part in parts["KIVLA"]
    ]
    return measurement


def pi0_model(size: Size) -> PI0ForConditionalGeneration:
    expert = {
        "model_type": "gemma",
        "hidden_size": size.expert_hidden_size,
        "intermediate_size": size.expert_intermediate_size,
        "num_hidden_layers": size.num_layers,
        "vocab_size": size.vocab_size,
        **size.attention,
    }
    config = PI0Config(
        vlm_config=backbone_config(size).to_dict(),
        dit_config=expert,
        chunk_size=size.chunk_size,
        max_action_dim=ACTION_DIM,
        max_state_dim=STATE_DIM,
    )
    torch.manual_seed(0)
    return PI0ForConditionalGeneration(config).eval()


def as_kivla(pi0: PI0ForConditionalGeneration, size: Size) -> KIVLAForActionPrediction:
    """KIVLA configured as π0, with the weights of `pi0`."""
    config = KIVLAConfig(
        vlm_config=pi0.config.vlm_config,
        expert_config={
            "hidden_size": size.expert_hidden_size,
            "intermediate_size": size.expert_intermediate_size,
            "time_conditioning": "concat",
            "time_embedding_dtype": "float32",
        },
        chunk_size=size.chunk_size,
        max_action_dim=ACTION_DIM,
        max_state_dim=STATE_DIM,
        state_encoding="continuous",
    )
    model = KIVLAForActionPrediction(config).eval()
    model.vlm.model.load_state_dict(pi0.model.vlm.state_dict())
    expert = {f"action_out_proj.{name}": weight for name, weight in pi0.action_out_proj.state_dict().items()}
    expert |= pi0.embed_action_time.state_dict() | pi0.model.dit.state_dict()
    del expert["embed_tokens.weight"]  # PI0 feeds its expert embeddings
    model.expert.load_state_dict(expert)
    return model


def _parts(one_step: list[float], all_steps: list[float]) -> dict[str, list[float]]:
    """Seconds of the whole, of one expert step and of the prefix, (repetitions,) each."""
    expert_step = [(b - a) / (STEPS - 1) for a, b in zip(one_step, all_steps, strict=True)]
    prefix = [a - step for a, step in zip(one_step, expert_step, strict=True)]
    return {f"prefix and {STEPS} steps": all_steps, "prefix": prefix, "one expert step": expert_step}

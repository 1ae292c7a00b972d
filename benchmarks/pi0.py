"""transformers' PI0, and KIVLA configured as π0 with its weights."""

import torch
from transformers import PI0Config, PI0ForConditionalGeneration

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction

from .policies import ACTION_DIM, CAMERAS, STATE_DIM, Size, backbone_config, observation


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


def pi0_inputs(size: Size, batch_size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One observation with a state, as KIVLA takes it and as PI0 does."""
    ours = observation(size, batch_size)
    ours["state"] = torch.randn(batch_size, STATE_DIM, generator=torch.Generator().manual_seed(5))
    theirs = {name: ours[name] for name in ("input_ids", "attention_mask", "state")}
    theirs["pixel_values"] = ours["pixel_values"].unflatten(0, (batch_size, CAMERAS))
    theirs["pixel_attention_mask"] = torch.ones(batch_size, CAMERAS, dtype=torch.bool)
    return ours, theirs

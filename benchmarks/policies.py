"""Random policies of a chosen size, all on the same kind of backbone (PaliGemma), and inputs for them."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PaliGemmaConfig

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction

ACTION_DIM, STATE_DIM, CAMERAS = 14, 14, 2
IMAGE_TOKEN = 4


@dataclass(frozen=True)
class Size:
    """Sizes of a backbone, of its expert, and of their inputs.

    `vision` is hidden size, MLP size, layers and heads of the vision tower; by default it is half as wide as the text
    model, and of two layers.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    head_dim: int
    expert_hidden_size: int
    expert_intermediate_size: int
    image_size: int
    prompt_length: int
    suffix_length: int
    chunk_size: int
    vocab_size: int = 2048
    vision: tuple[int, int, int, int] | None = None

    @property
    def patches(self) -> int:
        return (self.image_size // 14) ** 2

    @property
    def prefix_length(self) -> int:
        return CAMERAS * self.patches + self.prompt_length

    @property
    def attention(self) -> dict[str, int]:
        return {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": self.head_dim}


TINY = Size(32, 48, 2, 8, 16, 24, 28, 8, 6, 4, vocab_size=64)
SMALL = Size(128, 256, 4, 32, 64, 128, 56, 16, 16, 16)
MEDIUM = Size(512, 1536, 8, 64, 128, 192, 112, 32, 32, 32)  # the expert is a tenth of the backbone
WIDE_EXPERT = replace(MEDIUM, expert_hidden_size=512, expert_intermediate_size=2048)  # half as wide as π0's
# As many tokens for each action as in π0.5: 2 · 256 of images, 48 of prompt and 40 of actions for chunks of 50
PROPORTIONED = replace(MEDIUM, chunk_size=16)


def backbone_config(size: Size) -> PaliGemmaConfig:
    text = {
        "model_type": "gemma",
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.num_layers,
        "vocab_size": size.vocab_size,
        **size.attention,
    }
    vision_size = size.vision or (size.hidden_size // 2, size.hidden_size, 2, 4)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = {
        "model_type": "siglip_vision_model",
        **dict(zip(names, vision_size, strict=True)),
        "image_size": size.image_size,
        "patch_size": 14,
        "vision_use_head": False,
    }
    return PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=size.hidden_size, image_token_id=IMAGE_TOKEN
    )


def policy(size: Size, dtype: torch.dtype = torch.float32) -> KIVLAForActionPrediction:
    """A policy with random weights, in training mode (it has no dropout)."""
    torch.manual_seed(0)
    config = KIVLAConfig(
        vlm_config=backbone_config(size),
        expert_config={"hidden_size": size.expert_hidden_size, "intermediate_size": size.expert_intermediate_size},
        chunk_size=size.chunk_size,
        max_action_dim=ACTION_DIM,
    )
    model = KIVLAForActionPrediction._from_config(config, dtype=dtype).train()
    with torch.no_grad():  # adaRMS starts as the identity, where the checks would not see the flow time
        for name, parameter in model.expert.named_parameters():
            if "dense" in name:
                parameter.normal_(std=0.1)
    return model


def observation(size: Size, batch_size: int, cameras: int = CAMERAS) -> dict[str, torch.Tensor]:
    """Images and a prompt, without padding: what the VLM takes at inference."""
    generator = torch.Generator().manual_seed(1)
    images = torch.full((batch_size, cameras * size.patches), IMAGE_TOKEN)
    prompt = torch.randint(IMAGE_TOKEN + 1, size.vocab_size, (batch_size, size.prompt_length), generator=generator)
    input_ids = torch.cat([images, prompt], dim=1)  # (B, P)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "token_type_ids": torch.zeros_like(input_ids),
        "pixel_values": torch.randn(batch_size * cameras, 3, size.image_size, size.image_size, generator=generator),
    }


def token_batch(size: Size, batch_size: int) -> dict[str, torch.Tensor]:
    """An observation and `suffix_length` tokens to learn after it: what the VLM alone is trained on."""
    generator = torch.Generator().manual_seed(2)
    suffix = torch.randint(IMAGE_TOKEN + 1, size.vocab_size, (batch_size, size.suffix_length), generator=generator)
    batch = observation(size, batch_size)
    batch["labels"] = torch.cat([torch.full_like(batch["input_ids"], -100), suffix], dim=1)  # (B, P + suffix)
    batch["input_ids"] = torch.cat([batch["input_ids"], suffix], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["token_type_ids"] = (batch["labels"] != -100).long()
    return batch


def action_inputs(size: Size, batch_size: int) -> dict[str, torch.Tensor]:
    """What a `token_batch` lacks for the action expert."""
    visible = torch.arange(size.prefix_length + size.suffix_length) < size.prefix_length
    generator = torch.Generator().manual_seed(3)
    return {
        "actions": torch.randn(batch_size, size.chunk_size, ACTION_DIM, generator=generator),
        "expert_attention_mask": visible.expand(batch_size, -1),
    }


def flow_draws(size: Size, rows: int) -> dict[str, torch.Tensor]:
    """Noise and flow times for `rows` = N·B chunks."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(rows, size.chunk_size, ACTION_DIM, generator=generator)
    return {"noise": noise, "timestep": torch.rand(rows, generator=generator)}


def train(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Forward and backward, the gradients anew; the loss."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach()


def millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.3g}M"


def gradient(module: nn.Module) -> torch.Tensor:
    """All gradients of a module as one vector; empty if it has none."""
    return torch.cat([torch.empty(0), *(p.grad.flatten() for p in module.parameters() if p.grad is not None)])

"""Tiny random vision-language models, one entry per family, and examples of the inputs that each family takes.

No test needs a network: every model is built from its config alone, in a fraction of a second. A `Family` says how to
build the model and how one image reaches it; the functions below make examples and batches from that:

    family = FAMILIES["qwen3_vl"]
    model = build_model(family)
    batch = collate(family, [make_example(family, num_images=2), make_example(family, num_images=1, text_length=3)])
    mask = batch.pop("expert_attention_mask")  # for the action expert; the VLM has no such argument
    logits = model(**batch).logits

All models share one vocabulary: 0 is padding, `TEXT_IDS` are ordinary words, and the ids from 200 up are special.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nVisionConfig
from transformers.models.timm_wrapper.configuration_timm_wrapper import TimmWrapperConfig

PAD_ID = 0
TEXT_IDS = range(10, 200)
IMAGE_ID, VIDEO_ID, AUDIO_ID, START_ID, END_ID = 200, 201, 202, 203, 204
VOCAB_SIZE = 256

PER_TOKEN_PADDING = {
    "input_ids": PAD_ID,
    "labels": -100,
    "expert_attention_mask": False,
    "attention_mask": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "moe_mm_token_type_ids": 0,
}


@dataclass(frozen=True)
class Family:
    """How to build one tiny VLM, and what one image looks like to it.

    Attributes:
        name: key of the family in `FAMILIES`.
        settings: arguments of `AutoConfig.for_model`, with `model_type` among them.
        image_tokens: the ids that one image takes in `input_ids`.
        image_tensors: draws the tensors of one image; those of several images are joined along the first dimension.
        images_in_rows: image tensors are `(batch, images, ...)`, short rows padded with zeros, instead of one flat
            list of all the images in the batch.
        token_types: the per-token arguments that the family needs, and which tokens are 1 there: "image" or "suffix".
    """

    name: str
    settings: dict[str, Any]
    image_tensors: Callable[[torch.Generator], dict[str, Tensor]]
    image_tokens: tuple[int, ...] = (IMAGE_ID,) * 4
    images_in_rows: bool = False
    token_types: dict[str, str] = field(default_factory=dict)

    def config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(**self.settings)


def build_model(family: Family, seed: int = 0, **kwargs) -> PreTrainedModel:
    """The family's VLM with random weights, in eval mode. `kwargs` go to `from_config`."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(family.config(), **kwargs)
    randomize_zero_parameters(model)
    return model.eval()


@torch.no_grad()
def randomize_zero_parameters(model: nn.Module, std: float = 0.1, seed: int = 0) -> None:
    """Redraw in place the weights that are zero everywhere, such as Gemma 3's projector: they hide their inputs.

    Biases and other vectors are left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def make_example(
    family: Family, num_images: int = 1, text_length: int = 6, suffix_length: int = 5, seed: int = 0
) -> dict[str, Tensor]:
    """One example without padding, batch dimension 1, S tokens: the images', then a prompt, then a suffix to learn.

    `labels` is -100 before the suffix and equal to `input_ids` on it (the model shifts them, as everywhere in
    transformers). `expert_attention_mask` is True before the suffix. All per-token tensors are (1, S).
    """
    generator = torch.Generator().manual_seed(seed)
    image_tokens = torch.tensor(family.image_tokens * num_images, dtype=torch.long)
    text = torch.randint(TEXT_IDS.start, TEXT_IDS.stop, (text_length + suffix_length,), generator=generator)
    input_ids = torch.cat([image_tokens, text])[None]  # (1, S)
    in_suffix = torch.arange(input_ids.shape[1])[None] >= input_ids.shape[1] - suffix_length
    example = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": input_ids.masked_fill(~in_suffix, -100),
        "expert_attention_mask": ~in_suffix,
    }
    for argument, marked in family.token_types.items():
        example[argument] = (in_suffix if marked == "suffix" else input_ids == IMAGE_ID).long()
    images = _join_images([family.image_tensors(generator) for _ in range(num_images)])
    return example | {name: tensor[None] if family.images_in_rows else tensor for name, tensor in images.items()}


def drop_suffix(example: dict[str, Tensor]) -> dict[str, Tensor]:
    """The example as it is at inference: the suffix cut off, no labels. For one example without padding."""
    prefix_length = int(example["expert_attention_mask"].sum())
    cut = {name: tensor[:, :prefix_length] if name in PER_TOKEN_PADDING else tensor for name, tensor in example.items()}
    del cut["labels"]
    return cut


def collate(family: Family, examples: list[dict[str, Tensor]], padding_side: str = "right") -> dict[str, Tensor]:
    """One batch of all the examples, their per-token tensors padded to the longest one on `padding_side`."""
    batch = {}
    length = max(example["input_ids"].shape[1] for example in examples)
    for name in PER_TOKEN_PADDING.keys() & examples[0].keys():
        rows = [_pad(example[name], 1, length, PER_TOKEN_PADDING[name], padding_side) for example in examples]
        batch[name] = torch.cat(rows)
    images = [{name: example[name] for name in example.keys() - PER_TOKEN_PADDING.keys()} for example in examples]
    return batch | (_stack_rows(images) if family.images_in_rows else _join_images(images))


def _join_images(images: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Image tensors of several images, or several examples, one after the other."""
    images = [image for image in images if image]
    joined = {name: torch.cat([image[name] for image in images]) for name in (images[0] if images else ())}
    if "image_token_pooling" in joined:  # indices into the patches of all the images together
        num_patches = [image["pixel_values"].shape[:2].numel() for image in images]
        num_tokens = [len(image["image_token_pooling"]) for image in images]
        first_patch = torch.tensor([0, *num_patches[:-1]]).cumsum(0)
        joined["image_token_pooling"] += first_patch.repeat_interleave(torch.tensor(num_tokens))[:, None]
    return joined


def _stack_rows(images: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Image tensors (1, images, ...) of every example, as (batch, images, ...), zeros where an example has fewer."""
    present = next((image for image in images if image), {})
    stacked = {}
    for name, tensor in present.items():
        rows = [image.get(name, tensor[:, :0]) for image in images]
        num_images = max(row.shape[1] for row in rows)
        stacked[name] = torch.cat([_pad(row, 1, num_images, 0, "right") for row in rows])
    return stacked


def _pad(tensor: Tensor, dim: int, size: int, value: float, side: str) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = size - tensor.shape[dim]
    padding = torch.full(shape, value, dtype=tensor.dtype)
    return torch.cat([tensor, padding] if side == "right" else [padding, tensor], dim=dim)


# ---------------------------------------------------------------------------------------------------------------------
# What one image looks like: functions that draw its tensors, or that return such a function
# ---------------------------------------------------------------------------------------------------------------------


def pixels(size: int, *leading: int, **constants: list) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """`pixel_values` (1, *leading, 3, size, size), and constant integer tensors with a leading dimension of 1."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        image = {"pixel_values": torch.randn(1, *leading, 3, size, size, generator=generator)}
        return image | {name: torch.tensor([value]) for name, value in constants.items()}

    return draw


def patches(count: int, dim: int, batched: bool, **constants: list) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """`pixel_values` (count, dim), or (1, count, dim) if `batched`, and constants as in `pixels`."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        values = torch.rand(count, dim, generator=generator) * 2 - 1
        image = {"pixel_values": values[None] if batched else values}
        return image | {name: torch.tensor([value]) for name, value in constants.items()}

    return draw


def masked_pixels(size: int) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """Idefics: pixels and which of them are real."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        return pixels(size)(generator) | {"pixel_attention_mask": torch.ones(1, size, size, dtype=torch.bool)}

    return draw


def square_patches(generator: torch.Generator) -> dict[str, Tensor]:
    """PaddleOCR-VL, Kimi: 4x4 patches of (3, 4, 4) pixels, merged 2x2 to 4 tokens."""
    return {
        "pixel_values": torch.randn(16, 3, 4, 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def molmo_crops(generator: torch.Generator) -> dict[str, Tensor]:
    """Molmo 2: one low-resolution and one high-resolution crop of 4x4 patches, pooled 2x2 to 4 tokens each."""
    corner = torch.tensor([0, 1, 4, 5])
    pooling = torch.stack(
        [crop * 16 + row * 8 + column * 2 + corner for crop in (0, 1) for row in (0, 1) for column in (0, 1)]
    )
    return {
        "pixel_values": torch.randn(2, 16, 3 * 4 * 4, generator=generator),
        "image_token_pooling": pooling,  # (8, 4): the patches under each token
        "image_grids": torch.tensor([[2, 2, 2, 2]]),
        "image_num_crops": torch.tensor([2]),
    }


def gemma_patches(generator: torch.Generator) -> dict[str, Tensor]:
    """Gemma 4: 6x6 patches with their (x, y) positions, pooled 3x3 to 4 tokens."""
    y, x = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    return {
        "pixel_values": torch.rand(1, 36, 3 * 4 * 4, generator=generator),
        "image_position_ids": torch.stack([x, y], dim=-1).reshape(1, 36, 2),
    }


class TinyMapTower(PreTrainedModel):
    """Stands in for `timm` vision towers, which need torchvision: one convolution, giving a map (N, C, H, W)."""

    config_class = Gemma3nVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.conv = nn.Conv2d(3, config.hidden_size, kernel_size=4, stride=4)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.conv(pixel_values))


class TinyTokenTower(TinyMapTower):
    """The same, giving tokens (N, H * W, C)."""

    config_class = TimmWrapperConfig

    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.conv(pixel_values).flatten(2).transpose(1, 2))


# `AutoModel.register` would do, were it not that some releases pass over configurations of transformers itself
AutoModel._model_mapping._extra_content |= {
    Gemma3nVisionConfig: TinyMapTower,
    TimmWrapperConfig: TinyTokenTower,
}


# ---------------------------------------------------------------------------------------------------------------------
# The families
# ---------------------------------------------------------------------------------------------------------------------


def text(model_type: str, **settings) -> dict[str, Any]:
    """Settings of a tiny text model. The random weights are large enough that outputs depend visibly on the inputs."""
    return {
        "model_type": model_type,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "pad_token_id": PAD_ID,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | settings


def vision(model_type: str, **settings) -> dict[str, Any]:
    """Settings of a tiny vision transformer over 2x2 patches of 4x4 pixels."""
    return {
        "model_type": model_type,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "initializer_range": 0.2,
    } | settings


def qwen_vision(model_type: str, **settings) -> dict[str, Any]:
    """Settings of a tiny Qwen-like vision transformer: patches of 2x4x4 values, merged 2x2."""
    return {
        "model_type": model_type,
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "initializer_range": 0.2,
    } | settings


def mrope(sections: list[int], **settings) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections} | settings


QWEN_TOKENS = {
    "image_token_id": IMAGE_ID,
    "video_token_id": VIDEO_ID,
    "vision_start_token_id": START_ID,
    "vision_end_token_id": END_ID,
}
# 4x4 patches of 3 * 2 * 4 * 4 values, merged 2x2 to 4 tokens
qwen_patches = patches(16, 96, batched=False, image_grid_thw=[1, 4, 4])
# M-RoPE tells two images in a row apart only by the tokens between them
QWEN_IMAGE_TOKENS = (START_ID, *(IMAGE_ID,) * 4, END_ID)
MM_TYPES = {"mm_token_type_ids": "image"}
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]

GEMMA4_SETTINGS = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 4,
        "position_embedding_size": 16,
        "initializer_range": 0.2,
    },
    "audio_config": None,
    "image_token_id": IMAGE_ID,
    "video_token_id": VIDEO_ID,
    "audio_token_id": AUDIO_ID,
    "boi_token_id": START_ID,
    "eoi_token_id": END_ID,
    "initializer_range": 0.2,
}

_ALL = [
    Family(
        "paligemma",
        {
            "model_type": "paligemma",
            "text_config": text("gemma", num_key_value_heads=1, head_dim=16),
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "projection_dim": 32,
            "hidden_size": 32,
            "vocab_size": VOCAB_SIZE,
            "image_token_index": IMAGE_ID,
        },
        pixels(8),
        token_types={"token_type_ids": "suffix"},
    ),
    Family(
        "paligemma2",
        {
            "model_type": "paligemma",
            "text_config": text(
                "gemma2",
                head_dim=16,
                query_pre_attn_scalar=16,
                num_hidden_layers=4,
                sliding_window=8,
            ),
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "projection_dim": 32,
            "hidden_size": 32,
            "vocab_size": VOCAB_SIZE,
            "image_token_index": IMAGE_ID,
        },
        pixels(8),
        token_types={"token_type_ids": "suffix"},
    ),
    Family(
        "gemma3",
        {
            "model_type": "gemma3",
            "text_config": text(
                "gemma3_text", head_dim=16, query_pre_attn_scalar=16, sliding_window=6, layer_types=SLIDING
            ),
            "vision_config": vision("siglip_vision_model", image_size=16, vision_use_head=False),
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE_ID,
            "boi_token_index": START_ID,
            "eoi_token_index": END_ID,
            "initializer_range": 0.2,
        },
        pixels(16),
        image_tokens=(START_ID, *(IMAGE_ID,) * 4, END_ID),
        token_types={"token_type_ids": "image"},
    ),
    Family(
        "gemma3n",
        {
            "model_type": "gemma3n",
            "text_config": text(
                "gemma3n_text",
                num_hidden_layers=4,
                head_dim=16,
                sliding_window=6,
                layer_types=["sliding_attention", "full_attention"] * 2,
                num_kv_shared_layers=2,
                vocab_size_per_layer_input=VOCAB_SIZE,
                hidden_size_per_layer_input=8,
                altup_num_inputs=2,
                laurel_rank=8,
                activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
            ),
            "vision_config": {"hidden_size": 16, "vocab_size": 4, "vocab_offset": 200, "initializer_range": 0.2},
            "audio_config": {
                "hidden_size": 16,
                "vocab_size": 4,
                "vocab_offset": 204,
                "input_feat_size": 8,
                "conf_num_attention_heads": 2,
                "conf_num_hidden_layers": 1,
                "sscp_conv_channel_size": [4, 4],
            },
            "vision_soft_tokens_per_image": 4,
            "image_token_id": IMAGE_ID,
            "boi_token_id": 210,
            "eoi_token_id": 211,
            "audio_token_id": 204,
            "boa_token_id": 212,
            "eoa_token_id": 213,
            "initializer_range": 0.2,
        },
        pixels(8),
    ),
    Family(
        "gemma4",
        {
            "model_type": "gemma4",
            "text_config": text(
                "gemma4_text",
                num_hidden_layers=4,
                head_dim=8,
                global_head_dim=16,
                sliding_window=6,
                layer_types=["sliding_attention", "full_attention"] * 2,
                num_kv_shared_layers=2,
                vocab_size_per_layer_input=VOCAB_SIZE,
                hidden_size_per_layer_input=8,
                use_bidirectional_attention="vision",
            ),
            **GEMMA4_SETTINGS,
        },
        gemma_patches,
        image_tokens=(START_ID, *(IMAGE_ID,) * 4, END_ID),
        token_types=MM_TYPES,
    ),
    Family(
        "qwen2_vl",
        {
            "model_type": "qwen2_vl",
            "text_config": text("qwen2_vl_text", rope_parameters=mrope([2, 1, 1])),
            "vision_config": {
                "depth": 2,
                "embed_dim": 16,
                "hidden_size": 32,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 4,
                "initializer_range": 0.2,
            },
            **QWEN_TOKENS,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
    ),
    Family(
        "qwen2_5_vl",
        {
            "model_type": "qwen2_5_vl",
            "text_config": text("qwen2_5_vl_text", rope_parameters=mrope([2, 1, 1])),
            "vision_config": qwen_vision("qwen2_5_vl_vision", window_size=16, fullatt_block_indexes=[1]),
            **QWEN_TOKENS,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
    ),
    Family(
        "qwen3_vl",
        {
            "model_type": "qwen3_vl",
            "text_config": text("qwen3_vl_text", head_dim=16, rope_parameters=mrope([4, 2, 2], mrope_interleaved=True)),
            "vision_config": qwen_vision(
                "qwen3_vl_vision", num_position_embeddings=16, deepstack_visual_indexes=[0, 1]
            ),
            **QWEN_TOKENS,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
    ),
    Family(
        "qwen3_vl_moe",
        {
            "model_type": "qwen3_vl_moe",
            "text_config": text(
                "qwen3_vl_moe_text",
                head_dim=16,
                rope_parameters=mrope([4, 2, 2], mrope_interleaved=True),
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
            ),
            "vision_config": qwen_vision(
                "qwen3_vl_moe_vision", num_position_embeddings=16, deepstack_visual_indexes=[0, 1]
            ),
            **QWEN_TOKENS,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
    ),
    Family(
        "qwen3_5",
        {
            "model_type": "qwen3_5",
            "text_config": text(
                "qwen3_5_text",
                num_hidden_layers=4,
                head_dim=32,
                rope_parameters=mrope([2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.25),
                layer_types=["linear_attention", "full_attention"] * 2,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                linear_num_key_heads=2,
                linear_num_value_heads=4,
            ),
            "vision_config": qwen_vision("qwen3_5_vision", num_position_embeddings=16),
            **QWEN_TOKENS,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
    ),
    Family(
        "qwen3_5_moe",
        {
            "model_type": "qwen3_5_moe",
            "text_config": text(
                "qwen3_5_moe_text",
                num_hidden_layers=4,
                head_dim=32,
                rope_parameters=mrope([2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.25),
                layer_types=["linear_attention", "full_attention"] * 2,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                linear_num_key_heads=2,
                linear_num_value_heads=4,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
            ),
            "vision_config": qwen_vision("qwen3_5_moe_vision", num_position_embeddings=16),
            **QWEN_TOKENS,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
    ),
    *(
        Family(
            name,
            {
                "model_type": name,
                "text_config": text("llama", rms_norm_eps=1e-5),
                "vision_config": vision(f"{name}_vision", image_size=16),
                "scale_factor": 2,
                "image_token_id": IMAGE_ID,
                "pad_token_id": PAD_ID,
            },
            masked_pixels(16),
            images_in_rows=True,
        )
        for name in ("smolvlm", "idefics3")
    ),
    *(
        Family(
            name,
            {
                "model_type": name,
                "text_config": text("llama"),
                "vision_config": vision("clip_vision_model", projection_dim=16),
                "image_token_index": IMAGE_ID,
                **settings,
            },
            image,
            image_tokens=(IMAGE_ID,) * num_tokens,
        )
        for name, settings, image, num_tokens in (
            ("llava", {"vision_feature_layer": -2}, pixels(8), 4),
            ("vipllava", {"vision_feature_layers": [-2, -1]}, pixels(8), 4),
            ("llava_next", {"image_grid_pinpoints": [[8, 8]]}, pixels(8, 2, image_sizes=[8, 8]), 10),
        )
    ),
    Family(
        "llava_onevision",
        {
            "model_type": "llava_onevision",
            "text_config": text("qwen2"),
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "image_token_index": IMAGE_ID,
            "video_token_index": VIDEO_ID,
            "image_grid_pinpoints": [[8, 8]],
        },
        pixels(8, 2, image_sizes=[8, 8]),
        image_tokens=(IMAGE_ID,) * 10,
    ),
    Family(
        "internvl",
        {
            "model_type": "internvl",
            "text_config": text("qwen2"),
            "vision_config": vision("internvl_vision", image_size=[16, 16], patch_size=[4, 4]),
            "image_token_id": IMAGE_ID,
            "image_seq_length": 4,
        },
        pixels(16),
    ),
    Family(
        "fast_vlm",
        {
            "model_type": "fast_vlm",
            "text_config": text("qwen2"),
            "vision_config": {
                "model_type": "convnext",
                "hidden_sizes": [8, 16],
                "hidden_size": 16,
                "num_stages": 2,
                "depths": [1, 1],
                "patch_size": 2,
                "initializer_range": 0.2,
            },
            "image_token_index": IMAGE_ID,
        },
        pixels(8),
    ),
    Family(
        "perception_lm",
        {
            "model_type": "perception_lm",
            "text_config": text("llama"),
            "vision_config": {"hidden_size": 16, "model_args": {"embed_dim": 16}, "initializer_range": 0.2},
            "vision_use_cls_token": False,
            "image_token_id": IMAGE_ID,
            "video_token_id": VIDEO_ID,
        },
        pixels(8, 1),
    ),
    Family(
        "ovis2",
        {
            "model_type": "ovis2",
            "text_config": text("qwen2"),
            "vision_config": vision("ovis2_vision", vocab_size=32, num_visual_indicator_tokens=5),
            "image_token_id": IMAGE_ID,
            "visual_indicator_token_ids": [205, 206, 207, 208, 209],
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
        },
        pixels(8),
        image_tokens=(205, *(IMAGE_ID,) * 4, 206),
    ),
    Family(
        "mistral3",
        {
            "model_type": "mistral3",
            "text_config": text("mistral", head_dim=16, sliding_window=6),
            "vision_config": vision("pixtral", image_size=16, head_dim=8),
            "image_token_index": IMAGE_ID,
        },
        pixels(16, image_sizes=[16, 16]),
    ),
    Family(
        "lfm2_vl",
        {
            "model_type": "lfm2_vl",
            "text_config": text(
                "lfm2",
                num_hidden_layers=4,
                layer_types=["conv", "full_attention"] * 2,
                block_auto_adjust_ff_dim=False,
            ),
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_patches": 16,
                "patch_size": 4,
                "vision_use_head": False,
            },
            "image_token_id": IMAGE_ID,
            "downsample_factor": 2,
            "projector_hidden_size": 32,
        },
        patches(16, 48, batched=True, spatial_shapes=[4, 4], pixel_attention_mask=[1] * 16),
    ),
    *(
        Family(
            name,
            {
                "model_type": name,
                "text_config": text(
                    f"{name}_text",
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    rope_parameters=mrope([2, 1, 1], partial_rotary_factor=0.5),
                    **settings,
                ),
                "vision_config": qwen_vision(f"{name}_vision", image_size=16),
                "image_token_id": IMAGE_ID,
                "video_token_id": VIDEO_ID,
                "image_start_token_id": START_ID,
                "image_end_token_id": END_ID,
                "video_start_token_id": 205,
                "video_end_token_id": 206,
            },
            qwen_patches,
            image_tokens=QWEN_IMAGE_TOKENS,
            token_types=MM_TYPES,
        )
        for name, settings in (
            ("glm4v", {}),
            (
                "glm4v_moe",
                {
                    "n_routed_experts": 4,
                    "num_experts_per_tok": 2,
                    "moe_intermediate_size": 16,
                    "n_shared_experts": 1,
                    "first_k_dense_replace": 1,
                },
            ),
        )
    ),
    Family(
        "molmo2",
        {
            "model_type": "molmo2",
            "text_config": text("molmo2_text", head_dim=8, additional_vocab_size=0),
            "vision_config": vision("molmo2_vision", image_size=[16, 16], num_key_value_heads=2, head_dim=8),
            "adapter_config": {
                "hidden_size": 16,
                "vision_feature_layer": [1, 0],
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "intermediate_size": 32,
                "text_hidden_size": 32,
                "initializer_range": 0.2,
            },
            "image_patch_id": IMAGE_ID,
            "image_start_token_id": START_ID,
            "image_end_token_id": END_ID,
            "low_res_image_start_token_id": 205,
            "frame_start_token_id": 206,
            "frame_end_token_id": 207,
            "initializer_range": 0.2,
        },
        molmo_crops,
        image_tokens=(205, *(IMAGE_ID,) * 4, END_ID, START_ID, *(IMAGE_ID,) * 4, END_ID),
        token_types=MM_TYPES,
    ),
    Family(
        "llama4",
        {
            "model_type": "llama4",
            "text_config": text(
                "llama4_text",
                num_hidden_layers=4,
                head_dim=8,
                intermediate_size_mlp=64,
                num_local_experts=2,
                attention_chunk_size=6,
                no_rope_layers=[1, 1, 1, 0],
            ),
            "vision_config": vision(
                "llama4_vision_model",
                image_size=16,
                intermediate_size=64,
                vision_output_dim=16,
                projector_input_dim=16,
                projector_output_dim=16,
            ),
            "image_token_index": IMAGE_ID,
            "boi_token_index": START_ID,
            "eoi_token_index": END_ID,
        },
        pixels(16),
    ),
    # The families below add text models that the ones above lack.
    *(
        Family(
            name,
            {
                "model_type": name,
                # interleaved RoPE on the sliding layers, none on the full ones
                "text_config": text("cohere2", sliding_window=6, layer_types=SLIDING),
                "vision_config": vision("siglip_vision_model", image_size=16, vision_use_head=False),
                "image_token_id": IMAGE_ID,
                **settings,
            },
            pixels(16),
        )
        for name, settings in (("aya_vision", {}), ("cohere2_vision", {"alignment_intermediate_size": 32}))
    ),
    Family(
        "idefics2",
        {
            "model_type": "idefics2",
            "text_config": text("mistral", sliding_window=None),
            "vision_config": vision("idefics2_vision"),
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 8,
                "num_key_value_heads": 1,
                "initializer_range": 0.2,
            },
            "image_token_id": IMAGE_ID,
        },
        masked_pixels(8),
        images_in_rows=True,
    ),
    Family(
        "deepseek_vl",
        {
            "model_type": "deepseek_vl",
            "text_config": text("llama"),
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "image_token_id": IMAGE_ID,
        },
        pixels(8),
    ),
    Family(
        "janus",
        {
            "model_type": "janus",
            "text_config": text("llama"),
            "vision_config": vision("janus_vision_model", mlp_ratio=2, projection_dim=32, num_image_tokens=4, depth=1),
            "vq_config": {
                "embed_dim": 4,
                "num_embeddings": 16,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "num_patches": 4,
                "projection_dim": 32,
                "image_token_embed_dim": 32,
            },
            "image_token_id": IMAGE_ID,
        },
        pixels(8),
    ),
    Family(
        "aria",
        {
            "model_type": "aria",
            "text_config": text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
            "vision_config": vision("idefics3_vision"),
            "projector_patch_to_query_dict": {4: 4},
            "image_token_index": IMAGE_ID,
            "initializer_range": 0.2,
        },
        pixels(8),
    ),
    Family(
        "exaone4_5",
        {
            "model_type": "exaone4_5",
            "text_config": text("exaone4", sliding_window=6, layer_types=SLIDING),
            "vision_config": qwen_vision(
                "exaone4_5_vision", num_key_value_heads=1, window_size=16, fullatt_block_indexes=[1]
            ),
            "image_token_id": IMAGE_ID,
            "video_token_id": VIDEO_ID,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
    ),
    Family(
        "glm_ocr",
        {
            "model_type": "glm_ocr",
            "text_config": text("glm_ocr_text", head_dim=16, rope_parameters=mrope([4, 2, 2])),
            "vision_config": qwen_vision("glm_ocr_vision", image_size=16),
            "image_token_id": IMAGE_ID,
            "video_token_id": VIDEO_ID,
            "image_start_token_id": START_ID,
            "image_end_token_id": END_ID,
            "video_start_token_id": 205,
            "video_end_token_id": 206,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
    ),
    Family(
        "ernie4_5_vl_moe",
        {
            "model_type": "ernie4_5_vl_moe",
            "text_config": text(
                "ernie4_5_vl_moe_text",
                num_attention_heads=2,
                num_key_value_heads=1,
                rope_parameters=mrope([3, 3, 2]),  # `inv_freq` holds the frequencies in another order than they act
                moe_intermediate_size=[16, 16],
                moe_num_experts=4,
                moe_k=2,
                moe_num_shared_experts=1,
                mlp_layer_types=["dense", "sparse", "sparse"],
            ),
            "vision_config": qwen_vision("ernie4_5_vl_moe_vision"),
            "image_token_id": IMAGE_ID,
            "video_token_id": VIDEO_ID,
            "image_start_token_id": START_ID,
            "image_end_token_id": END_ID,
            "video_start_token_id": 205,
            "video_end_token_id": 206,
        },
        patches(16, 48, batched=False, image_grid_thw=[1, 4, 4]),
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types={**MM_TYPES, "moe_mm_token_type_ids": "image"},
    ),
    Family(
        "lighton_ocr",
        {
            "model_type": "lighton_ocr",
            "text_config": text("qwen3", head_dim=16),
            "vision_config": vision("pixtral", image_size=16, head_dim=8),
            "image_token_id": IMAGE_ID,
        },
        pixels(16, image_sizes=[16, 16]),
    ),
    Family(
        "got_ocr2",
        {
            "model_type": "got_ocr2",
            "text_config": text("qwen2"),
            "vision_config": vision(
                "got_ocr2_vision",
                image_size=64,
                patch_size=8,
                output_channels=8,
                mlp_dim=32,
                window_size=4,
                global_attn_indexes=[1],
            ),
            "image_token_index": IMAGE_ID,
        },
        pixels(64),
    ),
    Family(
        "paddleocr_vl",
        {
            "model_type": "paddleocr_vl",
            "text_config": text("paddleocr_vl_text", head_dim=16, rope_parameters=mrope([4, 2, 2])),
            "vision_config": vision("paddleocr_vl_vision", image_size=16),
            **QWEN_TOKENS,
        },
        square_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
    ),
    Family(
        "gemma4_moe",
        {
            "model_type": "gemma4",
            # as the large Gemma 4: experts; full layers have their own number of heads, and values made from keys
            "text_config": text(
                "gemma4_text",
                head_dim=8,
                global_head_dim=16,
                num_global_key_value_heads=1,
                attention_k_eq_v=True,
                sliding_window=6,
                layer_types=SLIDING,
                hidden_size_per_layer_input=0,
                enable_moe_block=True,
                num_experts=4,
                top_k_experts=2,
                moe_intermediate_size=16,
                use_bidirectional_attention="vision",
            ),
            **GEMMA4_SETTINGS,
        },
        gemma_patches,
        image_tokens=(START_ID, *(IMAGE_ID,) * 4, END_ID),
        token_types=MM_TYPES,
    ),
    Family(
        "kimi_k25",
        {
            "model_type": "kimi_k25",
            # multi-head latent attention: values narrower than keys, RoPE on the last part of a head only
            "text_config": text(
                "deepseek_v3",
                num_key_value_heads=4,
                q_lora_rank=16,
                kv_lora_rank=16,
                qk_nope_head_dim=8,
                qk_rope_head_dim=8,
                v_head_dim=12,
                n_routed_experts=4,
                n_group=1,
                topk_group=1,
                num_experts_per_tok=2,
                n_shared_experts=1,
                moe_intermediate_size=16,
                first_k_dense_replace=1,
            ),
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": 4,
                "pos_emb_height": 4,
                "pos_emb_width": 4,
                "pos_emb_time": 1,
            },
            "projection_hidden_size": 16,
            **QWEN_TOKENS,
        },
        square_patches,
    ),
]

# an older transformers has fewer families
FAMILIES = {family.name: family for family in _ALL if family.settings["model_type"] in CONFIG_MAPPING}


# ---------------------------------------------------------------------------------------------------------------------
# What cannot carry an action expert, and why
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """A configuration that must be turned down with a message.

    Attributes:
        settings: arguments of `AutoConfig.for_model`, with `model_type` among them.
        reason: why an expert cannot read this model.
        is_vlm: whether `AutoModelForImageTextToText` builds it.
    """

    settings: dict[str, Any]
    reason: str
    is_vlm: bool = True

    def config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(**self.settings)


_QFORMER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "encoder_hidden_size": 16,
}
_T5 = {
    "model_type": "t5",
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
REFUSED: dict[str, Refused] = {
    "mllama": Refused(
        {
            "model_type": "mllama",
            "text_config": text(
                "mllama_text_model",
                cross_attention_layers=[1],
                rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            ),
            "vision_config": vision(
                "mllama_vision_model",
                attention_heads=2,
                num_global_layers=1,
                max_num_tiles=1,
                supported_aspect_ratios=[[1, 1]],
                intermediate_layers_indices=[0],
                vision_output_dim=32,
            ),
            "image_token_index": IMAGE_ID,
        },
        "images enter through cross attention, not as tokens",
    ),
    "instructblip": Refused(
        {
            "model_type": "instructblip",
            "text_config": _T5,
            "vision_config": vision("instructblip_vision_model"),
            "qformer_config": _QFORMER,
            "num_query_tokens": 4,
            "image_token_index": IMAGE_ID,
        },
        "the language model is an encoder and a decoder",
    ),
    "qwen3_5_linear": Refused(
        {
            **FAMILIES["qwen3_5"].settings,
            "text_config": FAMILIES["qwen3_5"].settings["text_config"] | {"layer_types": ["linear_attention"] * 4},
        },
        "no layer has keys and values",
    ),
    "llama": Refused(text("llama"), "reads no images", is_vlm=False),
}

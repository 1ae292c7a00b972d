"""Hybrids: decoders some of whose layers have no keys and values (linear attention, convolutions, state spaces)."""

from .family import END_ID, IMAGE_ID, START_ID, VIDEO_ID, Family
from .images import patches, strip
from .settings import (
    MM_TYPES,
    QWEN3_5_TEXT,
    QWEN_IMAGE_TOKENS,
    QWEN_TOKENS,
    qwen_patches,
    qwen_vision,
    text,
    vision,
)

HYBRIDS = [
    Family(
        "qwen3_5",
        {
            "model_type": "qwen3_5",
            "text_config": QWEN3_5_TEXT,
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
            "text_config": QWEN3_5_TEXT
            | {
                "model_type": "qwen3_5_moe_text",
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
            },
            "vision_config": qwen_vision("qwen3_5_moe_vision", num_position_embeddings=16),
            **QWEN_TOKENS,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
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
                "text_config": QWEN3_5_TEXT,
                "vision_config": vision(f"{name}_vision", image_size=16, insert_layer_id=0),
                "insert_layer_id": 0,
                "image_token_id": IMAGE_ID,
                "video_token_id": VIDEO_ID,
                **settings,
            },
            strip(side),
            image_tokens=(START_ID, *(IMAGE_ID,) * 4, END_ID),
            token_types=token_types,
            joined_along={"pixel_values": 3},
        )
        for name, side, settings, token_types in (
            ("minicpm_ocr", 4, {}, {}),
            ("minicpmv4_6", 8, {}, {}),
            (
                "minicpmv4_7",
                8,
                {
                    "image_start_id": START_ID,
                    "image_end_id": END_ID,
                    "slice_start_id": 205,
                    "slice_end_id": 206,
                    "newline_id": 207,
                },
                MM_TYPES,
            ),
        )
    ),
    Family(
        "lfm3_vl",
        {
            "model_type": "lfm3_vl",
            # convolutions, windows, and full layers that turn half of each head
            "text_config": text(
                "lfm3",
                num_hidden_layers=4,
                head_dim=8,
                layer_types=["conv", "sliding_attention", "conv", "full_attention"],
                sliding_window=6,
            ),
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "patch_size": 4,
                "layer_types": ["conv", "full_attention"],
                "initializer_range": 0.2,
            },
            "projector_hidden_size": 32,
            **QWEN_TOKENS,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
    ),
]

"""Settings that several families share: sizes of tiny text models and vision towers, special tokens."""

from typing import Any

import transformers
from packaging.version import Version

from .family import AUDIO_ID, END_ID, IMAGE_ID, PAD_ID, START_ID, VIDEO_ID, VOCAB_SIZE
from .images import patches


def since(version: str) -> bool:
    """Whether the installed transformers is that version or newer."""
    return Version(transformers.__version__) >= Version(version)


# Types that this release of transformers does wrongly, and we refuse (`backbone_attention._WRONG_IN`)
WRONG_HERE = {"minimax_m3_vl"} if not since("5.23") else {"llama4"} if transformers.__version__ == "5.24.0" else set()


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

QWEN3_5_TEXT = text(
    "qwen3_5_text",
    num_hidden_layers=4,
    head_dim=32,
    rope_parameters=mrope([2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.25),
    layer_types=["linear_attention", "full_attention"] * 2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
)

# A tiny tower of Segment Anything, as several readers of documents have one
SAM = {
    "hidden_size": 16,
    "output_channels": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 32,
    "initializer_range": 0.2,
}

MUSE_VISION = {
    "patch_size": 4,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
}

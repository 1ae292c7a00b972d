"""Decoders that also hear, speak or draw; here only pictures and words come in."""

from .family import AUDIO_ID, IMAGE_ID, VIDEO_ID, Family
from .settings import (
    MUSE_VISION,
    QWEN_IMAGE_TOKENS,
    QWEN_TOKENS,
    mrope,
    qwen_patches,
    qwen_vision,
    text,
)

OMNI = [
    Family(
        "qwen2_5_omni_thinker",
        {
            "model_type": "qwen2_5_omni_thinker",
            "text_config": text("qwen2_5_omni_text", rope_parameters=mrope([2, 1, 1])),
            "vision_config": qwen_vision("qwen2_5_omni_vision_encoder", window_size=16, fullatt_block_indexes=[1]),
            "audio_config": {
                "num_mel_bins": 8,
                "encoder_layers": 1,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 16,
                "d_model": 16,
                "n_window": 4,
                "output_dim": 32,
                "initializer_range": 0.2,
            },
            **QWEN_TOKENS,
            "audio_token_id": AUDIO_ID,
            "audio_start_token_id": 205,
            "audio_end_token_id": 206,
            "user_token_id": 207,
            "initializer_range": 0.2,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
    ),
    Family(
        "qwen3_omni_moe_thinker",
        {
            "model_type": "qwen3_omni_moe_thinker",
            "text_config": text(
                "qwen3_omni_moe_text",
                head_dim=16,
                rope_parameters=mrope([4, 2, 2], mrope_interleaved=True),
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
            ),
            "vision_config": qwen_vision(
                "qwen3_omni_moe_vision_encoder", num_position_embeddings=16, deepstack_visual_indexes=[0, 1]
            ),
            "audio_config": {
                "num_mel_bins": 8,
                "encoder_layers": 1,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 16,
                "d_model": 16,
                "n_window": 4,
                "output_dim": 32,
                "downsample_hidden_size": 8,
                "initializer_range": 0.2,
            },
            **QWEN_TOKENS,
            "audio_token_id": AUDIO_ID,
            "audio_start_token_id": 205,
            "audio_end_token_id": 206,
            "user_token_id": 207,
            "initializer_range": 0.2,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        published={"text_config": {"head_dim": 128, "num_attention_heads": 32, "rope_parameters": mrope([24, 20, 20])}},
    ),
    Family(
        "muse_spark",
        {
            "model_type": "muse_spark",
            # as Muse Glimmer, with experts that work at a width of their own
            "text_config": text(
                "muse_spark_text",
                head_dim=8,
                num_hidden_layers=4,
                sliding_window=6,
                num_local_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                moe_hidden_size=16,
            ),
            "vision_config": MUSE_VISION,
            "audio_config": {
                "patch_sizes": [4],
                "hidden_sizes": [8],
                "depths": [1],
                "num_hidden_layers": 1,
                "out_hidden_size": 32,
            },
            "out_hidden_size": 64,
            "projector_hidden_size": 32,
            "image_token_id": IMAGE_ID,
            "video_token_id": VIDEO_ID,
            "audio_token_id": AUDIO_ID,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
    ),
]

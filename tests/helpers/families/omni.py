"""Decoders that also hear, speak or draw; here only pictures and words come in."""

from .family import AUDIO_ID, Family
from .settings import (
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
]

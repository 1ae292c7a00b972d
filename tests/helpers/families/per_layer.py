"""Decoders whose layers differ in the sizes of their heads, or share keys and values."""

from .family import AUDIO_ID, END_ID, IMAGE_ID, START_ID, VIDEO_ID, VOCAB_SIZE, Family
from .images import folded_patches, gemma_patches, merged_patches, pixels
from .settings import (
    GEMMA4_SETTINGS,
    MM_TYPES,
    MUSE_VISION,
    QWEN_IMAGE_TOKENS,
    SLIDING,
    qwen_patches,
    text,
    vision,
)

PER_LAYER = [
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
        published={
            "text_config": {
                "hidden_size_per_layer_input": 0,
                "enable_moe_block": True,
                "num_experts": 128,
                "top_k_experts": 8,
                "moe_intermediate_size": 704,
            }
        },
    ),
    Family(
        "gemma4_unified",
        {
            "model_type": "gemma4_unified",
            # no tower: patches of 12x12 pixels are projected
            "text_config": text(
                "gemma4_unified_text",
                head_dim=8,
                global_head_dim=16,
                sliding_window=6,
                layer_types=SLIDING,
                use_bidirectional_attention="vision",
            ),
            **GEMMA4_SETTINGS,
            "vision_config": {
                "patch_size": 4,
                "pooling_kernel_size": 3,
                "mm_embed_dim": 16,
                "mm_posemb_size": 4,
                "output_proj_dims": 16,
                "initializer_range": 0.2,
            },
        },
        merged_patches,
        image_tokens=(START_ID, *(IMAGE_ID,) * 4, END_ID),
        token_types=MM_TYPES,
    ),
    Family(
        "muse_glimmer",
        {
            "model_type": "muse_glimmer",
            # full layers have no rotary embedding, the others a window
            "text_config": text(
                "muse_glimmer_text", head_dim=8, num_hidden_layers=4, sliding_window=6, qk_scale_factor=3.87
            ),
            "vision_config": MUSE_VISION,
            "out_hidden_size": 64,
            "projector_hidden_size": 32,
            "image_token_id": IMAGE_ID,
            "video_token_id": VIDEO_ID,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
    ),
    Family(
        "inkling_mm_model",
        {
            "model_type": "inkling_mm_model",
            # positions are biases by distance; convolutions over keys and values; heads of sliding layers differ
            "text_config": text(
                "inkling_text",
                num_attention_heads=4,
                num_key_value_heads=1,
                head_dim=8,
                swa_num_attention_heads=4,
                swa_num_key_value_heads=2,
                swa_head_dim=8,
                sliding_window_size=6,
                layer_types=["hybrid_sliding", "hybrid_sliding", "hybrid"],
                mlp_layer_types=["dense", "sparse", "sparse"],
                d_rel=4,
                rel_extent=16,
                n_routed_experts=4,
                n_shared_experts=1,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                logits_mup_width_multiplier=1.0,
            ),
            "vision_config": {
                "patch_size": 4,
                "hidden_size": 16,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "initializer_range": 0.2,
            },
            "audio_config": {"n_mel_bins": 4, "mel_vocab_size": 8},
            "image_token_id": IMAGE_ID,
            "audio_token_id": AUDIO_ID,
            "image_bos_token_id": START_ID,
            "audio_bos_token_id": 205,
        },
        folded_patches(2, 4),
    ),
    *(
        Family(
            name,
            {
                "model_type": name,
                # as Inkling; the last rows of the output layer are never said
                "text_config": text(
                    f"{name}_text",
                    unpadded_vocab_size=240,
                    num_attention_heads=4,
                    num_key_value_heads=1,
                    head_dim=8,
                    swa_num_attention_heads=4,
                    swa_num_key_value_heads=2,
                    swa_head_dim=8,
                    sliding_window_size=6,
                    layer_types=["hybrid_sliding", "hybrid_sliding", "hybrid"],
                    **loop,
                    d_rel=4,
                    rel_extent=16,
                    n_routed_experts=4,
                    num_experts_per_tok=2,
                    moe_intermediate_size=16,
                    n_layers_per_attn_res_block=1,
                ),
                "vision_config": vision(
                    "inkling2_vision", posemb_grid_size=4, projection_hidden_dim=32, text_hidden_size=32
                ),
                "image_token_id": IMAGE_ID,
            },
            folded_patches(8, image_grid_thw=[1, 2, 2]),
        )
        for name, loop in (
            ("inkling2", {}),
            # the second layer runs twice
            (
                "inkling2_loop",
                {"loop_layer_index_start": 1, "loop_layer_index_end": 2, "loop_num_passes": 2, "loop_gate_rank": 4},
            ),
        )
    ),
]

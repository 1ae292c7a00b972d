"""Decoders with mixtures of experts."""

from .dense import glm4v
from .family import END_ID, IMAGE_ID, START_ID, VIDEO_ID, VOCAB_SIZE, Family
from .images import patches, pixels, square_patches
from .settings import (
    MM_TYPES,
    QWEN_IMAGE_TOKENS,
    QWEN_TOKENS,
    SAM,
    SLIDING,
    mrope,
    qwen_patches,
    qwen_vision,
    text,
    vision,
)

MIXTURES = [
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
    glm4v(
        "glm4v_moe",
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        n_shared_experts=1,
        first_k_dense_replace=1,
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
    Family(
        "unlimited_ocr",
        {
            "model_type": "unlimited_ocr",
            "text_config": text(
                "unlimited_ocr_text",
                num_key_value_heads=4,
                sliding_window=6,  # for what is said; the prompt is always seen
                n_routed_experts=4,
                n_shared_experts=1,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
            ),
            "vision_config": {
                "sam_config": SAM | {"downsample_channels": [8, 16]},
                "encoder_config": {
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "image_size": 8,
                    "patch_size": 4,
                    "initializer_range": 0.2,
                },
            },
            "image_token_id": IMAGE_ID,
        },
        pixels(32),
        image_tokens=(IMAGE_ID,) * 7,  # two rows with a new line each, and what separates pictures
    ),
    Family(
        "mistral3_moe",
        {
            "model_type": "mistral3",
            # as Mistral Small 4: multi-head latent attention, queries scaled by their position
            "text_config": text(
                "mistral4",
                max_position_embeddings=1_048_576,
                num_key_value_heads=4,
                q_lora_rank=16,
                kv_lora_rank=16,
                qk_nope_head_dim=8,
                qk_rope_head_dim=8,
                v_head_dim=16,
                n_routed_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
            ),
            "vision_config": vision("pixtral", image_size=16, head_dim=8),
            "image_token_index": IMAGE_ID,
        },
        pixels(16, image_sizes=[16, 16]),
    ),
    Family(
        "deepseek_ocr2",
        {
            "model_type": "deepseek_ocr2",
            "text_config": text(
                "deepseek_ocr2_text",
                num_key_value_heads=4,
                n_routed_experts=4,
                n_shared_experts=1,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                mlp_layer_types=["dense", "sparse", "sparse"],
            ),
            "vision_config": {
                "sam_config": SAM | {"downsample_channels": [8, 16]},
                "encoder_config": {
                    "vocab_size": VOCAB_SIZE,
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "initializer_range": 0.2,
                },
            },
            "image_token_id": IMAGE_ID,
        },
        pixels(32),
        image_tokens=(IMAGE_ID,) * 145,  # the tower always asks 144 questions
        published={
            "text_config": {"mlp_layer_types": ["dense", *["sparse"] * 31], "num_experts_per_tok": 6},
        },
    ),
    Family(
        "step3p7",
        {
            "model_type": "step3p7",
            # sliding layers have more heads; a mixture in the later layers
            "text_config": text(
                "step3p5",
                head_dim=8,
                layer_types=SLIDING,
                sliding_window=6,
                num_sliding_attention_heads=6,
                partial_rotary_factors=[1.0, 1.0, 0.5],
                rope_theta=[10_000.0, 10_000.0, 1_000_000.0],
                mlp_layer_types=["dense", "sparse", "sparse"],
                n_routed_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                share_expert_dim=16,
            ),
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 4,
                "mlp_ratio": 2.0,
                "max_position_embeddings": 64,
                "initializer_range": 0.2,
            },
            "image_token_id": IMAGE_ID,
        },
        pixels(32),
        published={
            "text_config": {
                "layer_types": [*["full_attention", *["sliding_attention"] * 3] * 11, "full_attention"],
                "sliding_window": 512,
                "num_sliding_attention_heads": 96,
                "partial_rotary_factors": [*[0.5, *[1.0] * 3] * 11, 0.5],
                "rope_theta": [*[5_000_000.0, *[10_000.0] * 3] * 11, 5_000_000.0],
            }
        },
    ),
]

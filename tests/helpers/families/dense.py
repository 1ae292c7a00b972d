"""Decoders whose layers are alike but for sliding windows: one kind of attention, one kind of MLP."""

from .family import END_ID, IMAGE_ID, PAD_ID, START_ID, VIDEO_ID, VOCAB_SIZE, Family
from .images import masked_pixels, molmo_crops, patches, pixels, renamed, square_patches, tiles, two_resolutions
from .settings import (
    MM_TYPES,
    QWEN_IMAGE_TOKENS,
    QWEN_TOKENS,
    SLIDING,
    mrope,
    qwen_patches,
    qwen_vision,
    since,
    text,
    vision,
)

# as it was before transformers 5.21
FUYU_PICTURES = "pixel_values" if since("5.21") else "image_patches"
VIDEO_LLAVA_PICTURES = "pixel_values" if since("5.21") else "pixel_values_images"


def glm4v(name: str, of: str | None = None, **settings) -> Family:
    """GLM-4V and its kin, with the parts of another one (`of`), and more settings of the text model."""
    of = of or name
    return Family(
        name,
        {
            "model_type": name,
            "text_config": text(
                f"{of}_text",
                num_attention_heads=2,
                num_key_value_heads=1,
                rope_parameters=mrope([2, 1, 1], partial_rotary_factor=0.5),
                **settings,
            ),
            "vision_config": qwen_vision(f"{of}_vision", image_size=16),
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
        published={"text_config": {"head_dim": 128, "rope_parameters": mrope([8, 12, 12], partial_rotary_factor=0.5)}},
    )


HUNYUAN_ROPE = {"rope_type": "dynamic", "rope_theta": 10_000.0, "alpha": 1000.0, "factor": 1.0}

DENSE = [
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
        published={"vision_config": {"hidden_size": 16, "model_args": {"embed_dim": 16}}},
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
    glm4v("glm4v"),
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
            published={"vision_config": {"model_type": "siglip_vision_model"}},
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
        "cosmos3_omni",
        {
            "model_type": "cosmos3_omni",
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
        "cosmos3_edge",
        {
            "model_type": "cosmos3_edge",
            "text_config": text("cosmos3_edge_text", head_dim=8, rope_parameters=mrope([2, 1, 1])),
            "vision_config": vision("cosmos3_edge_vision", num_patches=16),
            "projector_hidden_size": 32,
            **QWEN_TOKENS,
        },
        patches(16, 48, batched=False, image_grid_thw=[1, 4, 4]),
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
    ),
    Family(
        "deepseek_vl_hybrid",
        {
            "model_type": "deepseek_vl_hybrid",
            "text_config": text("llama"),
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "high_res_vision_config": vision(
                "sam_vision_model",
                image_size=32,
                output_channels=8,
                mlp_dim=32,
                window_size=4,
                global_attn_indexes=[0],
            ),
            "image_token_id": IMAGE_ID,
        },
        two_resolutions(8, 32),
    ),
    Family(
        "fuyu",
        {
            "model_type": "fuyu",
            # no tower: patches are projected; rotary embedding on half of each head
            "text_config": text("persimmon", head_dim=8, qk_layernorm=True),
            "hidden_size": 32,  # read before transformers 5.21
            "patch_size": 4,
            "image_token_id": IMAGE_ID,
        },
        renamed(FUYU_PICTURES, patches(4, 48, batched=True)),
        image_argument=FUYU_PICTURES,
    ),
    Family(
        "granite_docling",
        {
            "model_type": "granite_docling",
            "text_config": text(
                "granite_docling_text",
                embedding_multiplier=1.0,
                logits_scaling=1.0,
                attention_multiplier=0.35,
            ),
            "vision_config": vision(
                "granite_docling_vision",
                image_size=16,
                out_hidden_size=32,
                scale_factor=2,
                deepstack_visual_indexes=[0, 1],
            ),
            "image_token_id": IMAGE_ID,
            "pad_token_id": PAD_ID,
        },
        tiles(16),
        images_in_rows=True,
    ),
    Family(
        "hyperclovax_vision_v2",
        {
            "model_type": "hyperclovax_vision_v2",
            "text_config": text("hyperclovax", logits_scaling=1.0),
            "vision_config": qwen_vision("qwen2_5_vl_vision", window_size=16, fullatt_block_indexes=[1]),
            "image_token_id": IMAGE_ID,
            "video_token_id": VIDEO_ID,
        },
        qwen_patches,
    ),
    Family(
        "llava_next_video",
        {
            "model_type": "llava_next_video",
            "text_config": text("llama"),
            "vision_config": vision("clip_vision_model", projection_dim=16),
            "image_token_index": IMAGE_ID,
            "video_token_index": VIDEO_ID,
            "image_grid_pinpoints": [[8, 8]],
        },
        pixels(8, 2, image_sizes=[8, 8]),
        image_tokens=(IMAGE_ID,) * 10,
    ),
    Family(
        "video_llava",
        {
            "model_type": "video_llava",
            "text_config": text("llama"),
            "vision_config": vision("clip_vision_model", projection_dim=16),
            "image_token_index": IMAGE_ID,
            "video_token_index": VIDEO_ID,
        },
        renamed(VIDEO_LLAVA_PICTURES, pixels(8)),
        image_argument=VIDEO_LLAVA_PICTURES,
    ),
    Family(
        "pp_chart2table",
        {
            "model_type": "pp_chart2table",
            "text_config": text("qwen2"),
            "vision_config": vision(
                "pp_chart2table_vision",
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
        "qianfan_ocr",
        {
            "model_type": "qianfan_ocr",
            "text_config": text("qwen3", head_dim=16),
            "vision_config": vision("qianfan_ocr_vision", image_size=[16, 16], patch_size=[4, 4], drop_path_rate=0.0),
            "image_token_id": IMAGE_ID,
            "image_seq_length": 4,
        },
        pixels(16),
    ),
    Family(
        "shieldgemma2",
        {
            "model_type": "shieldgemma2",
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
        "video_llama_3",
        {
            "model_type": "video_llama_3",
            "text_config": text("qwen2"),
            "vision_config": vision("video_llama_3_vision"),
            "image_token_id": IMAGE_ID,
            "video_token_id": VIDEO_ID,
        },
        patches(16, 48, batched=False, image_grid_thw=[1, 4, 4], image_merge_sizes=2),
    ),
    glm4v("glm46v", of="glm4v"),
    glm4v("glmga", of="glm4v"),
    Family(
        "granite4_vision",
        {
            "model_type": "granite4_vision",
            "text_config": text("granite4_vision_text", attention_multiplier=0.35),
            # the query transformer in front has a head for each 64 values
            "vision_config": vision("clip_vision_model", hidden_size=64, image_size=16, projection_dim=16),
            "qformer_config": {
                "hidden_size": 64,
                "encoder_hidden_size": 64,
                "num_attention_heads": 1,
                "intermediate_size": 32,
                "initializer_range": 0.2,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-2, 0]],
            "spatial_target_layers": [0, 1, 1, 2],
            "projector_dropout": 0.0,
            "image_grid_pinpoints": [[16, 16]],
            "image_token_index": IMAGE_ID,
        },
        pixels(16, 2, image_sizes=[16, 16]),
        image_tokens=(IMAGE_ID,) * 10,
        published={"downsample_rate": "1/2", "deepstack_layer_map": [[-2, 0]]},
    ),
    Family(
        "cohere_compass",
        {
            "model_type": "cohere_compass",
            # M-RoPE on the sliding layers, none on the full ones
            "text_config": text(
                "cohere_compass_text",
                sliding_window=6,
                layer_types=SLIDING,
                logit_scale=1.0,
                rope_parameters={
                    "sliding_attention": mrope([2, 1, 1], mrope_interleaved=True),
                    "full_attention": None,
                },
            ),
            "vision_config": qwen_vision(
                "cohere_compass_vision", num_position_embeddings=16, deepstack_visual_indexes=[0, 1]
            ),
            **QWEN_TOKENS,
        },
        qwen_patches,
        image_tokens=QWEN_IMAGE_TOKENS,
        token_types=MM_TYPES,
        published={
            "text_config": {
                "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 10,
                "rope_parameters": {
                    "sliding_attention": mrope([24, 20, 20], mrope_interleaved=True),
                    "full_attention": None,
                },
            }
        },
    ),
    Family(
        "hunyuan_vl",
        {
            "model_type": "hunyuan_vl",
            "text_config": text(
                "hunyuan_vl_text",
                head_dim=16,
                rope_parameters=HUNYUAN_ROPE | {"alpha": 2.0, "mrope_section": [2, 2, 2, 2]},
            ),
            "vision_config": vision("hunyuan_vl_vision", max_image_size=16, out_hidden_size=32),
            "image_token_id": IMAGE_ID,
            "im_start_id": START_ID,
            "im_end_id": END_ID,
            "im_newline_id": 205,
        },
        patches(16, 48, batched=False, image_grid_thw=[1, 4, 4]),
        # two rows of two tokens and a new line, between a beginning and an end
        image_tokens=(START_ID, *(IMAGE_ID,) * 8, END_ID),
        token_types=MM_TYPES,
        published={
            "text_config": {
                "head_dim": 128,
                "rope_parameters": HUNYUAN_ROPE | {"mrope_section": [16, 16, 16, 16]},
            }
        },
    ),
    Family(
        "chameleon",
        {
            **text(
                "chameleon",
                vq_config={
                    "embed_dim": 4,
                    "num_embeddings": 16,
                    "latent_channels": 8,
                    "resolution": 8,
                    "base_channels": 32,
                    "channel_multiplier": [1, 1, 1],
                    "num_res_blocks": 1,
                },
                # pictures become tokens of the vocabulary; the names of these count in letters
                vocabulary_map={"<image>": IMAGE_ID}
                | {f"IMGIMG{''.join('ABCDEFGHIJ'[int(n)] for n in str(i))}Z": 220 + i for i in range(16)},
            )
        },
        pixels(8),
        published={"vocabulary_map": {"<image>": 8711}},
    ),
    Family(
        "emu3",
        {
            "model_type": "emu3",
            "text_config": text("emu3_text_model", attention_dropout=0.0),
            "vq_config": {
                "codebook_size": 16,
                "base_channels": 32,
                "channel_multiplier": [1, 1, 1],
                "num_res_blocks": 1,
                "hidden_size": 32,
                "attn_resolutions": [2],
            },
            # pictures become tokens of the vocabulary, and so do the ends of their lines
            "vocabulary_map": {"<image>": IMAGE_ID, "<|extra_200|>": 219}
            | {f"<|visual token {i:06}|>": 220 + i for i in range(16)},
        },
        pixels(8, image_sizes=[8, 8]),
        image_tokens=(IMAGE_ID,) * 6,  # two lines of two tokens and an end
        published={"vocabulary_map": {"<image>": 151851}},
    ),
    Family(
        "apertus1p5",
        {
            "model_type": "apertus1p5",
            "text_config": text("apertus1p5_text", max_position_embeddings=65_536),
            # pictures become tokens of the vocabulary
            "vision_config": {
                "codebook_size": 16,
                "embed_dim": 8,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1, 1],
                "num_res_blocks": 1,
                "attn_resolutions": [2],
                "resolution": 8,
            },
            "audio_config": {"codebook_size": 16},
            "image_token_id": IMAGE_ID,
            "audio_token_id": 202,
            "image_token_offset": 208,
            "audio_token_offset": 224,
        },
        pixels(8, image_sizes=[8, 8]),
    ),
]

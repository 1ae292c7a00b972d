"""The test entry of another VLM family: how to build a tiny one, and what one image looks like to it."""

from tests.helpers.families import FAMILIES, IMAGE_ID, VOCAB_SIZE, Family, pixels, text, vision

FAMILIES["my_family"] = Family(
    "my_family",
    {
        "model_type": "paligemma",
        "text_config": text("gemma", num_key_value_heads=2, head_dim=8),
        "vision_config": vision("siglip_vision_model", vision_use_head=False),
        "projection_dim": 32,
        "hidden_size": 32,
        "vocab_size": VOCAB_SIZE,
        "image_token_index": IMAGE_ID,
    },
    pixels(8),
    token_types={"token_type_ids": "suffix"},
)

"""Decoders that add positions to their tokens, learned or of sines: their keys hold no rotation."""

import torch
from torch import Tensor

from .family import IMAGE_ID, PAD_ID, VOCAB_SIZE, Family
from .images import pixels
from .settings import vision

_OPT = {
    "model_type": "opt",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "dropout": 0.0,
    "init_std": 0.2,
    "pad_token_id": PAD_ID,
}
_QFORMER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "encoder_hidden_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}
# What the Q-Former of InstructBLIP is told of each image
_INSTRUCTION = {"qformer_input_ids": [20, 21, 22], "qformer_attention_mask": [1, 1, 1]}


def _kosmos_text(model_type: str) -> dict:
    return {
        "model_type": model_type,
        "vocab_size": VOCAB_SIZE,
        "embed_dim": 32,
        "ffn_dim": 64,
        "layers": 3,
        "attention_heads": 4,
        "max_position_embeddings": 256,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "init_std": 0.2,
        "initializer_range": 0.2,
        "pad_token_id": PAD_ID,
    }


def flattened_patches(generator: torch.Generator) -> dict[str, Tensor]:
    """Kosmos-2.5: 4 patches of 48 values, with the row and the column of each in front."""
    values = torch.randn(1, 4, 48, generator=generator)
    return {"flattened_patches": torch.cat([torch.zeros(1, 4, 2), values], dim=-1)}


ABSOLUTE = [
    *(
        Family(
            name,
            {
                "model_type": name,
                "text_config": _OPT,
                "vision_config": vision(f"{name.replace('-', '_')}_vision_model"),
                "qformer_config": _QFORMER,
                "num_query_tokens": 4,
                "initializer_range": 0.2,
                **settings,
            },
            image,
            image_tokens=(IMAGE_ID,) * num_tokens,
            needs_an_image=True,
        )
        for name, settings, image, num_tokens in (
            ("blip-2", {"image_token_index": IMAGE_ID}, pixels(8), 4),
            ("instructblip", {"image_token_index": IMAGE_ID}, pixels(8, **_INSTRUCTION), 4),
            # an image is a video of two frames, of four tokens each
            ("instructblipvideo", {"video_token_index": IMAGE_ID}, pixels(8, 2, **_INSTRUCTION), 8),
        )
    ),
    Family(
        "kosmos-2",
        {
            "model_type": "kosmos-2",
            "text_config": _kosmos_text("kosmos_2_text_model"),
            "vision_config": vision("kosmos_2_vision_model"),
            "latent_query_num": 4,
            "initializer_range": 0.2,
        },
        pixels(8),
        token_types={"image_embeds_position_mask": "image"},
        needs_an_image=True,
    ),
    Family(
        "kosmos-2.5",
        {
            "model_type": "kosmos-2.5",
            "text_config": _kosmos_text("kosmos_2_5_text_model"),
            "vision_config": vision(
                "kosmos_2_5_vision_model", patch_embed_hidden_size=48, head_dim=8, max_num_patches=4
            ),
            "latent_query_num": 4,
            "initializer_range": 0.2,
        },
        flattened_patches,
        token_types={"image_embeds_position_mask": "image"},
        image_argument="flattened_patches",
    ),
]

"""Tiny random vision-language models, one entry per family, and examples of the inputs that each family takes.

No test needs a network: every model is built from its config alone, in a fraction of a second. A `Family` says how to
build the model and how one image reaches it; the functions beside it make examples and batches from that:

    family = FAMILIES["qwen3_vl"]
    model = build_model(family)
    batch = collate(family, [make_example(family, num_images=2), make_example(family, num_images=1, text_length=3)])
    mask = batch.pop("expert_attention_mask")  # for the action expert; the VLM has no such argument
    logits = model(**batch).logits

The families are in one file for each kind of decoder: `dense`, `mixtures`, `hybrids`, `per_layer`, `absolute`, `omni`.
"""

from .family import (
    AUDIO_ID,
    END_ID,
    IMAGE_ID,
    PAD_ID,
    PER_TOKEN_PADDING,
    START_ID,
    TEXT_IDS,
    VIDEO_ID,
    VOCAB_SIZE,
    Family,
    build_model,
    collate,
    drop_suffix,
    make_example,
    randomize_zero_parameters,
    split_images,
)
from .images import TinyMapTower, TinyTokenTower, patches, pixels
from .lanes import FAST, each_family
from .refused import REFUSED, Refused
from .settings import text, vision
from .table import FAMILIES

__all__ = [
    "AUDIO_ID",
    "END_ID",
    "FAMILIES",
    "FAST",
    "IMAGE_ID",
    "PAD_ID",
    "PER_TOKEN_PADDING",
    "REFUSED",
    "START_ID",
    "TEXT_IDS",
    "VIDEO_ID",
    "VOCAB_SIZE",
    "Family",
    "Refused",
    "TinyMapTower",
    "TinyTokenTower",
    "build_model",
    "collate",
    "drop_suffix",
    "each_family",
    "make_example",
    "patches",
    "pixels",
    "randomize_zero_parameters",
    "split_images",
    "text",
    "vision",
]

"""Rows of the contract that a family's own code in transformers does not hold, and why.

`each_family` expects them to fail. Once the library is mended that is a failure: take the entry off the list.
"""

from .settings import since

_NEEDS_AN_IMAGE = "it does not run on text alone (`Family.needs_an_image`)"
_NUMBERED = "it numbers images through the whole batch, so their positions depend on the examples before"
_BLOCKS = "its sparse layers count places in the sequence, padding included, and choose blocks of these"
_TOKENS = "pictures become tokens of the vocabulary: there is no projector"

# name of the test: family: reason
BROKEN: dict[str, dict[str, str]] = {
    "test_an_example_gives_the_same_logits_alone_and_in_a_padded_batch": {
        "emu3": "while it trains, its picture tokenizer normalises by the batch",
        "hunyuan_vl": _NUMBERED,
        "minimax_m3_vl": _BLOCKS,
    },
    "test_alone_equals_in_a_batch_padded_right": {"hunyuan_vl": _NUMBERED},
    "test_alone_equals_in_a_batch_padded_left": {"hunyuan_vl": _NUMBERED, "minimax_m3_vl": _BLOCKS},
    "test_from_vlm_keeps_the_pretrained_weights": {
        "shieldgemma2": "it is saved under names that are not looked for when it is loaded",
    },
    "test_probed_rotary_embedding_is_the_backbones": {
        "minimax_m3_vl": "a position beyond the length of the sequence is out of bounds in its sparse layers",
    },
    "test_every_family_has_a_projector_and_it_is_no_part_of_the_text_model": {
        "apertus1p5": _TOKENS,
        "chameleon": _TOKENS,
        "emu3": _TOKENS,
        "inkling_mm_model": "its tower ends at the width of the text model: there is no projector",
    },
    "test_every_family_learns_through_lora": dict.fromkeys(
        ("muse_glimmer", "muse_spark", "inkling_mm_model", "inkling2", "inkling2_loop"),
        "peft leaves out the norm of its embedding",
    ),
    "test_no_family_looks_ahead": dict.fromkeys(
        ("blip-2", "instructblip", "instructblipvideo", "kosmos-2"), _NEEDS_AN_IMAGE
    ),
}
if not since("5.18"):  # the trainer refuses it
    BROKEN["test_a_step_in_mixed_precision"] = {"smolvlm": "it writes bfloat16 pictures into float32 embeddings"}

# Families that cannot learn brand-new tokens; action tokens are written over existing ones (placement "tail").
WITHOUT_NEW_TOKENS = {
    "gemma3n": "every id above those of text belongs to images and sound: action tokens take the last ids of text",
    **dict.fromkeys(
        ("inkling2", "inkling2_loop"),
        "the last rows of its output layer are never said: action tokens take the last ids of text",
    ),
}

"""A small PaliGemma made from a config, with an untrained tokenizer: for demonstrations where no Hub can be reached.

It is an ordinary VLM folder: `from_vlm` reads it as it reads `google/paligemma2-3b-pt-224`.
"""

import os

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)


def save_tiny_vlm(
    folder: str | os.PathLike,
    image_size: int = 96,
    patch_size: int = 24,
    hidden_size: int = 128,
    num_layers: int = 4,
    seed: int = 0,
) -> None:
    """Write a PaliGemma of about 1.6M parameters with random weights, and its processor, into `folder`.

    Args:
        image_size, patch_size: pixels; an image takes `(image_size / patch_size)²` tokens.
        hidden_size: width of the text model; the vision tower has the same.
        num_layers: of the text model; the vision tower has half as many.
        seed: of the weights.
    """
    tokens_per_image = (image_size // patch_size) ** 2
    tokenizer = byte_tokenizer()
    image_processor = SiglipImageProcessorPil(size={"height": image_size, "width": image_size})
    image_processor.image_seq_length = tokens_per_image
    processor = PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)
    shared = {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "initializer_range": hidden_size**-0.5}
    config = PaliGemmaConfig(
        text_config={
            "model_type": "gemma",
            "vocab_size": len(tokenizer),
            "num_hidden_layers": num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": hidden_size // 4,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **shared,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "num_hidden_layers": num_layers // 2,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": patch_size,
            "vision_use_head": False,
            **shared,
        },
        projection_dim=hidden_size,
        image_token_id=processor.image_token_id,
    )
    torch.manual_seed(seed)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are single bytes, so that it can write any text and needs no training."""
    specials = ["<pad>", "<bos>", "<eos>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="right"
    )

"""Small VLMs from a config: real Hugging Face classes with processor and tokenizer, for where no Hub can be reached.

Each is an ordinary VLM folder: `from_vlm` reads it as it reads `google/paligemma2-3b-pt-224`.

Initialisers are made for wide models. At these widths the weights need a standard deviation near `1 / sqrt(width)`, and
the position embedding of the vision tower sines and cosines of ordinary size, or places are never learned.
"""

import math
import os
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaConfig,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SiglipImageProcessorPil,
)

BASIC_TOKENS = ("<pad>", "<bos>", "<eos>")
CHAT_TOKENS = ("<image>", "<user>", "<assistant>")
IDEFICS3_TOKENS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
# `{% generation %}` marks what the assistant says, for `return_assistant_tokens_mask`
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}<image>{% endif %}{% endfor %}<user>"
    "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}"
    "{% else %}<assistant>{% generation %}{% for item in message['content'] %}{{ item['text'] }}{% endfor %}"
    "{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tiny_vlm(
    architecture: str,
    tokenizer: PreTrainedTokenizerFast,
    image_size: int = 48,
    patch_size: int = 8,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_vision_layers: int = 3,
    seed: int = 0,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A small VLM with random weights, and its processor.

    Args:
        architecture: of `ARCHITECTURES`: "llava" (SigLIP and Llama), "idefics3" (SmolVLM's first class) or "paligemma"
            (SigLIP and Gemma; it has no chat template).
        tokenizer: from `byte_tokenizer` or `train_tokenizer`.
        image_size, patch_size: pixels; an image takes `(image_size / patch_size)²` tokens.
        hidden_size: width of the text model and of the vision tower, a multiple of 16.
        num_layers, num_vision_layers: of the text model and of the vision tower.
        seed: of the weights.

    Raises:
        ValueError: an unknown architecture, or patches that do not fill the image.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"There is no architecture {architecture!r}. Architectures: {', '.join(ARCHITECTURES)}.")
    if image_size % patch_size or hidden_size % 16:
        raise ValueError(
            f"Got image_size={image_size}, patch_size={patch_size}, hidden_size={hidden_size}: patches must fill the "
            "image, and hidden_size must be a multiple of 16."
        )
    # The sizes of a decoder and of a vision tower, in the words that all configs share.
    text = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": num_layers,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden_size // 4,
        "initializer_range": hidden_size**-0.5,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "num_hidden_layers": num_vision_layers,
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
        "initializer_range": hidden_size**-0.5,
    }
    # Random weights, but for the places of patches: so small a tower does not find out by itself what is where.
    config, processor = ARCHITECTURES[architecture](tokenizer, text, vision)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    (positions,) = [p for name, p in model.named_parameters() if name.endswith("position_embedding.weight")]
    with torch.no_grad():
        positions.copy_(sincos_positions(math.isqrt(len(positions)), hidden_size))
    return model, processor


def sincos_positions(grid: int, width: int) -> torch.Tensor:
    """(grid², width): sines and cosines of column and row, rows first; the slowest wave turns by 2 % in a cell."""
    frequencies = math.pi / 2 * 100 ** -(torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def _llava(tokenizer, text: dict, vision: dict) -> tuple[PreTrainedConfig, ProcessorMixin]:
    side = vision["image_size"]
    processor = LlavaProcessor(
        image_processor=_square_images(side),
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaConfig(
        text_config={"model_type": "llama", **text},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=(side // vision["patch_size"]) ** 2,
    )
    return config, processor


def _idefics3(tokenizer, text: dict, vision: dict) -> tuple[PreTrainedConfig, ProcessorMixin]:
    """Two by two patches are joined to one token, so patches have half the size."""
    side, patch_size = vision["image_size"], vision["patch_size"] // 2
    tokenizer.add_special_tokens({"extra_special_tokens": list(IDEFICS3_TOKENS)})
    longest = {"longest_edge": side}
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(size=longest, max_image_size=longest, do_image_splitting=False),
        tokenizer=tokenizer,
        image_seq_len=(side // patch_size // 2) ** 2,
        chat_template=CHAT_TEMPLATE,
    )
    config = Idefics3Config(
        text_config={"model_type": "llama", **text, "vocab_size": len(tokenizer)},
        vision_config={**vision, "patch_size": patch_size},
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return config, processor


def _paligemma(tokenizer, text: dict, vision: dict) -> tuple[PreTrainedConfig, ProcessorMixin]:
    image_processor = _square_images(vision["image_size"])
    image_processor.image_seq_length = (vision["image_size"] // vision["patch_size"]) ** 2
    processor = PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **text, "vocab_size": len(tokenizer)},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
        projection_dim=text["hidden_size"],
        image_token_id=processor.image_token_id,
    )
    return config, processor


ARCHITECTURES = {"llava": _llava, "idefics3": _idefics3, "paligemma": _paligemma}


def _square_images(side: int) -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(size={"height": side, "width": side})


def save_tiny_vlm(
    folder: str | os.PathLike,
    image_size: int = 96,
    patch_size: int = 24,
    hidden_size: int = 128,
    num_layers: int = 4,
    seed: int = 0,
) -> None:
    """Write an untrained PaliGemma with a tokenizer of bytes into `folder`, see `make_tiny_vlm`."""
    model, processor = make_tiny_vlm(
        "paligemma", byte_tokenizer(), image_size, patch_size, hidden_size, num_layers, num_layers // 2, seed
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are single bytes, so that it can write any text and needs no training."""
    return _byte_level_tokenizer([], 0, BASIC_TOKENS)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that knows the words of `texts`, and can write any other text in pieces.

    Args:
        vocab_size: at most so many tokens; fewer if all words of the texts are known before.
    """
    return _byte_level_tokenizer(texts, vocab_size, (*BASIC_TOKENS, *CHAT_TOKENS))


def _byte_level_tokenizer(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str]):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special_tokens), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = {"image_token": "<image>"} if "<image>" in special_tokens else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=names,
        padding_side="right",
    )

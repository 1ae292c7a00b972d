"""A language model with its tokenizer, and a vision tower with its image processor, from the Hub or a folder."""

from importlib.util import find_spec
from typing import NamedTuple

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

LLAVA_FEATURE_LAYER = -2  # of the tower's hidden states, those that LLaVA takes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class VisionTower(NamedTuple):
    """`feature_layer` is which of the tower's hidden states the language model gets."""

    model: PreTrainedModel
    image_processor: BaseImageProcessor
    feature_layer: int


def load_text_model(
    name: str, gguf_file: str | None = None, dtype: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    Args:
        name: Hub id or folder.
        gguf_file: the weights' file in it, if they are GGUF; they are dequantised.
        dtype: of the weights: "float32", "bfloat16" or "float16"; "auto" is what they are stored in, of GGUF float32.

    Raises:
        ValueError: it is a VLM already; it is quantised and no GGUF; weights are missing or stay packed; no `gguf`.
    """
    if gguf_file is not None and find_spec("gguf") is None:
        raise ValueError(f"{gguf_file} is read with the package gguf. Install the extra: pip install 'kivla[gguf]'")
    tokenizer = AutoTokenizer.from_pretrained(name, gguf_file=gguf_file)
    config = AutoConfig.from_pretrained(name, gguf_file=gguf_file)
    if config.get_text_config() is not config:
        raise ValueError(f"{name} ({config.model_type}) is more than a language model. Give a causal language model.")
    if gguf_file is None and getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"The weights of {name} are quantised. Give the language model before quantisation, or GGUF.")
    is_gguf = gguf_file is not None
    model, found = AutoModelForCausalLM.from_pretrained(
        name, gguf_file=gguf_file, dtype=torch.float32 if is_gguf else dtype, output_loading_info=True
    )
    if found["missing_keys"]:
        raise ValueError(
            f"{gguf_file or name} lacks weights of {type(model).__name__}: {sorted(found['missing_keys'])}."
        )
    if not all(weight.is_floating_point() for weight in model.state_dict().values()):
        raise ValueError(f"transformers left the weights of {gguf_file} packed. It unpacks them without `kernels`.")
    return model if dtype == "auto" else model.to(DTYPES[dtype]), tokenizer


def load_vision_tower(name: str, dtype: str = "auto", feature_layer: int | None = None) -> VisionTower:
    """The vision tower of a CLIP, SigLIP, DINOv2, ViT, ... or of a VLM.

    Args:
        name: Hub id or folder.
        dtype: of the weights; "auto" is what they are stored in.
        feature_layer: of the hidden states; by default the one that the VLM takes, and of other towers LLaVA's,
            the last but one.
    """
    config = AutoConfig.from_pretrained(name)
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        tower = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype).get_encoder("image")
        default = getattr(config, "vision_feature_layer", -1)
    else:
        config = getattr(config, "vision_config", config)
        tower = MODEL_MAPPING[type(config)].from_pretrained(name, config=config, dtype=dtype)
        default = LLAVA_FEATURE_LAYER
    processor = AutoImageProcessor.from_pretrained(name)
    return VisionTower(tower, processor, default if feature_layer is None else feature_layer)

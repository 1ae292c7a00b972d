"""A LLaVA of a pretrained language model and a pretrained vision tower. Its projector is new, and is to be trained."""

import copy

import numpy as np
import torch
from transformers import (
    AddedToken,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .pretrained_parts import VisionTower

IMAGE_TOKEN = "<image>"
# In front of a language model's chat template: content may be a list with images, as VLMs have it
CONTENT_LISTS = (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string or message['content'] is none -%}"
    "{%- set flat.messages = flat.messages + [message] -%}"
    "{%- else -%}"
    "{%- set words = namespace(text='') -%}"
    "{%- for item in message['content'] -%}"
    "{%- set words.text = words.text + ('<image>' if item['type'] == 'image' else item['text']) -%}"
    "{%- endfor -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=words.text)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
NUM_PICTURES = 8  # of noise, to bring the projector to scale


def assemble_vlm(
    text_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tower: VisionTower,
    chat_template: str | None = None,
    seed: int = 0,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Put a projector between a vision tower and a language model, and images into its tokenizer and chats.

    The logits of a text stay what they were. `<image>` gets a row of the embedding where none is free: the mean of
    the others, which can cost a text at most 1 / vocabulary size nats a token.

    Args:
        text_model, tokenizer, tower: of `load_text_model` and `load_vision_tower`. They become part of the VLM.
        chat_template: in place of the tokenizer's own; where neither has one, the VLM has none.
        seed: of the projector's weights.

    Raises:
        ValueError: a language model or a tower that LLaVA's class does not take, naming why.
    """
    # The two halves in LLaVA's class, without a copy of their weights.
    vocab_size = text_model.get_input_embeddings().num_embeddings
    before = _text_logits(text_model, tokenizer)
    strategy, features = _features(tower)
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
    text_config = copy.deepcopy(text_model.config)
    if hasattr(text_config, "quantization_config"):  # of GGUF: the weights are dense by now
        del text_config.quantization_config
    config = LlavaConfig(
        text_config=text_config,
        vision_config=tower.model.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=features.shape[1],
        vision_feature_layer=tower.feature_layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    with torch.device("meta"):
        vlm = LlavaForConditionalGeneration(config)
    _check_same_class("text_model", vlm.model.language_model, text_model.base_model)
    _check_same_class("vision_tower", vlm.model.vision_tower, tower.model)
    vlm.model.language_model, vlm.model.vision_tower = text_model.base_model, tower.model.to(text_model.dtype)
    vlm.lm_head = text_model.get_output_embeddings()
    vlm.tie_weights()
    vlm.generation_config = text_model.generation_config
    # What is new: a row for <image>, and the projector.
    if len(tokenizer) > vocab_size:
        vlm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for layer in (vlm.get_input_embeddings(), vlm.get_output_embeddings()):
            layer.weight.data[vocab_size:] = layer.weight.data[:vocab_size].float().mean(0).to(layer.weight.dtype)
    vlm.model.multi_modal_projector = _new_projector(vlm, features, seed)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    after = _text_logits(vlm, tokenizer)[..., :vocab_size]
    if vlm.lm_head.bias is not None or not torch.allclose(before, after, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"{type(text_model).__name__} does more to its logits than one matrix (a bias, a scale, a soft cap). "
            "LLaVA's class would leave it out. Give a language model without, such as Llama, Qwen or Mistral."
        )
    template = chat_template or tokenizer.chat_template
    processor = LlavaProcessor(
        image_processor=tower.image_processor,
        tokenizer=tokenizer,
        patch_size=tower.model.config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if strategy == "default" else 0,
        chat_template=template and CONTENT_LISTS + template,
    )
    return vlm.eval(), processor


@torch.no_grad()
def _text_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """(1, S, V): of a sentence."""
    ids = tokenizer("A robot picks up a cup and puts it on the table.", return_tensors="pt")["input_ids"]
    return model.eval()(input_ids=ids).logits.float()


@torch.no_grad()
def _features(tower: VisionTower) -> tuple[str, torch.Tensor]:
    """Which of the tower's features LLaVA shall take, "full" or "default" (all but the first), and those of noise."""
    model, name = tower.model, type(tower.model).__name__
    patch_size = getattr(model.config, "patch_size", None)
    if not isinstance(patch_size, int):
        raise ValueError(f"{name} has no square patches. LLaVA's class takes towers like SigLIP, CLIP, DINOv2 and ViT.")
    noise = np.random.default_rng(0).integers(0, 256, size=(NUM_PICTURES, 224, 224, 3), dtype=np.uint8)
    pixels = tower.image_processor(list(noise), return_tensors="pt")["pixel_values"].to(model.dtype)
    features = model.eval()(pixels, output_hidden_states=True).hidden_states[tower.feature_layer]
    height, width = pixels.shape[-2:]
    patches = (height // patch_size) * (width // patch_size)
    if features.ndim != 3 or features.shape[1] - patches not in (0, 1):
        raise ValueError(
            f"{name} makes features of shape {tuple(features.shape[1:])} of {patches} patches. LLaVA's class takes one "
            "of each patch, and at most one more (a class token): towers like SigLIP, CLIP, DINOv2 and ViT."
        )
    return ("full", features) if features.shape[1] == patches else ("default", features[:, 1:])


def _check_same_class(option: str, expected: torch.nn.Module, given: torch.nn.Module) -> None:
    if type(expected) is not type(given):
        raise ValueError(
            f"--{option} is a {type(given).__name__}, and LLaVA's class would load it as {type(expected).__name__}."
        )


@torch.no_grad()
def _new_projector(vlm: LlavaForConditionalGeneration, features: torch.Tensor, seed: int) -> torch.nn.Module:
    """Random weights, so scaled that projected features are as large as the embeddings of words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = type(vlm.model.multi_modal_projector)(vlm.config)
    for layer in (projector.linear_1, projector.linear_2):
        layer.bias.zero_()
    words = vlm.get_input_embeddings().weight.float()
    found = projector(features.float())
    projector.linear_2.weight *= words.pow(2).mean().sqrt() / found.pow(2).mean().sqrt()
    return projector.to(vlm.dtype)

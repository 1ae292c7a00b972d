"""A tiny VLM and its inputs: `Family` says how to build the one and what an image is to it, functions make the others.

All models share one vocabulary: 0 is padding, `TEXT_IDS` are ordinary words, and the ids from 200 up are special.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

PAD_ID = 0
TEXT_IDS = range(10, 200)
IMAGE_ID, VIDEO_ID, AUDIO_ID, START_ID, END_ID = 200, 201, 202, 203, 204
VOCAB_SIZE = 256

PER_TOKEN_PADDING = {
    "input_ids": PAD_ID,
    "labels": -100,
    "expert_attention_mask": False,
    "attention_mask": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "moe_mm_token_type_ids": 0,
    "image_embeds_position_mask": 0,
}


@dataclass(frozen=True)
class Family:
    """How to build one tiny VLM, and what one image looks like to it.

    Attributes:
        name: key of the family in `FAMILIES`.
        settings: arguments of `AutoConfig.for_model`, with `model_type` among them.
        image_tokens: the ids that one image takes in `input_ids`.
        image_tensors: draws the tensors of one image; those of several images are joined along the first dimension.
        images_in_rows: image tensors are `(batch, images, ...)`, short rows padded with zeros, instead of one flat
            list of all the images in the batch.
        token_types: the per-token arguments that the family needs, and which tokens are 1 there: "image" or "suffix".
        joined_along: the dimension along which image tensors of a name are joined, where it is not the first.
        image_argument: the name under which the VLM takes pictures.
        needs_an_image: the VLM does not run on text alone.
        published: settings of the released models where the defaults of the configuration are no model.
    """

    name: str
    settings: dict[str, Any]
    image_tensors: Callable[[torch.Generator], dict[str, Tensor]]
    image_tokens: tuple[int, ...] = (IMAGE_ID,) * 4
    images_in_rows: bool = False
    token_types: dict[str, str] = field(default_factory=dict)
    joined_along: dict[str, int] = field(default_factory=dict)
    image_argument: str = "pixel_values"
    needs_an_image: bool = False
    published: dict[str, Any] = field(default_factory=dict)

    def config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(**self.settings)

    def published_config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(self.settings["model_type"], **self.published)


def build_model(family: Family, seed: int = 0, **kwargs) -> PreTrainedModel:
    """The family's VLM with random weights, in eval mode. `kwargs` go to `from_config`."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(family.config(), **kwargs)
    randomize_zero_parameters(model)
    return model.eval()


@torch.no_grad()
def randomize_zero_parameters(model: nn.Module, std: float = 0.1, seed: int = 0) -> None:
    """Redraw in place the weights that are zero everywhere, such as Gemma 3's projector: they hide their inputs.

    Biases and other vectors are left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def make_example(
    family: Family, num_images: int = 1, text_length: int = 6, suffix_length: int = 5, seed: int = 0
) -> dict[str, Tensor]:
    """One example without padding, batch dimension 1, S tokens: the images', then a prompt, then a suffix to learn.

    `labels` is -100 before the suffix and equal to `input_ids` on it (the model shifts them, as everywhere in
    transformers). `expert_attention_mask` is True before the suffix. All per-token tensors are (1, S).
    """
    generator = torch.Generator().manual_seed(seed)
    image_tokens = torch.tensor(family.image_tokens * num_images, dtype=torch.long)
    text = torch.randint(TEXT_IDS.start, TEXT_IDS.stop, (text_length + suffix_length,), generator=generator)
    input_ids = torch.cat([image_tokens, text])[None]  # (1, S)
    in_suffix = torch.arange(input_ids.shape[1])[None] >= input_ids.shape[1] - suffix_length
    example = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": input_ids.masked_fill(~in_suffix, -100),
        "expert_attention_mask": ~in_suffix,
    }
    for argument, marked in family.token_types.items():
        example[argument] = (in_suffix if marked == "suffix" else input_ids == IMAGE_ID).long()
    images = _join_images(family, [family.image_tensors(generator) for _ in range(num_images)])
    return example | {name: tensor[None] if family.images_in_rows else tensor for name, tensor in images.items()}


def drop_suffix(example: dict[str, Tensor]) -> dict[str, Tensor]:
    """The example as it is at inference: the suffix cut off, no labels. For one example without padding."""
    prefix_length = int(example["expert_attention_mask"].sum())
    cut = {name: tensor[:, :prefix_length] if name in PER_TOKEN_PADDING else tensor for name, tensor in example.items()}
    del cut["labels"]
    return cut


def collate(family: Family, examples: list[dict[str, Tensor]], padding_side: str = "right") -> dict[str, Tensor]:
    """One batch of all the examples, their per-token tensors padded to the longest one on `padding_side`."""
    batch = {}
    length = max(example["input_ids"].shape[1] for example in examples)
    for name in PER_TOKEN_PADDING.keys() & examples[0].keys():
        rows = [_pad(example[name], 1, length, PER_TOKEN_PADDING[name], padding_side) for example in examples]
        batch[name] = torch.cat(rows)
    images = [{name: example[name] for name in example.keys() - PER_TOKEN_PADDING.keys()} for example in examples]
    return batch | (_stack_rows(images) if family.images_in_rows else _join_images(family, images))


def split_images(family: Family, tensor: Tensor, name: str, num_images: int) -> tuple[Tensor, ...]:
    """A tensor of one example's images, by image."""
    if family.images_in_rows:
        return tensor.split(tensor.shape[1] // num_images, dim=1)
    return tensor.chunk(num_images, dim=family.joined_along.get(name, 0))


def _join_images(family: Family, images: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Image tensors of several images, or several examples, one after the other."""
    images = [image for image in images if image]
    joined = {}
    for name in images[0] if images else ():
        joined[name] = torch.cat([image[name] for image in images], dim=family.joined_along.get(name, 0))
    if "image_token_pooling" in joined:  # indices into the patches of all the images together
        num_patches = [image["pixel_values"].shape[:2].numel() for image in images]
        num_tokens = [len(image["image_token_pooling"]) for image in images]
        first_patch = torch.tensor([0, *num_patches[:-1]]).cumsum(0)
        joined["image_token_pooling"] += first_patch.repeat_interleave(torch.tensor(num_tokens))[:, None]
    return joined


def _stack_rows(images: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Image tensors (1, images, ...) of every example, as (batch, images, ...), zeros where an example has fewer."""
    present = next((image for image in images if image), {})
    stacked = {}
    for name, tensor in present.items():
        rows = [image.get(name, tensor[:, :0]) for image in images]
        num_images = max(row.shape[1] for row in rows)
        stacked[name] = torch.cat([_pad(row, 1, num_images, 0, "right") for row in rows])
    return stacked


def _pad(tensor: Tensor, dim: int, size: int, value: float, side: str) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = size - tensor.shape[dim]
    padding = torch.full(shape, value, dtype=tensor.dtype)
    return torch.cat([tensor, padding] if side == "right" else [padding, tensor], dim=dim)

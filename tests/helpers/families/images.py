"""What one image looks like: functions that draw its tensors, or that return such a function; and towers that stand in
for those that need other libraries.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nVisionConfig
from transformers.models.timm_wrapper.configuration_timm_wrapper import TimmWrapperConfig


def pixels(size: int, *leading: int, **constants: list) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """`pixel_values` (1, *leading, 3, size, size), and constant integer tensors with a leading dimension of 1."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        image = {"pixel_values": torch.randn(1, *leading, 3, size, size, generator=generator)}
        return image | {name: torch.tensor([value]) for name, value in constants.items()}

    return draw


def renamed(argument: str, draw: Callable[[torch.Generator], dict[str, Tensor]]) -> Callable:
    """What a function draws, with `pixel_values` under another name."""
    return lambda generator: {argument if n == "pixel_values" else n: values for n, values in draw(generator).items()}


def patches(count: int, dim: int, batched: bool, **constants: list) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """`pixel_values` (count, dim), or (1, count, dim) if `batched`, and constants as in `pixels`."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        values = torch.rand(count, dim, generator=generator) * 2 - 1
        image = {"pixel_values": values[None] if batched else values}
        return image | {name: torch.tensor([value]) for name, value in constants.items()}

    return draw


def masked_pixels(size: int) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """Idefics: pixels and which of them are real."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        return pixels(size)(generator) | {"pixel_attention_mask": torch.ones(1, size, size, dtype=torch.bool)}

    return draw


def square_patches(generator: torch.Generator) -> dict[str, Tensor]:
    """PaddleOCR-VL, Kimi: 4x4 patches of (3, 4, 4) pixels, merged 2x2 to 4 tokens."""
    return {
        "pixel_values": torch.randn(16, 3, 4, 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def molmo_crops(generator: torch.Generator) -> dict[str, Tensor]:
    """Molmo 2: one low-resolution and one high-resolution crop of 4x4 patches, pooled 2x2 to 4 tokens each."""
    corner = torch.tensor([0, 1, 4, 5])
    pooling = torch.stack(
        [crop * 16 + row * 8 + column * 2 + corner for crop in (0, 1) for row in (0, 1) for column in (0, 1)]
    )
    return {
        "pixel_values": torch.randn(2, 16, 3 * 4 * 4, generator=generator),
        "image_token_pooling": pooling,  # (8, 4): the patches under each token
        "image_grids": torch.tensor([[2, 2, 2, 2]]),
        "image_num_crops": torch.tensor([2]),
    }


def gemma_patches(generator: torch.Generator) -> dict[str, Tensor]:
    """Gemma 4: 6x6 patches with their (x, y) positions, pooled 3x3 to 4 tokens."""
    y, x = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    return {
        "pixel_values": torch.rand(1, 36, 3 * 4 * 4, generator=generator),
        "image_position_ids": torch.stack([x, y], dim=-1).reshape(1, 36, 2),
    }


def two_resolutions(size: int, large: int) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """DeepSeek-VL hybrid: one image for each of its two towers."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        high = pixels(large)(generator)["pixel_values"]
        low = nn.functional.interpolate(high, size=(size, size))
        return {"pixel_values": low, "high_res_pixel_values": high}

    return draw


def tiles(size: int) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """Granite Docling: pixels of a tile, and that it is real."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        return pixels(size)(generator) | {"pixel_attention_mask": torch.ones(1, dtype=torch.bool)}

    return draw


def strip(side: int) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """MiniCPM: the patches (4x4 pixels) of a square image in one strip, and how many there are on each side."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        values = torch.randn(1, 3, 4, 4 * side * side, generator=generator)
        return {"pixel_values": values, "target_sizes": torch.tensor([[side, side]], dtype=torch.int32)}

    return draw


def folded_patches(*sizes: int, **constants: list) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """Inkling: 4 patches, a token each, of 3 colours last: (4, *sizes, last size, 3); constants as in `pixels`."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        values = torch.randn(4, *sizes, sizes[-1], 3, generator=generator)
        return {"pixel_values": values} | {name: torch.tensor([value]) for name, value in constants.items()}

    return draw


def merged_patches(generator: torch.Generator) -> dict[str, Tensor]:
    """Gemma 4 without a tower: 2x2 patches of 12x12 pixels with their (x, y) positions, a token each."""
    positions = torch.tensor([[[0, 0], [1, 0], [0, 1], [1, 1]]])
    return {"pixel_values": torch.rand(1, 4, 3 * 12 * 12, generator=generator), "image_position_ids": positions}


class TinyMapTower(PreTrainedModel):
    """Stands in for `timm` vision towers, which need torchvision: one convolution, giving a map (N, C, H, W)."""

    config_class = Gemma3nVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.conv = nn.Conv2d(3, config.hidden_size, kernel_size=4, stride=4)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.conv(pixel_values))


class TinyTokenTower(TinyMapTower):
    """The same, giving tokens (N, H * W, C)."""

    config_class = TimmWrapperConfig

    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.conv(pixel_values).flatten(2).transpose(1, 2))


# `AutoModel.register` would do, were it not that some releases pass over configurations of transformers itself
AutoModel._model_mapping._extra_content |= {
    Gemma3nVisionConfig: TinyMapTower,
    TimmWrapperConfig: TinyTokenTower,
}

"""Images as people have them -> RGB."""

import os

import numpy as np
from PIL import Image, ImageOps
from transformers.image_utils import load_image


def as_rgb(image) -> Image.Image:
    """A path, a URL, a PIL image of 8 bits a channel, or an array or tensor (H, W, 3) or (3, H, W), as RGB.

    Arrays are uint8, or floats in [0, 1]. Greyscale and RGBA files and PIL images are converted, such arrays refused:
    nobody has said what their channels mean.

    Raises:
        ValueError: another shape, another type, or values outside [0, 1].
    """
    if isinstance(image, str | os.PathLike):
        image = load_image(str(image))
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"an image has mode {image.mode!r} (depth?), but 8 bits a channel are expected.")
        return image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] != 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(
            f"an image must be (height, width, 3) or (3, height, width), got {pixels.shape}. Repeat a grey channel "
            "three times; leave out alpha and depth."
        )
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 1):  # true for NaN, too
            raise ValueError(
                f"an image of floats must lie in [0, 1], got {low} to {high}. Pass uint8, or divide by 255."
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"an image must be uint8, or floats in [0, 1], got {pixels.dtype}.")
    return Image.fromarray(np.ascontiguousarray(pixels))


def pad_to_square(image: Image.Image) -> Image.Image:
    """The image in the middle of a black square (openpi's and LeRobot's `resize_with_pad`, before any resizing)."""
    side = max(image.size)
    return ImageOps.pad(image, (side, side))

"""Images as people have them -> RGB."""

import io
import os
import struct
import warnings

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.image_utils import load_image

# Without those that run programs (EPS) or read other files
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
MAX_PIXELS = 64_000_000
# What Pillow raises for damaged files, depending on where the damage is
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, OverflowError, struct.error)


def open_image(data: bytes) -> Image.Image:
    """Decode an image file that a stranger may have written.

    Raises:
        ValueError: damaged, larger than `MAX_PIXELS` (before it is decoded), or none of PNG, JPEG, WebP, TIFF and BMP.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height <= MAX_PIXELS:
            image.load()
            return _upright(image)
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(
            f"it is damaged, or none of {', '.join(_FORMATS)} ({type(error).__name__}: {error})"
        ) from error
    raise ValueError(f"it has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are decoded")


def as_rgb(image) -> Image.Image:
    """A path, a URL, a PIL image of 8 bits a channel, or an array or tensor (H, W, 3) or (3, H, W), as RGB.

    Arrays are uint8, or floats in [0, 1], but for rounding. Greyscale and RGBA files and PIL images are converted, such
    arrays refused: nobody has said what their channels mean. Photos are turned upright, as their EXIF data says.

    Raises:
        ValueError: another shape, another type, or values outside [0, 1].
    """
    if isinstance(image, str | os.PathLike):
        try:
            image = load_image(str(image))
        except (*_DAMAGE, Image.DecompressionBombError) as error:
            raise ValueError(f"the image {str(image)[:200]!r} cannot be read: {error}") from error
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"an image has mode {image.mode!r} (depth?), but 8 bits a channel are expected.")
        if not image.width or not image.height:
            raise ValueError(f"an image has no pixels: its size is {image.size}.")
        try:
            return _upright(image).convert("RGB")
        except _DAMAGE as error:  # a file that was opened and not read yet
            raise ValueError(f"an image cannot be decoded: {error}") from error
    if torch.is_tensor(image):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image  # NumPy has no bfloat16
    try:
        pixels = np.asarray(image)
    except ValueError as error:
        raise ValueError(f"an image must be (height, width, 3) or (3, height, width): {error}") from error
    if pixels.ndim == 3 and pixels.shape[-1] != 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(
            f"an image must be (height, width, 3) or (3, height, width), got {pixels.shape} ({type(image).__name__}). "
            "Repeat a grey channel three times; leave out alpha and depth."
        )
    if np.issubdtype(pixels.dtype, np.floating):
        levels = (pixels * 255).round()
        if not (levels.min() >= 0 and levels.max() <= 255):  # true for NaN, too
            raise ValueError(
                f"an image of floats must lie in [0, 1], got {pixels.min()} to {pixels.max()}. Pass uint8, or divide "
                "by 255."
            )
        pixels = levels.astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"an image must be uint8, or floats in [0, 1], got {pixels.dtype}.")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. (Few images say so, and turning copies even those that do not.)"""
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


def pad_to_square(image: Image.Image) -> Image.Image:
    """The image in the middle of a black square (openpi's and LeRobot's `resize_with_pad`, before any resizing)."""
    side = max(image.size)
    return ImageOps.pad(image, (side, side))

"""Images as people have them -> RGB: one function, and so the same pixels whatever door they come through."""

import base64
import functools
import io
import logging
import os
import struct
import warnings
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

logger = logging.getLogger(__name__)

# Without those that run programs (EPS) or read other files
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
MAX_PIXELS = 64_000_000
_MAX_DOWNLOAD = 256_000_000  # bytes
# What Pillow raises for damaged files, depending on where the damage is
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, OverflowError, struct.error)


def open_image(data: bytes) -> Image.Image:
    """Decode an image file that a stranger may have written, upright. Of several frames or pages the first is taken.

    Raises:
        ValueError: damaged, larger than `MAX_PIXELS` (before it is decoded), or of a format that is not read.
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
    """Turn an image in any form into RGB, 8 bits a channel.

    A form is a path, a URL (`https://` or `data:image/`), the bytes of a file, a PIL image, or an array or tensor
    (H, W, 3) or (3, H, W) of uint8, or of floats in [0, 1], but for rounding. Files and PIL images are converted:

    * Photos are turned upright, as their EXIF data says.
    * Grey, black-and-white, palette and CMYK become the colours that they show.
    * Alpha is left out, and the colour beneath stays (simulators write 0 where there is no object).
    * Of 16 bits a channel the upper 8 are taken: 65535 is white. A depth map in millimetres is then nearly black.
    * Floats are as in arrays.
    * Of an animation the first frame is taken.

    Arrays with one or four channels are refused: nobody has said what these mean.

    Raises:
        ValueError: a file that cannot be read, another shape, another type, or floats outside [0, 1].
    """
    if isinstance(image, str | os.PathLike):
        image = _from_place(os.fspath(image))
    elif isinstance(image, bytes | bytearray | memoryview):
        try:
            image = open_image(bytes(image))
        except ValueError as error:
            raise ValueError(f"an image file cannot be read: {error}") from error
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise ValueError(f"an image has no pixels: its size is {image.size}.")
        try:
            return _pil_as_rgb(_upright(image))
        except _DAMAGE as error:  # a file that was opened and not read yet, or a mode without colours
            raise ValueError(f"an image cannot be decoded: {error}") from error
    if torch.is_tensor(image):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image  # NumPy has no bfloat16
    try:
        pixels = np.asarray(image)
    except ValueError as error:
        raise ValueError(f"an image must be (height, width, 3) or (3, height, width): {error}") from error
    if pixels.dtype == object:
        raise ValueError(
            "an image must be a path, a URL, the bytes of a file, a PIL image, or an array (height, width, 3), got "
            f"{type(image).__name__}."
        )
    if pixels.ndim == 3 and pixels.shape[-1] != 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(
            f"an image must be (height, width, 3) or (3, height, width), got {pixels.shape} ({type(image).__name__}). "
            "Repeat a grey channel three times; leave out alpha and depth."
        )
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = _levels(pixels)
    if pixels.dtype != np.uint8:
        raise ValueError(f"an image must be uint8, or floats in [0, 1], got {pixels.dtype}.")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _from_place(place: str) -> Image.Image:
    """The image at a path, a URL or in a data URI."""
    try:
        if place.startswith(("http://", "https://")):
            with urlopen(Request(place, headers={"User-Agent": "kivla"}), timeout=60) as response:
                data = response.read(_MAX_DOWNLOAD)  # what is longer is cut off, and then no image
        elif place.startswith("data:image/"):
            data = base64.b64decode(place.partition(",")[2])
        else:
            data = Path(place).read_bytes()
        return open_image(data)
    except (OSError, ValueError, HTTPException) as error:
        raise ValueError(f"the image {place[:200]!r} cannot be read: {error}") from error


def _pil_as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        _say_16_bit()
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # as Pillow reads 16-bit colour
    elif image.mode == "I":
        raise ValueError("it has 32-bit whole numbers (mode 'I'), whose range is not known. Save it with 8 or 16 bits")
    elif image.mode == "F":
        image = Image.fromarray(_levels(np.asarray(image)))
    elif image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns of transparent palettes otherwise; the colours are the same
    return image.convert("RGB")


def _levels(pixels: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8."""
    levels = (pixels * 255).round()
    if not (levels.min() >= 0 and levels.max() <= 255):  # true for NaN, too
        raise ValueError(
            f"an image of floats must lie in [0, 1], got {pixels.min()} to {pixels.max()}. Pass uint8, or divide by "
            "255."
        )
    return levels.astype(np.uint8)


@functools.cache
def _say_16_bit() -> None:
    logger.warning(
        "There are images with 16 bits a channel: the upper 8 bits are taken, 65535 is white. If they are depth maps, "
        "leave these cameras out, or scale them to 8 bits yourself."
    )


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. (Few images say so, and turning copies even those that do not.)"""
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


def pad_to_square(image: Image.Image) -> Image.Image:
    """The image in the middle of a black square (openpi's and LeRobot's `resize_with_pad`, before any resizing)."""
    side = max(image.size)
    return ImageOps.pad(image, (side, side))


__all__ = ["MAX_PIXELS", "as_rgb", "open_image", "pad_to_square"]

"""The VLM's own processor: what is said where it wants a library, and which library prepares its images.

Transformers has two backends for most image processors: torchvision where that is installed, else Pillow ("pil"). They
round and interpolate differently, so that the same picture becomes slightly other numbers. A policy keeps the backend
that it was trained with.
"""

import importlib.util
import logging
import os
import re

from transformers import AutoImageProcessor, AutoProcessor, ProcessorMixin

from .saved_settings import shortened

logger = logging.getLogger(__name__)

# What the extra `vlm` brings (pyproject.toml): each library as messages name it, and its module
LIBRARIES = {
    "torchvision": "torchvision",
    "num2words": "num2words",
    "timm": "timm",
    "sentencepiece": "sentencepiece",
    "protobuf": "google.protobuf",
    "tiktoken": "tiktoken",
}
INSTALL = "pip install 'kivla[vlm]' (torchvision from where torch is from: docs/install.md)"

_ONE_PICTURE = "writes one picture in front of every text itself, whether an example has none or three"
# Processors that do not take a prompt as it is given, with a placeholder for each picture
OWN_PROMPTS = {
    "Blip2Processor": _ONE_PICTURE,
    "InstructBlipProcessor": _ONE_PICTURE,
    "Kosmos2Processor": _ONE_PICTURE,
    "Kosmos2_5Processor": _ONE_PICTURE,
    "FuyuProcessor": "takes one picture with a text, and begins the answer behind it itself",
    "InstructBlipVideoProcessor": "takes clips of four frames, and no pictures",
    "ShieldGemma2Processor": "asks its own questions about safety in place of the prompt (Gemma3Processor does not)",
}


def check_takes_prompts(vlm_processor: ProcessorMixin) -> None:
    """Refuse a processor that changes what it is asked, by name.

    Raises:
        ValueError: its name, and what it does.
    """
    name = type(vlm_processor).__name__
    if name in OWN_PROMPTS:
        raise ValueError(
            f"{name} {OWN_PROMPTS[name]}. It cannot make the prompts of a policy: choose another VLM, or give its VLM "
            "a processor that takes a prompt as it is."
        )


def load_vlm_processor(name: str | os.PathLike, **options) -> ProcessorMixin:
    """Load a VLM's processor from a folder or the Hub, as `AutoProcessor` does.

    Args:
        options: of `AutoProcessor.from_pretrained`.

    Raises:
        ImportError: it wants a library that is not installed; the message names the extra that brings it.
    """
    try:
        return AutoProcessor.from_pretrained(name, **options)
    except (ImportError, ValueError) as error:  # transformers raises either for want of a library
        missing = missing_libraries(str(error).replace(str(name), ""))
        if not missing:
            raise
        raise ImportError(
            f"The processor of {name} wants {' and '.join(missing)}, which is not installed. Install the extra: "
            f"{INSTALL}."
        ) from error


def missing_libraries(message: str) -> list[str]:
    """Which libraries of the extra `vlm` a message speaks of that are not installed."""
    return [
        library
        for library, module in LIBRARIES.items()
        if re.search(rf"\b{library}\b", message, re.IGNORECASE) and not _is_installed(module)
    ]


def image_backend(vlm_processor: ProcessorMixin) -> str | None:
    """Say what prepares its images: "torchvision" or "pil"; None where that is code of its own, which does not say."""
    return getattr(getattr(vlm_processor, "image_processor", None), "backend", None)


def backend_name(backend: str) -> str:
    """What people call it: the library that is installed."""
    return "Pillow" if backend == "pil" else shortened(backend, 20)


def keep_image_backend(vlm_processor: ProcessorMixin, folder: str | os.PathLike, backend: str, **options) -> None:
    """Let this backend prepare the images of a processor that was loaded from a folder, or warn that it cannot.

    Args:
        options: `trust_remote_code`.
    """
    if image_backend(vlm_processor) != backend:
        vlm_processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend=backend, **options)
    now = image_backend(vlm_processor)
    if now is not None and now != backend:
        hint = f" To have what it was trained with: {INSTALL}." if missing_libraries(backend) else ""
        logger.warning(
            "The policy in %s was trained with images that %s had prepared; here %s prepares them, because the other "
            "cannot be had. The VLM sees slightly other images: normalised values differ by up to 0.004 on average, "
            "a few by up to 0.09.%s",
            folder,
            backend_name(backend),
            backend_name(now),
            hint,
        )


def _is_installed(module: str) -> bool:
    parent = module.rpartition(".")[0]
    return (not parent or _is_installed(parent)) and importlib.util.find_spec(module) is not None


__all__ = [
    "backend_name",
    "check_takes_prompts",
    "image_backend",
    "keep_image_backend",
    "load_vlm_processor",
    "missing_libraries",
]

"""Whether a VLM takes a clip as a video, which is found by trying: its processor either can, or is given images."""

import logging

import numpy as np
import torch
from PIL import Image
from transformers import ProcessorMixin

logger = logging.getLogger(__name__)

_SIDE = 64  # pixels of the frames that are tried
_FRAMES = (4, 2)  # of two clips: in one batch some are shorter, at the beginning of an episode


def takes_video(vlm_processor: ProcessorMixin) -> bool:
    """Try whether a processor makes one input of a clip, beside shorter ones and images of other examples.

    It must have a chat template with an entry for videos, and the libraries that its video processor wants. What stands
    for images must not stand for frames as well (GLM-4V): a model could not tell the two apart in one batch.
    """
    token = getattr(vlm_processor, "video_token", None)
    if token is None or not vlm_processor.chat_template:
        return False
    prompts = []
    try:
        for kind in ("image", *("video" for _ in _FRAMES)):
            content = [{"type": kind}, {"type": "text", "text": "go"}]
            prompts.append(vlm_processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
        if prompts[1].count(token) != 1:
            return False
        clips = [np.zeros((frames, _SIDE, _SIDE, 3), dtype=np.uint8) for frames in _FRAMES]
        images = [[Image.new("RGB", (_SIDE, _SIDE))], *([] for _ in _FRAMES)]
        encoded = vlm_processor(text=prompts, images=images, padding=True, return_tensors="pt", **video_options(clips))
    except Exception as error:  # a processor of anybody's, which need not know videos at all
        logger.info("%s is given clips as images: %s: %s", type(vlm_processor).__name__, type(error).__name__, error)
        return False
    image_ids = torch.tensor([token for token in vlm_processor.image_token_ids if token is not None])
    has_images = torch.isin(encoded["input_ids"][1:], image_ids).any()
    return any("video" in name for name in encoded) and not has_images


def as_video(clip: list[Image.Image]) -> np.ndarray:
    """The frames of a clip as one array (n, height, width, 3).

    Raises:
        ValueError: frames of different sizes.
    """
    if len(sizes := {frame.size for frame in clip}) > 1:
        raise ValueError(f"the frames of a clip have the sizes {sorted(sizes)}; this VLM takes them as one video.")
    return np.stack([np.asarray(frame) for frame in clip])


def video_options(clips: list[np.ndarray]) -> dict:
    """Arguments of a processor's call for clips, (n, height, width, 3) each: every frame counts, none is sampled.

    Times that a VLM writes beside frames count them, one a second.
    """
    metadata = [{"fps": 1.0, "total_num_frames": len(clip), "frames_indices": list(range(len(clip)))} for clip in clips]
    return {"videos": clips, "do_sample_frames": False, "video_metadata": metadata}


__all__ = ["as_video", "takes_video", "video_options"]

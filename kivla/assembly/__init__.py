"""VLMs of a language model and a vision tower that were pretrained apart."""

from .assemble import assemble_vlm
from .pretrained_parts import load_text_model, load_vision_tower

__all__ = ["assemble_vlm", "load_text_model", "load_vision_tower"]

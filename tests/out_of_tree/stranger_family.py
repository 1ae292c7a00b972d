"""The test entry of a VLM that transformers does not know: registered, and how to build a tiny one."""

from stranger_vlm import StrangerConfig, StrangerForConditionalGeneration
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.helpers.families import FAMILIES, Family, pixels, text

AutoConfig.register("stranger", StrangerConfig)
AutoModelForImageTextToText.register(StrangerConfig, StrangerForConditionalGeneration)
FAMILIES["stranger"] = Family("stranger", {"model_type": "stranger", "text_config": text("llama")}, pixels(8))

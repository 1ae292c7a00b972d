"""What cannot carry an action expert, and why."""

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .family import IMAGE_ID, VOCAB_SIZE
from .settings import text, vision
from .table import FAMILIES


@dataclass(frozen=True)
class Refused:
    """A configuration that must be turned down with a message.

    Attributes:
        settings: arguments of `AutoConfig.for_model`, with `model_type` among them.
        reason: why an expert cannot read this model.
        is_vlm: whether `AutoModelForImageTextToText` builds it.
    """

    settings: dict[str, Any]
    reason: str
    is_vlm: bool = True

    def config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(**self.settings)


_QFORMER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "encoder_hidden_size": 16,
}
_T5 = {
    "model_type": "t5",
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
REFUSED: dict[str, Refused] = {
    "mllama": Refused(
        {
            "model_type": "mllama",
            "text_config": text(
                "mllama_text_model",
                cross_attention_layers=[1],
                rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            ),
            "vision_config": vision(
                "mllama_vision_model",
                attention_heads=2,
                num_global_layers=1,
                max_num_tiles=1,
                supported_aspect_ratios=[[1, 1]],
                intermediate_layers_indices=[0],
                vision_output_dim=32,
            ),
            "image_token_index": IMAGE_ID,
        },
        "images enter through cross attention, not as tokens",
    ),
    "instructblip": Refused(
        {
            "model_type": "instructblip",
            "text_config": _T5,
            "vision_config": vision("instructblip_vision_model"),
            "qformer_config": _QFORMER,
            "num_query_tokens": 4,
            "image_token_index": IMAGE_ID,
        },
        "the language model is an encoder and a decoder",
    ),
    "qwen3_5_linear": Refused(
        {
            **FAMILIES["qwen3_5"].settings,
            "text_config": FAMILIES["qwen3_5"].settings["text_config"] | {"layer_types": ["linear_attention"] * 4},
        },
        "no layer has keys and values",
    ),
    "llama": Refused(text("llama"), "reads no images", is_vlm=False),
}

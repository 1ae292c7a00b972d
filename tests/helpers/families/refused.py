"""What cannot carry an action expert, and why."""

import copy
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .family import IMAGE_ID, VOCAB_SIZE
from .settings import WRONG_HERE, text, vision
from .table import FAMILIES


@dataclass(frozen=True)
class Refused:
    """A configuration that must be turned down with a message.

    Attributes:
        settings: arguments of `AutoConfig.for_model`, with `model_type` among them.
        reason: why an expert cannot read this model, in words of the message.
        needs: what would be needed, in a sentence.
        is_vlm: whether `AutoModelForImageTextToText` builds it.
    """

    settings: dict[str, Any]
    reason: str
    needs: str
    is_vlm: bool = True

    def config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(**copy.deepcopy(self.settings))  # some take parts out of the dicts


_IN_SEQUENCE = (
    "Image tokens in the decoder's own sequence; here it looks at the image from outside, by cross-attention."
)
_DECODER_ONLY = "A decoder that has the prompt in its own sequence; here an encoder has it, read by cross-attention."

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
_ALL: dict[str, Refused] = {
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
        "reads the image by cross-attention",
        _IN_SEQUENCE,
    ),
    "instructblip_t5": Refused(
        {
            "model_type": "instructblip",
            "text_config": _T5,
            "vision_config": vision("instructblip_vision_model"),
            "qformer_config": _QFORMER,
            "num_query_tokens": 4,
            "image_token_index": IMAGE_ID,
        },
        "is an encoder-decoder",
        "A decoder-only language model inside, such as Vicuna or OPT: with these the type is read.",
    ),
    "qwen3_5_linear": Refused(
        {
            **FAMILIES["qwen3_5"].settings,
            "text_config": FAMILIES["qwen3_5"].settings["text_config"] | {"layer_types": ["linear_attention"] * 4},
        },
        "recorded no keys and values",
        "Full attention in some layers, as every released model of the type has.",
    ),
    "llama": Refused(text("llama"), "is not a vision-language model", "A model that reads images.", is_vlm=False),
    # Types of AutoModelForImageTextToText, at the sizes of their configurations' defaults: nothing is allocated.
    "mistral4": Refused({"model_type": "mistral4"}, "reads no images", "Its VLM: inside a `mistral3` it is read."),
    "evolla": Refused(
        {"model_type": "evolla"},
        "is not a vision-language model",
        "A model that reads images: this one reads proteins, and AutoModelForImageTextToText does not build it.",
        is_vlm=False,
    ),
    "pi0": Refused(
        {"model_type": "pi0"},
        "names no output layer over its vocabulary",
        "Its VLM alone: it is a policy itself, with an expert of its own (`kivla convert` reads π0 checkpoints).",
    ),
    "blip": Refused({"model_type": "blip"}, "has no layers whose attention could be replaced", _IN_SEQUENCE),
    "idefics": Refused({"model_type": "idefics"}, "does not run on tokens alone", _IN_SEQUENCE),
    "git": Refused(
        {"model_type": "git"},
        "has no layers whose attention could be replaced",
        "Attention through the library's AttentionInterface; its class computes it itself, and takes no arguments on.",
    ),
    "diffusion_gemma": Refused(
        {
            "model_type": "diffusion_gemma",
            "text_config": {
                "model_type": "diffusion_gemma_text",
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 16,
            },
            "vision_config": {"model_type": "gemma4_vision"},
        },
        "does not run on tokens alone",
        "A loss for tokens that are denoised in blocks; insulation learns action tokens one after another.",
    ),
    **{
        name: Refused({"model_type": name, **parts}, "is an encoder-decoder", _DECODER_ONLY)
        for name, parts in {
            **{name: {} for name in ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop")},
            "vision-encoder-decoder": {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}},
        }.items()
    },
}
for _name in WRONG_HERE:
    _ALL[_name] = Refused(
        {"model_type": _name}, "needs another transformers", "A newer transformers, where it is read."
    )
# an older transformers has fewer types
REFUSED = {name: refused for name, refused in _ALL.items() if refused.settings["model_type"] in CONFIG_MAPPING}

"""How the action expert reads a vision-language model that it knows nothing about.

Every Hugging Face decoder computes attention through one replaceable function. We register a function that hands the
keys and values to a `PrefixRecorder` and then does what the ordinary function does. The recorder travels as a keyword
of the decoder's forward, so calls in other threads never meet it; there are no hooks on projections and no use of the
generation cache (which is truncated on sliding-window layers, missing on KV-shared ones, and switched off by gradient
checkpointing).

What differs between families (which layers have keys and values, how many heads, which size, which rotary embedding)
is measured once, in `backbone_probe`, and kept in the config. Here is what runs at every forward.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
import transformers
from packaging.specifiers import SpecifierSet
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_dtype import attention_dtype, is_autocast_on, without_autocast
from .call_hooks import call_hook

RECORDING_PREFIX = "kivla_"
_WRAPPED_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
# What some releases of transformers do wrongly: type of VLM, which releases, and what they do.
_WRONG_IN = {
    "minimax_m3_vl": ("<5.23", "lets all pictures of a batch look at each other, so that actions depend on neighbours"),
    "llama4": ("==5.24.0", "cannot run it: its forward asks an output for `image_outputs`, which has none"),
}


class UnsupportedBackboneError(ValueError):
    """The VLM gives the action expert nothing to read; the message names the VLM and the reason."""


class RecordedImplementation(str):
    """The name of an attention implementation with our prefix, which compares equal to the name without it.

    Some decoders ask `config._attn_implementation in ("eager", "sdpa")` and go another way otherwise: sparse attention,
    for example, then leaves its mask to a kernel. Under our name they are to do what they do under their own. As a key
    it is what it says, `kivla_sdpa`.
    """

    def __eq__(self, other: object) -> bool:
        return str(self) == other or str(self).removeprefix(RECORDING_PREFIX) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class AllRead(Exception):
    """Ends a forward pass that has given all that it is for."""


class PrefixRecorder:
    """Collects the keys and values of one forward pass.

    Keys are taken after the rotary embedding and heads are not repeated: K and V are (B, num_key_value_heads, S, D).

    Args:
        layers: `layer_idx` of the attention layers that are wanted; None for all.
        ends_pass: raise `AllRead` when each of them was recorded. (Not in compiled code, which is not left midway.)
    """

    def __init__(self, layers: list[int] | None, ends_pass: bool = False):
        self.wanted = None if layers is None else set(layers)
        self.key_values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.num_attention_heads: dict[int, int] = {}
        self.masks: dict[int, torch.Tensor | None] = {}  # as the attention function gets them
        self.is_causal: dict[int, bool] = {}  # what no mask means
        self.is_open, self.ends_pass = True, ends_pass
        self.num_records = 0  # a layer may run several times: its last keys and values stay

    def record(self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask):
        """Keep what the attention function of one layer was called with, if the layer is wanted."""
        layer = cast(int, module.layer_idx)
        if self.is_open and (self.wanted is None or layer in self.wanted):
            self.key_values[layer] = (key, value)
            self.num_records += 1
            self.num_attention_heads[layer] = query.shape[1]
            self.masks[layer] = mask
            self.is_causal[layer] = getattr(module, "is_causal", True)
            if self.ends_pass and self.key_values.keys() == self.wanted and not torch.compiler.is_compiling():
                raise AllRead

    def close(self):
        """Record no more: called when the forward returns, as checkpointing runs the layers again during backward."""
        self.is_open = False


def _recording_attention(base: str):
    def attention(module, query, key, value, attention_mask, kivla_recorder: PrefixRecorder | None = None, **kwargs):
        if kivla_recorder is not None:
            kivla_recorder.record(module, query, key, value, attention_mask)
        attend = _eager_attention(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
        if query.dtype != attention_dtype(query.device, query.dtype) or is_autocast_on(query.device):
            return _in_float32(attend, module, query, key, value, attention_mask, **kwargs)
        if kwargs.get("position_bias") is not None:
            # Autocast makes a bias bf16, and keys are float32 where a norm comes last: as its mask they would overflow.
            query, key, value = (x.to(kwargs["position_bias"].dtype) for x in (query, key, value))
        return attend(module, query, key, value, attention_mask, **kwargs)

    return attention


def _eager_attention(module: nn.Module) -> Callable:
    """Eager attention as a layer computes it: by the library's convention the file that has its `forward` brings it.

    Raises:
        UnsupportedBackboneError: no such file has it.
    """
    for of_layer in type(module).__mro__:
        attend = vars(sys.modules[of_layer.__module__]).get("eager_attention_forward")
        if "forward" in vars(of_layer) and attend is not None:
            return attend
    raise UnsupportedBackboneError(
        f"{type(module).__name__} computes eager attention, and the file of its forward has no function "
        'eager_attention_forward. Load the VLM with attn_implementation="sdpa", or write this function.'
    )


def _in_float32(attend, module, query, key, value, attention_mask, **kwargs):
    """Attention in float32 between layers that compute in half precision."""
    mask, *biases = (
        x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in (attention_mask, *kwargs.values())
    )
    kwargs = dict(zip(kwargs, biases, strict=True))
    with without_autocast(query.device):
        output, weights = attend(module, query.float(), key.float(), value.float(), mask, **kwargs)
    return output.to(query.dtype), weights


for _name in _WRAPPED_IMPLEMENTATIONS:
    AttentionInterface.register(RECORDING_PREFIX + _name, _recording_attention(_name))
    # Without an entry here transformers builds no mask for our name, and padding would be attended to silently.
    AttentionMaskInterface.register(RECORDING_PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])


def find_text_decoder(vlm: PreTrainedModel) -> PreTrainedModel:
    """The module that holds the text layers, e.g. `GemmaModel` inside a PaliGemma.

    Raises:
        UnsupportedBackboneError: there are none.
    """
    for module in vlm.get_decoder().modules():  # Llama 4 has a causal LM around its decoder
        if isinstance(module, PreTrainedModel) and decoder_layers(module):
            return module
    raise UnsupportedBackboneError(
        f"'{vlm.config.model_type}': the text decoder of {type(vlm).__name__} has no layers whose attention could be "
        "replaced, and so its keys and values recorded. Choose a VLM whose class supports `attn_implementation`."
    )


def find_language_head(vlm: PreTrainedModel) -> PreTrainedModel:
    """The model whose output layer makes the logits: the VLM itself, or the causal language model around its decoder.

    Raises:
        UnsupportedBackboneError: there is none.
    """
    decoder = vlm.get_decoder()
    for module in vlm.modules():
        has_head = isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None
        if has_head and any(part is decoder for part in module.modules()):
            return cast(PreTrainedModel, module)
    raise UnsupportedBackboneError(
        f"'{vlm.config.model_type}' names no output layer over its vocabulary ({type(vlm).__name__}."
        "get_output_embeddings), so it cannot learn action tokens. Choose a VLM that predicts the next token."
    )


def decoder_layers(decoder: nn.Module) -> list[nn.Module]:
    """The layers of a text decoder, in order."""
    return [layer for child in decoder.children() if isinstance(child, nn.ModuleList) for layer in child]


def record_attention(vlm: PreTrainedModel) -> None:
    """Route the text decoder's attention through the recording function; the vision tower is left as it is.

    Raises:
        UnsupportedBackboneError: the VLM does not use the library's replaceable attention, or this release of
            transformers does it wrongly.
    """
    name = vlm.config.model_type
    releases, wrong = _WRONG_IN.get(name, ("<0", ""))
    if SpecifierSet(releases).contains(transformers.__version__, prereleases=True):
        raise UnsupportedBackboneError(
            f"'{name}' needs another transformers: {transformers.__version__} {wrong}. All of {releases} do. Install "
            "one that is newer, or the one that the policy was trained with."
        )
    decoder = find_text_decoder(vlm)
    implementation = str(decoder.config._attn_implementation or "sdpa").removeprefix(RECORDING_PREFIX)
    if implementation not in _WRAPPED_IMPLEMENTATIONS:
        raise UnsupportedBackboneError(
            f"{type(vlm).__name__} was loaded with attn_implementation='{implementation}', which cannot be recorded. "
            f"Load it with one of {', '.join(_WRAPPED_IMPLEMENTATIONS)}."
        )
    decoder.set_attn_implementation(RECORDING_PREFIX + implementation)
    # Masks are built from the VLM's own view of the text config, which some families copy.
    for config in (decoder.config, vlm.config.get_text_config()):
        config._attn_implementation_internal = RecordedImplementation(RECORDING_PREFIX + implementation)


# -------------------------------------------------------------------------------------------------------- rotary
def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, style: str, start: int = 0) -> torch.Tensor:
    """Rotate the 2·R values of every head that begin at `start`, and pass the rest.

    Args:
        x: (..., D).
        cos, sin: (..., R), broadcast against `x`; one angle for each pair.
        style: "half" pairs value i with i + R (GPT-NeoX, Llama); "interleaved" pairs 2i with 2i + 1 (GPT-J).
        start: 0, or D - 2·R where the rotary part comes last (multi-head latent attention).
    """
    sizes = [start, 2 * cos.shape[-1], x.shape[-1] - start - 2 * cos.shape[-1]]
    before, rotary, after = x.split(sizes, dim=-1)  # three slices would each need a gradient as wide as x
    if style == "half":
        a, b = rotary.chunk(2, dim=-1)
        rotated = [a * cos - b * sin, b * cos + a * sin]
    else:
        a, b = rotary[..., 0::2], rotary[..., 1::2]
        rotated = [torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)]
    return torch.cat([before, *rotated, after], dim=-1).to(x.dtype)


@contextmanager
def handed_over(recorder: PrefixRecorder, decoder: PreTrainedModel) -> Iterator[None]:
    """Let this call's text decoder have a recorder, whether or not its VLM passes keywords on to it."""

    def hand_over(_, kwargs: dict) -> None:
        kwargs["kivla_recorder"] = recorder

    with call_hook(decoder, before=hand_over):
        yield


@contextmanager
def capture_positions(rotary: nn.Module | None) -> Iterator[list[torch.Tensor]]:
    """Collect the `position_ids` with which a rotary module is called: (B, S), (1, S), or with a leading axis (M-RoPE).

    The VLM computes them itself (from padding, image grids, ...); asking it is the only rule that fits every family.
    Without a rotary module (None) there are none.
    """
    captured: list[torch.Tensor] = []
    if rotary is None:
        yield captured
        return

    def note(args: tuple, kwargs: dict) -> None:
        captured.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    with call_hook(rotary, before=note):
        yield captured


@contextmanager
def logits_of(vlm: PreTrainedModel, tokens: torch.Tensor) -> Iterator[None]:
    """Make the VLM compute the logits of some tokens (n,) only; those of all others are -inf.

    Decoding then reads n rows of the output matrix instead of the whole vocabulary. An output layer that is not a plain
    `nn.Linear` (quantised, wrapped by peft, or offloaded by accelerate) is left as it is.
    """
    layer = find_language_head(vlm).get_output_embeddings()
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        yield
        return
    tokens = tokens.to(layer.weight.device)
    weight = layer.weight[tokens]
    bias = None if layer.bias is None else layer.bias[tokens]
    waiting: list[torch.Tensor] = []

    def hold_back(args: tuple, _) -> tuple:
        waiting.append(args[0])  # (B, S, width)
        return (args[0][:, :0],)

    def compute(output: torch.Tensor) -> torch.Tensor:
        hidden = waiting.pop()
        logits = output.new_full((*hidden.shape[:-1], layer.out_features), float("-inf"))
        logits[..., tokens] = F.linear(hidden, weight, bias)
        return logits

    with call_hook(layer, before=hold_back, after=compute):
        yield

"""How the action expert reads a vision-language model that it knows nothing about.

Every Hugging Face decoder computes attention through one replaceable function. We register a function that hands the
keys and values to a `PrefixRecorder` and then does what the ordinary function does. The recorder travels as a keyword
of the VLM's forward, so calls in other threads never meet it; there are no hooks on projections and no use of the
generation cache (which is truncated on sliding-window layers, missing on KV-shared ones, and switched off by gradient
checkpointing).

What differs between families (which layers have keys and values, how many heads, which size, which rotary embedding)
is measured once on a copy of the decoder that has no real weights (`probe_backbone`) and kept in the config.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .call_hooks import call_hook

RECORDING_PREFIX = "kivla_"
_WRAPPED_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_MAX_SMALL = 1 << 28  # a mixture of 256 experts in 61 layers has less than half of it


class UnsupportedBackboneError(ValueError):
    """The VLM gives the action expert nothing to read; the message names the VLM and the reason."""


class PrefixRecorder:
    """Collects the keys and values of one forward pass.

    Keys are taken after the rotary embedding and heads are not repeated: K and V are (B, num_key_value_heads, S, D).

    Args:
        layers: `layer_idx` of the attention layers that are wanted.
    """

    def __init__(self, layers: list[int]):
        self.wanted = set(layers)
        self.key_values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.num_attention_heads: dict[int, int] = {}
        self.masks: dict[int, torch.Tensor | None] = {}  # as the attention function gets them
        self.is_causal: dict[int, bool] = {}  # what no mask means
        self.is_open = True

    def record(self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask):
        layer = module.layer_idx
        if self.is_open and layer in self.wanted:
            self.key_values[layer] = (key, value)
            self.num_attention_heads[layer] = query.shape[1]
            self.masks[layer] = mask
            self.is_causal[layer] = getattr(module, "is_causal", True)

    def close(self):
        """To be called when the forward returns: gradient checkpointing runs the layers again during backward."""
        self.is_open = False


def _recording_attention(base: str):
    def attention(module, query, key, value, attention_mask, kivla_recorder: PrefixRecorder | None = None, **kwargs):
        if kivla_recorder is not None:
            kivla_recorder.record(module, query, key, value, attention_mask)
        if base == "eager":  # by the library's convention each modeling file brings its own
            attend = sys.modules[type(module).__module__].eager_attention_forward
        else:
            attend = ALL_ATTENTION_FUNCTIONS[base]
        return attend(module, query, key, value, attention_mask, **kwargs)

    return attention


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
        if isinstance(module, PreTrainedModel) and _decoder_layers(module):
            return module
    raise UnsupportedBackboneError(f"The text decoder of this {type(vlm).__name__} has no layers.")


def _decoder_layers(decoder: nn.Module) -> list[nn.Module]:
    return [layer for child in decoder.children() if isinstance(child, nn.ModuleList) for layer in child]


def record_attention(vlm: PreTrainedModel) -> None:
    """Route the text decoder's attention through the recording function; the vision tower is left as it is.

    Raises:
        UnsupportedBackboneError: the VLM does not use the library's replaceable attention.
    """
    decoder = find_text_decoder(vlm)
    implementation = (decoder.config._attn_implementation or "sdpa").removeprefix(RECORDING_PREFIX)
    if implementation not in _WRAPPED_IMPLEMENTATIONS:
        raise UnsupportedBackboneError(
            f"{type(vlm).__name__} was loaded with attn_implementation='{implementation}', which cannot be recorded. "
            f"Load it with one of {', '.join(_WRAPPED_IMPLEMENTATIONS)}."
        )
    decoder.set_attn_implementation(RECORDING_PREFIX + implementation)
    # Masks are built from the VLM's own view of the text config, which some families copy.
    vlm.config.get_text_config()._attn_implementation_internal = RECORDING_PREFIX + implementation


# ------------------------------------------------------------------------------------------------------- probing
def probe_backbone(vlm_config: PreTrainedConfig) -> list[dict]:
    """Measure what an expert can read from a VLM, from its config alone and without allocating its weights.

    The VLM is built on the meta device, and its text decoder gets parameters that are views of a few numbers. One
    token is then run at positions 0 and 1. With one token, attention can only return that token, so all that
    differs between the two rows is the rotary embedding of the keys: its style (pairs taken from two halves or
    interleaved, a part of the head only, or none) and its frequencies are read off exactly.

    Returns:
        For each attention layer: `layer` (its `layer_idx`), `num_attention_heads`, `num_key_value_heads`, `key_dim`,
        `value_dim`, `rope` ("half", "interleaved" or None: no rotary embedding), `rope_start` (first rotary value of
        a head), `inv_freq` (dotted name of the buffer with the frequencies inside the text decoder) and `rope_order`
        (which frequency turns which pair; None if simply in order).

    Raises:
        UnsupportedBackboneError: cross-attention or encoder-decoder models, models without rotary embedding, or
            whose attention is not replaceable.
    """
    name = vlm_config.model_type
    if type(vlm_config) not in AutoModelForImageTextToText._model_mapping:
        raise UnsupportedBackboneError(
            f"'{name}' is not a vision-language model: {type(vlm_config).__name__} is not known to "
            "AutoModelForImageTextToText. Give a model that reads images and text, such as PaliGemma or Qwen-VL."
        )
    if vlm_config.is_encoder_decoder or vlm_config.get_text_config().is_encoder_decoder:
        raise UnsupportedBackboneError(
            f"'{name}' is an encoder-decoder: its decoder reads the image by cross-attention, so no layer holds keys "
            "and values of the whole prompt. Choose a decoder-only VLM."
        )
    vlm = build_without_weights(vlm_config)
    decoder = find_text_decoder(vlm)
    fill_with_small_views(decoder)

    num_layers = vlm_config.get_text_config().num_hidden_layers
    recorder = PrefixRecorder(list(range(num_layers)))
    ran = set()
    hooks = [module.register_forward_hook(lambda m, *_: ran.add(m)) for module in _decoder_layers(decoder)]
    with torch.no_grad():
        decoder(
            input_ids=torch.ones(2, 1, dtype=torch.long),
            position_ids=torch.arange(2)[:, None],
            use_cache=False,
            kivla_recorder=recorder,
        )
    for hook in hooks:
        hook.remove()
    if skipped := [type(m).__name__ for m in _decoder_layers(decoder) if m not in ran]:
        raise UnsupportedBackboneError(
            f"'{name}' reads the image by cross-attention ({skipped[0]} does not run without an image): image tokens "
            "have no keys and values of their own in the prompt. Choose a VLM that puts image tokens in its sequence."
        )
    if not recorder.key_values:
        raise UnsupportedBackboneError(
            f"'{name}' recorded no keys and values: its attention does not go through transformers' "
            "AttentionInterface. Choose a VLM whose class supports `attn_implementation`."
        )
    frequencies = {n: b for n, b in decoder.named_buffers() if "inv_freq" in n}
    kv_layers = []
    for layer, (key, value) in sorted(recorder.key_values.items()):
        kv_layers.append(
            {
                "layer": layer,
                "num_attention_heads": recorder.num_attention_heads[layer],
                "num_key_value_heads": key.shape[1],
                "key_dim": key.shape[-1],
                "value_dim": value.shape[-1],
                **_recognise_rope(name, layer, key[:, :, 0].double(), frequencies),
            }
        )
    if all(layer["rope"] is None for layer in kv_layers):
        raise UnsupportedBackboneError(
            f"'{name}' has no rotary position embedding in its decoder, so the expert's action tokens could not be "
            "placed after the prompt. Choose a VLM with a rotary decoder."
        )
    return kv_layers


def build_without_weights(vlm_config: PreTrainedConfig) -> PreTrainedModel:
    """The VLM on the meta device, in eval mode, its text attention recorded; `fill_with_small_views` makes it run."""
    vlm_config = copy.deepcopy(vlm_config)
    vlm_config.get_text_config()._experts_implementation = "eager"  # grouped products refuse expanded weights
    with torch.device("meta"):
        vlm = AutoModelForImageTextToText.from_config(vlm_config, dtype=torch.float32)
    record_attention(vlm)
    return vlm.eval()


def fill_with_small_views(model: PreTrainedModel) -> None:
    """Give a meta-device model parameters on the CPU that take no memory: a few random numbers, expanded to shape.

    A weight matrix becomes a random column repeated over the inputs, so a linear layer is a sum and a scaling: even a
    72B model runs in seconds.

    Raises:
        ValueError: even those few would be more than the largest VLMs have: a damaged config.
    """
    small = sum(p.shape[: max(p.ndim - 1, 1)].numel() for p in model.parameters())
    small += sum(buffer.numel() for buffer in model.buffers())
    if small > _MAX_SMALL:
        raise ValueError(
            f"The layers of this '{model.config.model_type}' are {small:,} values wide, all together; no VLM has more "
            f"than {_MAX_SMALL:,}. The config is damaged."
        )
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            shape = list(parameter.shape)
            if isinstance(module, nn.Embedding):
                shape[0] = 1
            elif parameter.ndim > 1:
                shape[-1] = 1
            small = torch.rand(shape, generator=generator) + 0.5
            filled = nn.Parameter(small.expand(parameter.shape), requires_grad=False)
            filled._is_hf_initialized = True  # the library's initialisers leave it alone
            module._parameters[name] = filled
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.zeros_like(buffer, device="cpu")
        if type(module) is nn.Linear:
            module.forward = partial(_rank_one_linear, module)
    model.initialize_weights()  # recomputes the buffers (rotary frequencies, embedding scales)


def _rank_one_linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    y = x.sum(-1, keepdim=True) * module.weight[:, 0]
    return y if module.bias is None else y + module.bias


def _recognise_rope(name: str, layer: int, key: torch.Tensor, frequencies: dict[str, torch.Tensor]) -> dict:
    """Which rotary embedding turns the key at position 0 into the key at position 1; `key` is (2, H, D)."""
    if torch.equal(key[0], key[1]):
        return {"rope": None, "rope_start": 0, "rope_order": None, "inv_freq": None}
    for buffer, inv_freq in frequencies.items():
        inv_freq, free = inv_freq.double(), key.shape[-1] - 2 * inv_freq.shape[-1]
        for start in sorted({0, free}) if free >= 0 else ():
            for style in ("half", "interleaved"):
                # Some M-RoPE families use the frequencies in another order than the buffer holds them.
                measured = _rotation_angles(key, len(inv_freq), style, start)
                sorted_like = (measured[:, None] - inv_freq).abs().argmin(1)
                for order in (torch.arange(len(inv_freq)), sorted_like):
                    angles = inv_freq[order]
                    rotated = apply_rope(key[0], angles.cos(), angles.sin(), style, start)
                    if torch.allclose(rotated, key[1], rtol=1e-4, atol=1e-4 * key.abs().max()):
                        order = None if order.equal(torch.arange(len(order))) else order.tolist()
                        return {"rope": style, "rope_start": start, "rope_order": order, "inv_freq": buffer}
    raise UnsupportedBackboneError(
        f"'{name}', layer {layer}: its rotary position embedding is none that the expert can follow "
        f"(tried pairs from two halves and interleaved pairs with the frequencies {sorted(frequencies)})."
    )


def _rotation_angles(key: torch.Tensor, num_pairs: int, style: str, start: int) -> torch.Tensor:
    """The angle (num_pairs,) by which each pair of values turns between the two keys (2, H, D)."""
    rotary = key[..., start : start + 2 * num_pairs]
    pairs = rotary.unflatten(-1, (2, -1) if style == "half" else (-1, 2))
    a, b = pairs.unbind(-2 if style == "half" else -1)  # each (2, H, num_pairs)
    return torch.atan2((a[0] * b[1] - b[0] * a[1]).sum(0), (a[0] * a[1] + b[0] * b[1]).sum(0))


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
def capture_positions(rotary: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the `position_ids` with which a rotary module is called: (B, S), (1, S), or with a leading axis (M-RoPE).

    The VLM computes them itself (from padding, image grids, ...); asking it is the only rule that fits every family.
    """
    captured: list[torch.Tensor] = []

    def note(args: tuple, kwargs: dict) -> None:
        captured.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    with call_hook(rotary, before=note):
        yield captured


@contextmanager
def logits_at(vlm: PreTrainedModel, rows: torch.Tensor | None) -> Iterator[None]:
    """Make the VLM compute logits at some positions only, so that (B, S, vocabulary) never exists.

    The hidden states are gathered in front of the output embedding, inside the VLM's own forward, so that whatever
    the family does to its logits afterwards (soft-capping, scaling) is kept.

    Args:
        rows: flat indices (n,) into B·S; the VLM then returns logits (1, n, vocabulary). None: all, (B, S, vocabulary).
    """
    if rows is None:
        yield
        return

    def select(args: tuple, _) -> tuple:
        hidden = args[0].flatten(0, 1)  # (B·S, width)
        return (hidden[rows.to(hidden.device)][None],)

    with call_hook(vlm.get_output_embeddings(), before=select):
        yield


@contextmanager
def logits_of(vlm: PreTrainedModel, tokens: torch.Tensor) -> Iterator[None]:
    """Make the VLM compute the logits of some tokens (n,) only; those of all others are -inf.

    Decoding then reads n rows of the output matrix instead of the whole vocabulary. An output layer that is not a plain
    `nn.Linear` (quantised, wrapped by peft, or offloaded by accelerate) is left as it is.
    """
    layer = vlm.get_output_embeddings()
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

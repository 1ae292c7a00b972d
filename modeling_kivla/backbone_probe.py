"""Measure what an action expert can read of a VLM: layers, heads, sizes and rotary embeddings, without its weights.

Done once, when a config is made; `backbone_attention` does the reading, at every forward.
"""

import copy
import inspect
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from .backbone_attention import (
    PrefixRecorder,
    UnsupportedBackboneError,
    apply_rope,
    decoder_layers,
    find_language_head,
    find_text_decoder,
    record_attention,
)
from .damaged_files import check_width

_NO_ROPE = {"rope": None, "rope_start": 0, "rope_order": None, "inv_freq": None}


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
        (which frequency turns which pair; None if simply in order). `inv_freq_scale`, where there is one, names a
        tensor of the decoder: the logarithm of a scale that the VLM learns for its frequencies (Mistral Large 4).

    Raises:
        UnsupportedBackboneError: cross-attention or encoder-decoder models, models whose attention is not replaceable,
            or with a rotary embedding of another kind.
    """
    # Refused by what the config says, before anything is built.
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

    # One token at positions 0 and 1 through the text decoder, its attention recorded.
    vlm = build_without_weights(vlm_config)
    decoder = find_text_decoder(vlm)
    fill_with_tiny_weights(decoder)

    recorder = PrefixRecorder(layers=None)
    ran, entered = set(), []
    layers = decoder_layers(decoder)
    run_once_if_nothing_is_recorded(decoder, recorder)
    hooks = [module.register_forward_hook(lambda m, *_: ran.add(m)) for module in layers]
    hooks.append(
        layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    )
    tokens, positions = torch.ones(2, 1, dtype=torch.long), torch.arange(2)[:, None]
    try:
        with torch.no_grad(), _ProductsOfExpandedWeights():
            decoder(input_ids=tokens, position_ids=positions, use_cache=False, kivla_recorder=recorder)
    except (TypeError, ValueError) as error:
        raise UnsupportedBackboneError(
            f"'{name}': {type(decoder).__name__} does not run on tokens alone ({error}). An expert reads a decoder "
            "that has text and images in one sequence. Choose such a VLM."
        ) from error
    for hook in hooks:
        hook.remove()

    # Refused by what ran: without keys and values of the image tokens there is nothing to read.
    if skipped := [type(m).__name__ for m in layers if m not in ran]:
        raise UnsupportedBackboneError(
            f"'{name}' reads the image by cross-attention ({skipped[0]} does not run without an image): image tokens "
            "have no keys and values of their own in the prompt. Choose a VLM that puts image tokens in its sequence."
        )
    if not recorder.key_values:
        raise UnsupportedBackboneError(
            f"'{name}' recorded no keys and values: its attention does not go through transformers' "
            "AttentionInterface. Choose a VLM whose class supports `attn_implementation`."
        )

    # Sizes from the shapes of keys and values, the rotary embedding from how the two keys differ. Positions that were
    # added to the tokens before the first layer are in keys of any kind, and there is no rotation to be found.
    added_to_tokens = not _rows_are_alike(entered[0])
    frequencies = [] if added_to_tokens else _frequencies(decoder)
    kv_layers = []
    for layer, (key, value) in sorted(recorder.key_values.items()):
        key_at = key[:, :, 0].double()  # (2, H, D)
        no_rotation = added_to_tokens or torch.equal(key_at[0], key_at[1])
        kv_layers.append(
            {
                "layer": layer,
                "num_attention_heads": recorder.num_attention_heads[layer],
                "num_key_value_heads": key.shape[1],
                "key_dim": key.shape[-1],
                "value_dim": value.shape[-1],
                **(_NO_ROPE if no_rotation else _recognise_rope(name, layer, key_at, frequencies)),
            }
        )
    return kv_layers


def build_without_weights(vlm_config: PreTrainedConfig) -> PreTrainedModel:
    """The VLM on the meta device, in eval mode, its text attention recorded; `fill_with_tiny_weights` makes it run.

    Raises:
        UnsupportedBackboneError: it reads no images, says no tokens, or its attention cannot be recorded.
    """
    vlm_config = copy.deepcopy(vlm_config)
    vlm_config.get_text_config()._experts_implementation = "eager"  # grouped products refuse expanded weights
    with torch.device("meta"):
        vlm = AutoModelForImageTextToText.from_config(vlm_config, dtype=torch.float32)
    # Some classes forget to name their modalities, others take pictures by arguments that they pass on unnamed.
    named = inspect.signature(vlm.forward).parameters
    takes_pictures = any("pixel" in argument or "image" in argument for argument in named)
    if not takes_pictures and not {"image", "video"}.intersection(vlm.input_modalities):
        raise UnsupportedBackboneError(
            f"'{vlm_config.model_type}' reads no images: {type(vlm).__name__} takes {vlm.input_modalities}. Give a "
            "model that reads images and text, such as PaliGemma or Qwen-VL."
        )
    find_language_head(vlm)
    record_attention(vlm)
    return vlm.eval()


def fill_with_tiny_weights(model: PreTrainedModel) -> None:
    """Give a meta-device model parameters on the CPU that take no memory: a few random numbers, expanded to shape.

    A weight matrix becomes a random column repeated over the inputs; the matrices of a mixture's experts, which are
    one tensor, become the same one. Norms scale all values alike.

    Raises:
        ValueError: even those few would be more than the largest VLMs have: a damaged config.
    """
    check_width(model)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        # Parameters: embeddings are expanded along their first axis, so that all tokens are alike.
        for name, parameter in module.named_parameters(recurse=False):
            shape = list(parameter.shape)
            if isinstance(module, nn.Embedding):
                shape[0] = 1
            elif parameter.ndim > 1:
                shape[-1] = 1
                shape[:-2] = [1] * (parameter.ndim - 2)
            small = torch.rand(shape, generator=generator) + 0.5
            if parameter.ndim == 1 and name == "weight":
                small.fill_(1.0)  # a norm behind the rotary embedding would hide it
            filled = nn.Parameter(small.expand(parameter.shape), requires_grad=False)
            vars(filled)["_is_hf_initialized"] = True  # the library's initialisers leave it alone
            module._parameters[name] = filled
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    model.initialize_weights()  # recomputes the buffers (rotary frequencies, embedding scales)
    for buffer, _ in list(model.named_buffers()):
        if "inv_freq" in buffer:
            for _, scale in _other_tensors(model, buffer):  # none at first: it would not be noticed
                scale.data.copy_(torch.rand(scale.shape, generator=generator))


def run_once_if_nothing_is_recorded(decoder: nn.Module, recorder: PrefixRecorder) -> None:
    """Let a token mixer without keys and values (it has a `layer_idx`) return what the first of its kind returned.

    Linear attention is slow where its kernels are missing, and what it computes does not matter here.
    """
    returned: dict[tuple, object] = {}

    def forward(mixer: nn.Module, kind: tuple, *args, **kwargs):
        if kind not in returned:
            num_records = recorder.num_records
            output = type(mixer).forward(mixer, *args, **kwargs)
            if recorder.num_records > num_records:
                return output
            returned[kind] = output
        return returned[kind]

    for mixer in decoder.modules():
        if "layer_idx" in vars(mixer):
            modules = tuple((name, type(module)) for name, module in mixer.named_modules())
            shapes = tuple((name, parameter.shape) for name, parameter in mixer.named_parameters())
            mixer.forward = partial(forward, mixer, (modules, shapes))


class _ProductsOfExpandedWeights(TorchDispatchMode):
    """A product with a matrix that is one row or one column over and over is cheap: a model of 1000B runs in seconds.

    Whoever asks for it: linear layers, experts, products that a model writes by hand.
    """

    _MM, _BMM, _ADDMM = torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is self._ADDMM and not kwargs:
            return args[0] + self._product(self._MM, *args[1:])
        if func in (self._MM, self._BMM):
            return self._product(func, *args)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _product(product, x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        if matrix.stride(-2) == 0:  # all rows are one
            return x.sum(-1, keepdim=True) * matrix[..., :1, :]
        if matrix.stride(-1) == 0:  # all columns are one
            return product(x, matrix[..., :1]).repeat_interleave(matrix.shape[-1], -1)
        return product(x, matrix)


def _rows_are_alike(hidden: torch.Tensor) -> bool:
    """Whether the two rows of a batch are one, where other axes (streams of hidden states) may come before it."""
    return any(torch.equal(*hidden.unbind(axis)) for axis, size in enumerate(hidden.shape) if size == 2)


def _other_tensors(decoder: PreTrainedModel, buffer: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors beside a buffer of frequencies that have its shape: what may scale them."""
    module, _, name = buffer.rpartition(".")
    rotary = decoder.get_submodule(module)
    for other, tensor in (*rotary.named_parameters(recurse=False), *rotary.named_buffers(recurse=False)):
        if "inv_freq" not in other and tensor.shape == getattr(rotary, name).shape:
            yield f"{module}.{other}" if module else other, tensor


def _frequencies(decoder: PreTrainedModel) -> list[tuple[dict, torch.Tensor]]:
    """What the rotary embeddings of a decoder may turn by: names, and the frequencies (R,).

    Raises:
        UnsupportedBackboneError: nobody computes them where a model is loaded.
    """
    found = []
    buffers = [(name, buffer) for name, buffer in decoder.named_buffers() if buffer.is_floating_point()]
    for buffer, inv_freq in sorted(buffers, key=lambda named: "inv_freq" not in named[0]):
        if "inv_freq" in buffer:
            if not inv_freq.any():
                raise UnsupportedBackboneError(
                    f"'{decoder.config.model_type}': `_init_weights` of {type(decoder).__name__} does not compute the "
                    f"rotary frequencies {buffer}, and no file has them: this transformers would load the VLM with "
                    "arbitrary ones. Compute them there (transformers' own models show how)."
                )
            found.append(({"inv_freq": buffer}, inv_freq.double()))
            for scale, tensor in _other_tensors(decoder, buffer):
                found.append(({"inv_freq": buffer, "inv_freq_scale": scale}, inv_freq.double() * tensor.double().exp()))
        elif inv_freq.ndim == 1:  # by another name
            found.append(({"inv_freq": buffer}, inv_freq.double()))
    return found


def _recognise_rope(name: str, layer: int, key: torch.Tensor, frequencies: list[tuple[dict, torch.Tensor]]) -> dict:
    """Which rotary embedding turns the key at position 0 into the key at position 1; `key` is (2, H, D)."""
    for names, inv_freq in frequencies:
        free = key.shape[-1] - 2 * inv_freq.shape[-1]
        for start in sorted({0, free}) if free >= 0 else ():
            for style in ("half", "interleaved"):
                # Some M-RoPE families use the frequencies in another order than the buffer holds them.
                measured = _rotation_angles(key, len(inv_freq), style, start)
                sorted_like = (measured[:, None] - inv_freq).abs().argmin(1)
                for order in (torch.arange(len(inv_freq)), sorted_like):
                    angles = inv_freq[order]
                    rotated = apply_rope(key[0], angles.cos(), angles.sin(), style, start)
                    is_permutation = len(order.unique()) == len(order)
                    if is_permutation and _are_alike(rotated, key[1], slice(start, start + 2 * len(order))):
                        order = None if order.equal(torch.arange(len(order))) else order.tolist()
                        return {"rope": style, "rope_start": start, "rope_order": order, **names}
    raise UnsupportedBackboneError(
        f"'{name}', layer {layer}: its rotary position embedding is none that the expert can follow "
        "(tried pairs from two halves and interleaved pairs with the frequencies "
        f"{sorted({names['inv_freq'] for names, _ in frequencies})}). They must be in a buffer of the decoder."
    )


def _are_alike(a: torch.Tensor, b: torch.Tensor, rotary: slice) -> bool:
    """Whether two keys (H, D) are the same within rounding. What turns may be small beside what does not."""
    turns = torch.zeros(a.shape[-1], dtype=torch.bool)
    turns[rotary] = True
    parts = ((a[:, turns], b[:, turns]), (a[:, ~turns], b[:, ~turns]))
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-4 * float(y.abs().max())) for x, y in parts if y.numel())


def _rotation_angles(key: torch.Tensor, num_pairs: int, style: str, start: int) -> torch.Tensor:
    """The angle (num_pairs,) by which each pair of values turns between the two keys (2, H, D)."""
    rotary = key[..., start : start + 2 * num_pairs]
    pairs = rotary.unflatten(-1, (2, -1) if style == "half" else (-1, 2))
    a, b = pairs.unbind(-2 if style == "half" else -1)  # each (2, H, num_pairs)
    return torch.atan2((a[0] * b[1] - b[0] * a[1]).sum(0), (a[0] * a[1] + b[0] * b[1]).sum(0))

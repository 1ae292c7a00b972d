"""One pass of the VLM over prompts, with everything noted on the way that the expert and the losses need."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from .backbone_attention import (
    AllRead,
    PrefixRecorder,
    capture_positions,
    decoder_layers,
    find_text_decoder,
    handed_over,
)
from .module_structure import what_stands_around
from .next_token import ClosedChoice
from .token_logits import token_logits

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]

# By text decoder, the layers that it was seen to run once each: a layer's first keys and values are its last ones.
_RUN_ONCE: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()


class VLMPass(NamedTuple):
    """What a pass gave.

    Attributes:
        output: the VLM's own `ModelOutput`.
        logits: at the rows that were asked for; those that choose among candidates apart.
        key_values: of each layer that the expert reads: K and V (B, num_key_value_heads, S, D).
        position: (B, S) or (1, S), the positions that the VLM gave its tokens; (axes, B, S) for M-RoPE; None without
            rotary embedding.
    """

    output: Any
    logits: tuple[torch.Tensor, torch.Tensor | None]
    key_values: KeyValues
    position: torch.Tensor | None


def rotary_frequencies(decoder: PreTrainedModel, layers: list[dict]) -> dict[str, torch.Tensor]:
    """The rotary frequencies (R,) of the layers of an expert, by the name of their buffer in the VLM's text decoder.

    Where a VLM learns a scale of its frequencies (`inv_freq_scale` names its logarithm), it is theirs to learn: no
    gradient of the expert goes there.
    """
    frequencies = {}
    for layer in layers:
        if layer["rope"]:
            frequencies[layer["inv_freq"]] = decoder.get_buffer(layer["inv_freq"])
            if scale := layer.get("inv_freq_scale"):
                module, _, name = scale.rpartition(".")
                learned = getattr(decoder.get_submodule(module), name).detach()
                frequencies[layer["inv_freq"]] = frequencies[layer["inv_freq"]] * learned.float().exp()
    return frequencies


def run_recorded(
    run: Callable, decoder: PreTrainedModel, layers: list[dict], read: bool = True, may_end_early: bool = False
) -> tuple[Any, KeyValues, torch.Tensor | None]:
    """What `run()`, which runs the text decoder, returns; with `key_values` and `position` of it.

    Args:
        may_end_early: whether the run may end, with None, once everything was read.
    """
    names = rotary_frequencies(decoder, layers)
    rotary = decoder.get_submodule(next(iter(names)).rpartition(".")[0]) if names else None
    there = [id(layer) for layer in decoder_layers(decoder)]
    ends_pass = may_end_early and _RUN_ONCE.get(decoder) == there
    recorder = PrefixRecorder([layer["layer"] for layer in layers] if read else [], ends_pass)
    output = None
    with suppress(AllRead), capture_positions(rotary) as positions, handed_over(recorder, decoder):
        output = run()
    recorder.close()  # gradient checkpointing runs the layers again, and they must not be recorded twice
    if read and recorder.num_records == len(layers):
        _RUN_ONCE[decoder] = there
    key_values = [recorder.key_values[layer["layer"]] for layer in layers] if read else []
    return output, key_values, positions[-1] if positions else None


def run_vlm(
    vlm: PreTrainedModel,
    layers: list[dict],
    read: bool,
    rows: torch.Tensor,
    closed: ClosedChoice | None = None,
    **vlm_inputs,
) -> VLMPass:
    """Run the VLM's own forward once, and note keys and values, positions, and logits at some rows alone.

    Args:
        layers: `config.expert_layers`.
        read: whether keys and values are wanted.
        rows, closed: as in `token_logits`.
    """
    with token_logits(vlm, rows, closed) as split:
        run = partial(vlm, **vlm_inputs, use_cache=False)
        output, key_values, position = run_recorded(run, find_text_decoder(vlm), layers, read)
        return VLMPass(output, split(output.logits), key_values, position)


@torch.no_grad()
def read_prompt(vlm: PreTrainedModel, layers: list[dict], vlm_inputs: dict) -> tuple[KeyValues, torch.Tensor | None]:
    """`key_values` and `position` of `run_vlm`, where nothing else is wanted: the VLM stops once they are read.

    So the last layer's attention and MLP do not run, nor layers after it that have no keys and values. The first pass
    of a VLM is whole, as it could run a layer several times; and so is each one that something else follows: hooks,
    replaced forwards, several processes.
    """
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    is_watched = is_distributed or what_stands_around(vlm) is not None
    with token_logits(vlm, torch.empty(0, dtype=torch.long)):
        run = partial(vlm, **vlm_inputs, use_cache=False)
        _, key_values, position = run_recorded(run, find_text_decoder(vlm), layers, may_end_early=not is_watched)
    return key_values, position

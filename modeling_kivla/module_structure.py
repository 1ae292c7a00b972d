"""What a module computes, as plain data: all that decides about it beside its inputs and the values of its weights.

Compiled code is made for one such structure. Whatever is done to a policy later (moved, halved, quantised, resized, an
adapter put on, switched off or merged, another attention, another config) changes it, and so asks for other code.
"""

from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers import PreTrainedConfig
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from .call_hooks import has_other_hooks

# Hooks from these files leave a call alone that does not ask for them.
_QUIET_HOOKS = (has_other_hooks.__module__, maybe_install_capturing_hooks.__module__)
# What every module has (its weights, parts and hooks are looked at by themselves), and what says where a model is from.
_SKIPPED = {*vars(nn.Module())} - {"training"} | {
    *("name_or_path", "_name_or_path", "_commit_hash", "transformers_version", "architectures"),
    *("model_type", "_is_hf_initialized"),
    "dtype",  # in a config: what the files were, if any; weights are looked at by themselves
}


def structure(module: nn.Module) -> tuple:
    """Plain data that is equal for two modules, also of two processes, if what is compiled of one serves the other.

    Not seen: a method that is replaced in a class, for all of its objects.
    """
    parts, configs = [], {}
    for name, part in module.named_modules():
        own = {key: value for key, value in vars(part).items() if key not in _SKIPPED}
        here = {id(value): value for value in own.values() if isinstance(value, PreTrainedConfig)}
        configs |= here  # most parts hold the same ones
        settings = ((key, plain(value)) for key, value in own.items() if id(value) not in here)
        parts.append((name, type(part).__qualname__, *settings))
    tensors = [(name, str(x.dtype), tuple(x.shape), x.stride()) for name, x in weights(module)]
    return tuple(parts), tuple(tensors), tuple(plain(config) for config in configs.values())


def why_not_compiled(module: nn.Module) -> str | None:
    """What about a module compiled code for a CPU would not do, in words; None if nothing."""
    for name, x in weights(module):
        if x.device.type != "cpu":
            return f"`{name}` is on {x.device}"
        if type(x) not in (torch.Tensor, nn.Parameter) or x.layout is not torch.strided:
            return f"`{name}` is a {type(x).__name__} ({x.layout})"
    return what_stands_around(module)


def what_stands_around(module: nn.Module) -> str | None:
    """Hooks and replaced forwards, which want to see a call begin and end, in words; None if there are none."""
    if _global_forward_hooks or _global_forward_pre_hooks:
        return "there are hooks on all modules"
    for name, part in module.named_modules():
        if "forward" in vars(part):
            return f"the forward of `{name}` was replaced"
        hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        if any(hook.__module__ not in _QUIET_HOOKS for hook in hooks):
            return f"`{name}` has hooks"
    return None


def weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name, those of today: another may have taken the place of one that was there."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def plain(value):
    """Numbers, strings, functions by name, configs and containers of them, as tuples; None for anything else."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, PreTrainedConfig):
        value = vars(value)
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return tuple((plain(key), plain(item)) for key, item in items if key not in _SKIPPED)
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    return value.__qualname__ if isinstance(value, (BuiltinFunctionType, FunctionType)) else None

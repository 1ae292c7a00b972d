"""Hooks that last for one call: what one thread asks of a shared module never reaches another thread's call.

A policy server answers several robots from one model. So nothing that a call needs may be put on the model: a module
gets one pair of hooks, once and for good, and they look up what the running call wants in a context variable, of which
every thread has its own.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, update_wrapper
from types import MethodType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

# Positional and keyword arguments -> other positional ones, or None. The dict is the call's own: it may be added to.
_Before = Callable[[tuple, dict], tuple | None]
_After = Callable[[Any], Any]  # what the module returned -> something else, or None

# By module, what the call that runs in this thread wants. Never changed in place.
_WANTED: ContextVar[dict[nn.Module, tuple[_Before, _After]]] = ContextVar("kivla_call_hooks")
_NOTHING: dict = {}
_INSTALLING = threading.Lock()


def _nothing(*_) -> None:
    """A hook that changes nothing."""


@contextmanager
def call_hook(module: nn.Module, before: _Before = _nothing, after: _After = _nothing) -> Iterator[None]:
    """Put hooks on a module that only this thread's calls run, while the context lasts; one pair at a time.

    They live outside the module, so copies of it, saving and parallel wrappers know nothing of them.
    """
    if module in _WANTED.get(_NOTHING):
        raise RuntimeError(f"This call has hooks on this {type(module).__name__} already.")
    _install(module)
    token = _WANTED.set({**_WANTED.get(_NOTHING), module: (before, after)})
    try:
        yield
    finally:
        _WANTED.reset(token)


def _install(module: nn.Module) -> None:
    """Once for each module; a copy of a module brings its hooks along."""
    if _run_before in module._forward_pre_hooks.values():
        return
    with _INSTALLING:
        if _run_before not in module._forward_pre_hooks.values():
            module.register_forward_hook(_run_after)
            module.register_forward_pre_hook(_run_before, with_kwargs=True)


def _run_before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    before, _ = _WANTED.get(_NOTHING).get(module, (_nothing, _nothing))
    changed = before(args, kwargs)
    return None if changed is None else (changed, kwargs)


def _run_after(module: nn.Module, args: tuple, output: object) -> object | None:
    _, after = _WANTED.get(_NOTHING).get(module, (_nothing, _nothing))
    return after(output)


def has_other_hooks(module: nn.Module) -> bool:
    """Whether a call of a module also runs hooks that are not from here (of FSDP, ZeRO-3, accelerate, or a user)."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(hook not in (_run_before, _run_after) for hook in hooks)


def call_view(model: PreTrainedModel) -> PreTrainedModel:
    """The same model as another object, for one call of `generate`: the same weights, layers and hooks.

    `generate` keeps notes on the model between two tokens, and reads its defaults there: the Qwen VLMs their
    `rope_deltas`, all of them `generation_config`. On a view, these are the call's own.
    """
    view = copy.copy(model)
    vars(view)["_modules"] = {
        name: call_view(child) if isinstance(child, PreTrainedModel) else child
        for name, child in model._modules.items()
    }
    for name, value in vars(model).items():  # accelerate puts bound methods on a model that it moves
        if isinstance(value, MethodType) and value.__self__ is model:
            vars(view)[name] = MethodType(value.__func__, view)
        elif isinstance(value, partial) and value.args[:1] == (model,):
            vars(view)[name] = update_wrapper(partial(value.func, view, *value.args[1:], **value.keywords), value)
    return view

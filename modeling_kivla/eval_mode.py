"""Act with a model that is in training: without dropout, and back in training mode afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_lock = threading.Lock()
_acting: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()  # calls; what was in training


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` into eval mode, and back once no call is left.

    Several threads may act with one model: the first to come switches, the last to go switches back.
    """
    with _lock:
        calls, trained = _acting.get(model, (0, []))
        if calls == 0:
            trained = [module for module in model.modules() if module.training]
            for module in trained:
                module.training = False
        _acting[model] = calls + 1, trained
    try:
        yield
    finally:
        with _lock:
            calls, trained = _acting[model]
            _acting[model] = calls - 1, trained
            if calls == 1:
                del _acting[model]
                for module in trained:
                    module.training = True


__all__ = ["eval_mode"]

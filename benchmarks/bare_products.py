"""The matrix products and attention calls of something, again and by themselves: what it cannot do without."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution)
ATTENTION = (aten._scaled_dot_product_flash_attention_for_cpu,)


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[Callable[[], Any]] = []
        self.flops = 0  # (FlopCounterMode puts hooks on all modules, and a policy that is watched runs as a whole.)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=output)
        if func.overloadpacket in PRODUCTS:  # again into the memory that is there
            into = func.overloadpacket.out
            self.calls.append(lambda: into(*args, **kwargs, out=output))
        elif func.overloadpacket in ATTENTION:
            self.calls.append(lambda: func(*args, **kwargs))
        return output


def bare_products(call: Callable[[], object]) -> Callable[[], None]:
    """Run `call`, which computes without gradients, and return its matrix products and attention calls alone.

    Raises:
        AssertionError: the call has products that are not among them.
    """
    with _Recorder() as recorder, torch.no_grad():
        call()

    @torch.no_grad()
    def run():
        for product in recorder.calls:
            product()

    with FlopCounterMode(display=False) as counter:
        run()
    found = counter.get_total_flops()
    assert recorder.flops == found > 0, f"of {recorder.flops:,} operations in products only {found:,} are found again"
    return run

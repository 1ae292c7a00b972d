"""In which type attention is computed: on a CPU in float32, whatever the layers around it compute in.

What CPUs are fast at in bfloat16 are layers. Attention gains little from it and loses digits; backward is slower.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def attention_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type of attention on a device, where layers compute in `dtype`."""
    return torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype


def is_autocast_on(device: torch.device) -> bool:
    """Whether autocast would have attention computed in half precision on a CPU."""
    return device.type == "cpu" and torch.is_autocast_enabled("cpu")


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Keep autocast out of attention on a CPU; elsewhere it is as it was."""
    return torch.autocast("cpu", enabled=False) if is_autocast_on(device) else nullcontext()

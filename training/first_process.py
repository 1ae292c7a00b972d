"""What one process makes for all of a run."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def made_by_first_process(make: Callable[[], T]) -> T:
    """Call this on the first process of a run only, and give every process what it returned.

    Args:
        make: returns something that can be pickled.

    Raises:
        ValueError: `make` raised it; then on every process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return make()
    made: list = [None]
    if dist.get_rank() == 0:
        try:
            made = [make()]
        except ValueError as error:  # or the others would wait for ever
            made = [error]
    dist.broadcast_object_list(made, src=0)
    if isinstance(made[0], ValueError):
        raise made[0]
    return made[0]


__all__ = ["made_by_first_process"]

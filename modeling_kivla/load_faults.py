"""Whose fault it is when a policy does not load: its files', or that of the call and the machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

# What the libraries raise for a config or weights that make no sense, depending on where they notice it
_DAMAGE = (
    *(AttributeError, ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError),
    *(SafetensorError, StrictDataclassError),
)


@contextmanager
def damaged_files_named(path: str, load_meta: Callable[[], object]) -> Iterator[None]:
    """Turn errors of loading a policy into one that blames its files, if they are to blame.

    The same errors come from a device that is not there, or from an argument that makes no sense. So the files are
    tried alone: on the meta device, which reads names and shapes and takes no memory. If they load, the error is
    raised as it came.

    Args:
        path: what was to be loaded.
        load_meta: loads it with `device_map="meta"` and no other argument than where it is.

    Raises:
        ValueError: config or weights are damaged, or do not fit each other.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _DAMAGE as error:
        try:
            with torch.device("cpu"):
                load_meta()
        except _DAMAGE as fault:
            raise ValueError(
                f"{path} cannot be loaded as a policy: its config or weights are damaged, or do not fit each other "
                f"({type(fault).__name__}: {str(fault)[:500]}). Download or save it again."
            ) from error
        error.add_note(f"The files of {path} are in order: an argument is to blame, or this machine.")
        raise


__all__ = ["damaged_files_named"]

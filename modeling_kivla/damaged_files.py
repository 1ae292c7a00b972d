"""What a damaged or hostile folder of a policy is refused for: sizes without end, weights that are not there.

A folder from the Hub may say anything. Without these checks a config could make the library build layers, or allocate
memory, without end; and a policy whose weights were drawn at random would move a robot.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel

from .backbone_attention import find_text_decoder

# What the libraries raise for a config or weights that make no sense, depending on where they notice it
_DAMAGE = (
    *(AttributeError, ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError),
    *(SafetensorError, StrictDataclassError),
)
# Fields of configs from which layers and labels are built one by one, before any weights are looked at
_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "depth", "num_labels")
_MAX_COUNT = 4096
_MAX_SIZE = 1 << 16  # of chunks, actions and the like: batches and noise are made of this size
_MAX_SMALL = 1 << 26  # a mixture of 256 experts in 61 layers has a sixth of it


def check_counts(config: dict, where: str = "") -> None:
    """Refuse a config, and the configs in it, that would build layers without end.

    Looks into dicts, which is how configs come from files.

    Raises:
        ValueError: naming the field.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            check_counts(value, f"{where}{name}.")
        elif name in _COUNTS and isinstance(value, int | float) and not value <= _MAX_COUNT:
            raise ValueError(
                f"{where}{name} must be at most {_MAX_COUNT}, got {str(value)[:200]}. The config is damaged."
            )


def check_size(name: str, size: int) -> None:
    """Refuse a field of the config that is less than 1 or would make tensors of any size.

    Raises:
        ValueError: naming the field.
    """
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}.")
    if size > _MAX_SIZE:
        raise ValueError(f"{name} must be at most {_MAX_SIZE}, got {str(size)[:200]}.")


def check_width(model: PreTrainedModel) -> None:
    """Refuse a model on the meta device whose layers are wider, all together, than those of any VLM.

    Raises:
        ValueError: naming the VLM.
    """
    small = sum(p.shape[max(p.ndim - 2, 0) : max(p.ndim - 1, 1)].numel() for p in model.parameters())
    small += sum(buffer.numel() for buffer in model.buffers())
    if small > _MAX_SMALL:
        raise ValueError(
            f"The layers of this '{model.config.model_type}' are {small:,} values wide, all together; no VLM has more "
            f"than {_MAX_SMALL:,}. The config is damaged."
        )


def check_all_weights(model: PreTrainedModel, load_config, loading_info) -> None:
    """Refuse files that lack weights of the policy, before there is memory for these.

    The library would go on with a warning and draw them at random, and the robot would move with them; a damaged config
    would also get memory of any size.

    Args:
        load_config, loading_info: what the library's loading hands to `_finalize_model_loading`.

    Raises:
        ValueError: naming some of the weights.
    """
    lacking = dict.fromkeys(loading_info.missing_keys - model.all_tied_weights_keys.keys(), "not in the files")
    if not load_config.ignore_mismatched_sizes:
        for name, stored, expected in loading_info.mismatched_keys:
            lacking[name] = f"{tuple(stored)} in the files, {tuple(expected)} by the config"
    if lacking:
        named = "; ".join(f"{name}: {what}" for name, what in sorted(lacking.items())[:5])
        raise ValueError(
            f"{load_config.pretrained_model_name_or_path} is not a whole policy: {len(lacking)} of its weights are "
            f"missing or of another size ({named}{', ...' if len(lacking) > 5 else ''}). A policy does not act "
            "with weights drawn at random. Download or save it again; to give a VLM a new action expert, use "
            "KIVLAForActionPrediction.from_vlm."
        )


def check_text_weights(vlm: PreTrainedModel, missing: Iterable[str]) -> None:
    """Refuse a VLM whose text decoder was not in its files, all or in part: the library drew it at random and warned.

    What towers lack is left to that warning: not every part of them is used.

    Args:
        missing: names of the weights that were not found.

    Raises:
        ValueError: naming some of the weights.
    """
    decoder = set(find_text_decoder(vlm).parameters())
    of_text = {name for name, parameter in vlm.named_parameters() if parameter in decoder}
    if lacking := sorted(of_text.intersection(missing)):
        raise ValueError(
            f"{vlm.name_or_path} lacks {len(lacking)} weights of the text decoder of '{vlm.config.model_type}' "
            f"({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}), which would be drawn at random. Either "
            "the files are not complete, or this version of transformers looks for them under other names."
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


__all__ = [
    "check_all_weights",
    "check_counts",
    "check_size",
    "check_text_weights",
    "check_width",
    "damaged_files_named",
]

"""Policies that are saved as an adapter (LoRA) beside a stated base: a VLM, or another policy."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file, find_adapter_config_file, is_peft_available

from .configuration_kivla import KIVLAConfig

# Arguments of `from_pretrained` that say where the adapter is, and so do not hold for its base
_OF_ADAPTER = ("revision", "subfolder", "variant", "adapter_kwargs", "adapter_name", "config")
# Those that hold for both
_OF_BOTH = ("cache_dir", "force_download", "local_files_only", "token", "trust_remote_code")
# Fields that the base brings itself
_OF_BASE = ("vlm_config", "kv_layers")


def adapter_in(path: str, kwargs: dict) -> str | None:
    """The folder or Hub id of the adapter that `from_pretrained(path, **kwargs)` is to load; None if there is none."""
    named = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
    if named is not None or path is None or not is_peft_available():
        return named
    folder = Path(path, kwargs.get("subfolder") or "")
    has_weights = any(folder.glob("*model*.index.json")) or (folder / "model.safetensors").is_file()
    return None if has_weights or find_adapter_config_file(str(path), **_where(kwargs)) is None else path


def load_base(cls: type[PreTrainedModel], adapter: str, kwargs: dict) -> tuple[PreTrainedModel, bool]:
    """Load the policy that an adapter was trained on, as large as it was then; and say if its action expert is random.

    Args:
        kwargs: of `from_pretrained`.

    Raises:
        ValueError: the adapter does not say enough to make it.
    """
    # Which base, and is it a VLM or a policy?
    file = find_adapter_config_file(str(adapter), **_where(kwargs))
    base = json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"]
    if not base:
        raise ValueError(
            f"{adapter} is an adapter, but its adapter_config.json names no base (base_model_name_or_path). Load the "
            "base yourself, and the adapter with peft.PeftModel.from_pretrained(base, adapter)."
        )
    of_base = {name: value for name, value in kwargs.items() if name not in _OF_ADAPTER}
    base_config = AutoConfig.from_pretrained(base, **{name: kwargs[name] for name in _OF_BOTH if name in kwargs})
    is_policy = base_config.model_type == KIVLAConfig.model_type
    # The policy's own config, which `save_model` writes beside the adapter: a VLM does not say what was made of it.
    config = kwargs.get("config")
    if config is None and cached_file(
        adapter, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **_where(kwargs)
    ):
        config = KIVLAConfig.from_pretrained(adapter, **_where(kwargs))
    if config is None and not is_policy:
        raise ValueError(
            f"{adapter} is an adapter on the VLM {base}, and has no config.json that says which policy was made of it. "
            "KIVLATrainer.save_model writes one; beside an adapter that you saved yourself, so does "
            "peft_model.config.save_pretrained(folder)."
        )
    if config is None:
        return cls.from_pretrained(base, **of_base), False
    # The base with this config's settings, and with rows for the tokens that training added.
    fields = {f.name for f in dataclasses.fields(KIVLAConfig)} - {f.name for f in dataclasses.fields(PreTrainedConfig)}
    fields = {name: getattr(config, name) for name in fields.difference(_OF_BASE)}
    fields["expert_config"] = fields["expert_config"].to_dict()
    model = (cls.from_pretrained if is_policy else cls.from_vlm)(base, **fields, **of_base)
    config.read_vlm_config()  # whose code is known by now
    rows = config.get_text_config().vocab_size
    if model.get_input_embeddings().num_embeddings != rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model, not is_policy


def load_with_adapter(cls: type[PreTrainedModel], adapter: str, kwargs: dict) -> Any:
    """Load a policy with an adapter on it, as the library does (`PeftAdapterMixin`), in eval mode.

    Raises:
        ValueError: what the base lacks (the action expert of a VLM, rows for new tokens) is not in the adapter either.
    """
    kwargs = dict(kwargs)
    with_info, name = kwargs.pop("output_loading_info", False), kwargs.get("adapter_name") or "default"
    model, expert_is_random = load_base(cls, adapter, kwargs)
    name_of = {module: name for name, module in model.named_modules()}
    tokens = {name_of[layer]: rows for layer, rows in new_rows(model).items()}
    # The library loads what there is. What is then still random is looked for in three places.
    with _without_report():
        info = model.load_adapter(adapter, name, adapter_kwargs=_where(kwargs))
    lacking = [
        *_missing(model, info.missing_keys | {key for key, *_ in info.mismatched_keys} | info.unexpected_keys),
        *_rows_not_in(model.peft_config[name], tokens),
        *(_not_replaced(model.expert) if expert_is_random else ()),
    ]
    if lacking:
        raise ValueError(
            f"{adapter} is not a whole policy: neither it nor its base, {model.name_or_path}, has {len(lacking)} of "
            f"the weights ({', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}). A policy does not act with "
            "weights drawn at random: kivla.training.lora.lora_config makes adapters that hold the action expert and "
            "the rows of new tokens. If you have the base in memory, use peft.PeftModel.from_pretrained(base, adapter)."
        )
    return (model.eval(), info.to_dict()) if with_info else model.eval()


@contextmanager
def _without_report() -> Iterator[None]:
    """Silence the library's report of missing weights: it counts the rows of an output layer that is the embedding."""
    logger = logging.getLogger("transformers.integrations.peft")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _missing(model: nn.Module, names: set[str]) -> list[str]:
    """Those of the names whose parameter was not loaded under another name either."""
    parameters = list(model.named_parameters(remove_duplicate=False))
    loaded = {parameter for name, parameter in parameters if name not in names}
    return sorted(names - {name for name, parameter in parameters if parameter in loaded})


def new_rows(model: PreTrainedModel) -> dict[nn.Module, list[int]]:
    """The rows of the embedding, and of an output layer of its own, that the files of the base do not have."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embedding] if output.weight is embedding.weight else [embedding, output]
    return {layer: list(range(model.rows_of_base, len(layer.weight))) for layer in layers}


def _rows_not_in(config, tokens: dict[str, list[int]]) -> list[str]:
    """Rows of these layers that an adapter of this `PeftConfig` does not hold."""
    whole = tuple(config.modules_to_save or ())
    held = config.trainable_token_indices or {}
    held = held if isinstance(held, dict) else dict.fromkeys(tokens, held)
    return [
        f"rows {min(lacking)} to {max(lacking)} of {name}"
        for name, rows in tokens.items()
        if not name.endswith(whole) and (lacking := set(rows).difference(held.get(name, ())))
    ]


def _not_replaced(expert: nn.Module) -> list[str]:
    """Parameters that are the base's own, and not saved with the adapter."""
    names = [name for name, _ in expert.named_parameters()]
    return [f"expert.{name}" for name in names if not {"original_module", "modules_to_save"} & set(name.split("."))]


def _where(kwargs: dict) -> dict:
    names = (*_OF_BOTH[:-1], "revision", "subfolder")
    return {name: kwargs[name] for name in names if kwargs.get(name) is not None}


__all__ = ["adapter_in", "load_base", "load_with_adapter", "new_rows"]

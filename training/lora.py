"""LoRA on the backbone, with a full expert, through `peft`."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ..modeling_kivla import KIVLAForActionPrediction
from ..modeling_kivla.adapter_loading import load_base, new_rows
from ..processing import KIVLAProcessor


def lora_config(model: KIVLAForActionPrediction, processor: KIVLAProcessor, rank: int = 16, **options) -> LoraConfig:
    """Make what `peft.get_peft_model(model, ...)` needs to fine-tune a policy with little memory.

    Low-rank updates on every linear layer of the backbone's text decoder, found by what they are and not by their
    names; the action expert in full (it starts from random weights); of embedding and output layer the rows of
    new tokens and action tokens alone.
    Vision tower and projector stay as they are. Insulation holds: the flow loss gives no gradient to a LoRA weight.

    Args:
        model: after `resize_token_embeddings(processor.vocab_size)`.
        rank: of the updates; `lora_alpha` is twice that by default.
        **options: of `peft.LoraConfig`, e.g. `lora_alpha`, `lora_dropout`, `use_dora`.

    Raises:
        ValueError: the model's embedding lacks the action tokens, or peft cannot train some of its rows.
    """
    embedding = model.get_input_embeddings()
    if processor.vocab_size > embedding.num_embeddings:
        raise ValueError(
            f"The embedding has {embedding.num_embeddings} rows, but the processor's vocabulary is "
            f"{processor.vocab_size}: call model.resize_token_embeddings(processor.vocab_size) first."
        )
    if not _is_known_to_peft(embedding):
        raise ValueError(
            f"'{model.config.vlm_config.model_type}' does more with its new tokens than look them up "
            f"({type(embedding).__name__}). peft would leave that out, and the VLM would read other embeddings than "
            "its own. Train this VLM without LoRA."
        )
    name_of = {module: name for name, module in model.named_modules()}
    decoder = name_of[model.get_decoder()]
    # Beside the action tokens, the rows of all that the files of the base do not have. Of the output layer, too, where
    # it is not the embedding itself (then peft ties their updates).
    actions = processor.action_token_ids.tolist()
    tokens = {name_of[layer]: sorted({*actions, *rows}) for layer, rows in new_rows(model).items()}
    return LoraConfig(
        r=rank,
        target_modules=[
            name
            for module, name in name_of.items()
            if name.startswith(f"{decoder}.") and _is_linear(module, type(model.get_decoder()).__module__)
        ],
        # Every module by its own name: a backbone may have a `shared_expert`, and peft looks at how names end.
        modules_to_save=_leaves_of_lists(model.expert, "expert"),
        trainable_token_indices=tokens if any(tokens.values()) else None,
        **{"lora_alpha": 2 * rank, **options},
    )


def add_lora(model: nn.Module, config: LoraConfig) -> PeftModel:
    """Do what `peft.get_peft_model` does."""
    with _without_old_names():
        return get_peft_model(model, config)


def load_lora(adapter: str, is_trainable: bool = False, **kwargs) -> PeftModel:
    """Load an adapter on the base that it states, as `peft.get_peft_model` made it; `is_trainable` to go on with it.

    Args:
        adapter: a `checkpoint-N` or `adapter/` of a LoRA run.
        **kwargs: of `KIVLAForActionPrediction.from_pretrained` (`dtype`, `device_map`, `quantization_config`, ...).

    Raises:
        ValueError: the adapter does not say what its base is.
    """
    base, _ = load_base(KIVLAForActionPrediction, adapter, kwargs)
    with _without_old_names():
        return PeftModel.from_pretrained(base, adapter, is_trainable=is_trainable)


@contextmanager
def _without_old_names() -> Iterator[None]:
    """Say nothing about a name of transformers that peft still uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def _is_linear(module: nn.Module, family: str) -> bool:
    """Whether a module is a product with a matrix, plain or quantised, and no class of the family's own.

    The router of Llama 4 is an `nn.Linear` that gives two results.
    """
    return isinstance(module, nn.Linear) and type(module).__module__ != family


def _is_known_to_peft(embedding: nn.Embedding) -> bool:
    """Whether peft, which computes embeddings itself to train some rows, computes this one as it is.

    Of what families add to the look-up it knows only their scale.
    """
    return type(embedding).forward is nn.Embedding.forward or hasattr(embedding, "embed_scale")


def _leaves_of_lists(module: nn.Module, prefix: str) -> list[str]:
    """Names of the children; of lists, which peft cannot wrap, those of their items."""
    names = []
    for name, child in module.named_children():
        full = f"{prefix}.{name}"
        names += _leaves_of_lists(child, full) if isinstance(child, nn.ModuleList) else [full]
    return names


__all__ = ["add_lora", "load_lora", "lora_config"]

"""LoRA on the backbone, with a full expert, through `peft`."""

from peft import LoraConfig
from torch import nn

from ..modeling_kivla import KIVLAForActionPrediction
from ..processing import KIVLAProcessor


def lora_config(model: KIVLAForActionPrediction, processor: KIVLAProcessor, rank: int = 16, **options) -> LoraConfig:
    """What `peft.get_peft_model(model, ...)` needs to fine-tune a policy with little memory.

    Low-rank updates on every linear layer of the backbone's text decoder, found by what they are and not by their
    names; the action expert in full (it starts from random weights); of embedding and output layer the rows of the
    action tokens alone.
    Vision tower and projector stay as they are. Insulation holds: the flow loss gives no gradient to a LoRA weight.

    Args:
        model: after `resize_token_embeddings(processor.vocab_size)`.
        rank: of the updates; `lora_alpha` is twice that by default.
        **options: of `peft.LoraConfig`, e.g. `lora_alpha`, `lora_dropout`, `use_dora`.

    Raises:
        ValueError: the model's embedding lacks the action tokens.
    """
    embedding = model.get_input_embeddings()
    if processor.vocab_size > embedding.num_embeddings:
        raise ValueError(
            f"The embedding has {embedding.num_embeddings} rows, but the processor's vocabulary is "
            f"{processor.vocab_size}: call model.resize_token_embeddings(processor.vocab_size) first."
        )
    name_of = {module: name for name, module in model.named_modules()}
    decoder = name_of[model.get_decoder()]
    # Rows of the output layer, too, where it is not the embedding itself (then peft ties their updates).
    layers = [embedding, *([] if model.config.tie_word_embeddings else [model.get_output_embeddings()])]
    tokens = processor.action_token_ids.tolist()
    return LoraConfig(
        r=rank,
        target_modules=[
            name for module, name in name_of.items() if isinstance(module, nn.Linear) and name.startswith(f"{decoder}.")
        ],
        # Every module by its own name: a backbone may have a `shared_expert`, and peft looks at how names end.
        modules_to_save=_leaves_of_lists(model.expert, "expert"),
        trainable_token_indices={name_of[layer]: tokens for layer in layers} if tokens else None,
        **{"lora_alpha": 2 * rank, **options},
    )


def _leaves_of_lists(module: nn.Module, prefix: str) -> list[str]:
    """Names of the children; of lists, which peft cannot wrap, those of their items."""
    names = []
    for name, child in module.named_children():
        full = f"{prefix}.{name}"
        names += _leaves_of_lists(child, full) if isinstance(child, nn.ModuleList) else [full]
    return names


__all__ = ["lora_config"]

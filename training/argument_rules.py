"""Where `KIVLATrainer` does something else with an argument than the library's `Trainer`: the one table of it.

Nothing that a user passes is ignored. What is not honoured is refused by name, when the arguments are made
(`check_arguments`) or the trainer is (`check_trainer_arguments`). `docs/training_arguments.md` is this table.
"""

from enum import Enum
from functools import reduce
from typing import Any

from .parts import RATE_ARGUMENTS

# TrainingArguments: what is accepted, and of everything else why it is not, and what to do. Dots go into a value.
REFUSED: dict[str, tuple[tuple, str]] = {
    "label_smoothing_factor": ((0,), "The token loss is the plain cross-entropy. Leave it out."),
    "average_tokens_across_devices": ((True,), "Both losses are means over all devices, always. Leave it out."),
    "remove_unused_columns": (
        (False,),
        "Examples are images, text, state and actions, which the collator turns into the model's inputs. Keep it "
        "False, the default of KIVLATrainingArguments.",
    ),
    "label_names": ((None, ["labels"]), "The model's labels are `labels` and `actions`. Leave it out."),
    "use_cache": ((False,), "Training keeps no cache of keys and values. Leave it out; `generate` has its own."),
    "bf16_full_eval": (
        (False,),
        "The library would turn the trained weights themselves into bfloat16. Use bf16=True (mixed precision); to "
        "measure a policy in bfloat16, load it with dtype=torch.bfloat16.",
    ),
    "fp16_full_eval": (
        (False,),
        "The library would turn the trained weights themselves into float16. Use fp16=True (mixed precision); to "
        "measure a policy in float16, load it with dtype=torch.float16.",
    ),
    "use_liger_kernel": (
        (False,),
        "Liger has no kernels for a policy: the library would go on without them. Leave it out.",
    ),
    "torch_compile": (
        (False,),
        "A policy's step is no single graph: torch would cut it into dozens, and make code for every decoder layer "
        "anew. Leave it out; model.compile_expert() compiles the expert, for training too.",
    ),
    "train_sampling_strategy": (
        ("random", "sequential"),
        'Examples are not tokenized yet, so their lengths are not known. Use "random" or "sequential"; '
        "bucket_by_length=True puts examples of like length together.",
    ),
    "include_for_metrics": ((None, []), "compute_metrics gets predicted and true action chunks. Leave it out."),
    "batch_eval_metrics": ((False,), "compute_metrics is called once, with all chunks: they are small. Leave it out."),
    "eval_do_concat_batches": ((True,), "All chunks have one shape, and come as one array. Leave it out."),
    "eval_use_gather_object": ((False,), "Evaluation gathers arrays only. Leave it out."),
    "enable_jit_checkpoint": (
        (False,),
        "SIGTERM and SIGUSR1 end the run with a checkpoint in any case. Leave it out.",
    ),
    "save_on_each_node": ((False,), "Checkpoints need one output_dir that all nodes share. Leave it out."),
    "parallelism_config": (
        (None,),
        "A policy is trained on several devices with DDP, FSDP2 or DeepSpeed (`kivla launch-files`). Leave it out.",
    ),
    "accelerator_config.split_batches": (
        (False,),
        "A batch is what one device gets: set per_device_train_batch_size instead.",
    ),
    "accelerator_config.dispatch_batches": (
        (None, False),
        "Batches hold names beside tensors, which cannot be sent: every device reads its own. Leave it out.",
    ),
    "ddp_find_unused_parameters": (
        (None, False),
        "The trainer deals with parameters that a step does not use. Keep it False.",
    ),
    "ddp_static_graph": (
        (None, False),
        "A step uses the parts that its examples teach: the graph is not the same in every step. Leave it out.",
    ),
}

# With muon=True: what must be left at the library's default.
REFUSED_WITH_MUON: dict[str, tuple[tuple, str]] = {
    "optim": (("adamw_torch_fused", "adamw_torch"), "muon is the optimiser: give either optim or muon."),
    "optim_args": ((None,), "They are for `optim`, in whose place muon is: give either of them."),
    "optim_target_modules": ((None,), "They are for `optim`, in whose place muon is: give either of them."),
}

# TrainingArguments that mean something else, or have another default.
DIFFERENT: dict[str, str] = {
    "output_dir": "A folder holds one run: another is refused there, and every difference named. `restart=True` puts "
    "what is there aside. `kivla train` needs it.",
    "resume_from_checkpoint": "Only from a checkpoint of the same run (data, weights it began with, processor, config, "
    "hyper-parameters); it may have more steps. `train()` without it does not begin beside checkpoints of its own.",
    "adam_beta2": "With `muon` the default is 0.99 (of its AdamW part); otherwise 0.999, the library's.",
    "weight_decay": "With `muon` it also applies to the matrices that Muon updates, at their learning rate.",
    "learning_rate": "The VLM's. `expert_learning_rate`, `new_token_learning_rate` and `projector_learning_rate` are "
    "those of their parts, where given. The log has that of the first part that is trained.",
    "max_grad_norm": "VLM and expert are clipped each by its own norm (`clip_per_part`), and so are new tokens and "
    "projector where they have a learning rate of their own. DeepSpeed clips by one norm for all: there the expert's "
    "gradient has a say in how far an insulated VLM moves.",
    "prediction_loss_only": "`evaluate()` then reports losses only, as with `sample_in_eval=False`.",
    "eval_accumulation_steps": "Predicted chunks leave the device after every batch, whatever is given.",
    "gradient_accumulation_steps": "Both losses are means over the supervised positions of the whole step: splitting "
    "a batch does not change its gradient.",
    "seed": "Order of examples and random numbers depend on seed and step alone, also after an interruption.",
    "data_seed": "The order of the examples. A `Mixture` has an order and a seed of its own.",
    "dataloader_num_workers": "What is random in an example depends on seed, epoch and example, not on the worker.",
    "dataloader_pin_memory": "Only where there is an accelerator: PyTorch pins for one.",
    "logging_nan_inf_filter": "A loss or gradient that is NaN or infinite ends the run, or the step is skipped: see "
    "`on_nonfinite`.",
    "metric_for_best_model": "With several evaluation sets it must name one of them: `eval_NAME_loss`.",
    "auto_find_batch_size": "Other batches give another run: with it, a run is not repeated bit for bit.",
    "save_only_model": "Such checkpoints are policies. A run cannot go on from them as if it had not stopped.",
    "push_to_hub": "README.md is the policy's card, and what its author wrote there, here or on the Hub, stays. "
    "`kivla train` pushes the policy when its card is written; earlier stages, which are then in `_stage_1`, ..., are "
    "not pushed.",
    "fp16": "Weights must be float32: a policy loaded in float16 is refused.",
}

# Parameters of `Trainer` that are refused.
REFUSED_PARAMETERS: dict[str, str] = {
    "compute_loss_func": "The loss is token_loss + flow_loss_weight * flow_loss. Set model.config.flow_loss_weight, or "
    "override KIVLATrainer.compute_loss.",
    "preprocess_logits_for_metrics": "compute_metrics gets predicted and true action chunks in robot units, not "
    "logits. Leave it out.",
}
# Parameters of `Trainer` that mean something else.
DIFFERENT_PARAMETERS: dict[str, str] = {
    "args": "`KIVLATrainingArguments`. Plain `TrainingArguments` are taken, with the defaults of ours for what they do "
    "not have, and of `remove_unused_columns`.",
    "processing_class": "A `KIVLAProcessor`, and needed.",
    "data_collator": "`KIVLACollator(processing_class)` by default; with `cameras={...}` where the data name them "
    "otherwise.",
    "train_dataset, eval_dataset": "Chunk size, cameras (by name) and action size are compared with the processor's.",
    "compute_metrics": "Gets `EvalPrediction` with predicted and true chunks (N, H, D) in robot units: see "
    "`KIVLATrainer.predict`. What it returns stands beside the trainer's own metrics.",
    "optimizers": "Refused beside `muon` and learning rates of parts, which are about the optimiser that is made "
    "otherwise.",
    "optimizer_cls_and_kwargs": "Refused beside `muon`.",
}


def check_arguments(args: Any) -> None:
    """Check arguments when they are made.

    Args:
        args: `KIVLATrainingArguments`.

    Raises:
        ValueError: an argument that is refused; it is named, with the reason and what to do.
    """
    _check(args, REFUSED)
    if args.muon:
        _check(args, REFUSED_WITH_MUON, "with muon=True ")


def _check(args: Any, rules: dict[str, tuple[tuple, str]], when: str = "") -> None:
    for name, (accepted, reason) in rules.items():
        value = reduce(getattr, name.split("."), args)
        if value not in accepted:
            shown = value.value if isinstance(value, Enum) else value
            raise ValueError(f"{name}={shown!r} {when}is not possible with KIVLATrainer. {reason}")


def check_trainer_arguments(args: Any, given: dict[str, Any]) -> None:
    """Check what a trainer is given beside its arguments.

    Args:
        args: `KIVLATrainingArguments`.
        given: parameters of `Trainer` by name.

    Raises:
        ValueError: one that is refused, or that goes against `args`.
    """
    for name, reason in REFUSED_PARAMETERS.items():
        if given.get(name) is not None:
            raise ValueError(f"{name} is not possible with KIVLATrainer. {reason}")
    optimizer = (given.get("optimizers") or (None, None))[0]
    ours = [name for name in ("muon", *RATE_ARGUMENTS.values()) if getattr(args, name)]
    if optimizer is not None and ours:
        raise ValueError(
            f"optimizers= brings an optimiser, and {ours[0]} is about the one that the trainer would make: give either "
            "of them."
        )
    if given.get("model_init") is not None and args.anchor_weight > 0:
        raise ValueError(
            "model_init makes a model again and again, and anchor_weight keeps the first one's VLM: give one."
        )
    if given.get("optimizer_cls_and_kwargs") is not None and args.muon:
        raise ValueError("optimizer_cls_and_kwargs and muon both say which optimiser to make: give either of them.")
    samples = args.sample_in_eval and not args.prediction_loss_only
    if given.get("compute_metrics") is not None and not samples:
        raise ValueError(
            "compute_metrics gets the chunks that evaluation samples: leave out sample_in_eval=False and "
            "prediction_loss_only=True, or compute_metrics."
        )


def as_markdown() -> str:
    """Return the table as `docs/training_arguments.md` has it."""
    refused = {name: _shown(accepted, reason) for name, (accepted, reason) in REFUSED.items()}
    with_muon = {name: _shown(accepted, reason) for name, (accepted, reason) in REFUSED_WITH_MUON.items()}
    parameters = {name: f"Refused. {reason}" for name, reason in REFUSED_PARAMETERS.items()} | DIFFERENT_PARAMETERS
    sections = {
        "Refused": ("Anything but what is accepted is an error that names the argument.", refused),
        "Refused with `muon=True`": ("", with_muon),
        "Another meaning or default": ("", DIFFERENT),
        "Parameters of `Trainer`": ("", parameters),
    }
    text = ""
    for title, (note, rows) in sections.items():
        lines = [f"| `{name}` | {line} |" for name, line in rows.items()]
        text += f"\n## {title}\n\n" + (f"{note}\n\n" if note else "") + "| argument | |\n|---|---|\n"
        text += "\n".join(lines) + "\n"
    return text


def _shown(accepted: tuple, reason: str) -> str:
    return f"Accepted: {', '.join(f'`{value!r}`' for value in accepted)}. {reason}"


__all__ = ["as_markdown", "check_arguments", "check_trainer_arguments"]

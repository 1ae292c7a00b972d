"""Options of the library's arguments that do nothing without another one: a command refuses them by name."""

from dataclasses import MISSING, fields
from typing import Any

from transformers import IntervalStrategy, SchedulerType
from transformers.trainer_utils import SaveStrategy

from .arguments import KIVLATrainingArguments

_HUB = ("hub_model_id", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision")
_WORKERS = ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context")


def idle_options(args: KIVLATrainingArguments) -> dict[str, str]:
    """Find what was given and would do nothing, and say why.

    Given is what is not the default of the class; in Python such values may wait for a later use, as the Hub's do.
    """
    best = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    plateau = args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
    by_steps = "goes by steps, and --{0} is {1}"
    saves, evaluates, logs = args.save_strategy, args.eval_strategy, args.logging_strategy
    idle: dict[str, tuple[bool, str]] = {
        **dict.fromkeys(_HUB, (args.push_to_hub, "nothing is pushed without --push_to_hub")),
        "gradient_checkpointing_kwargs": (args.gradient_checkpointing, "there is no --gradient_checkpointing"),
        **dict.fromkeys(_WORKERS, (args.dataloader_num_workers > 0, "--dataloader_num_workers is 0")),
        "metric_for_best_model": (best or plateau, "no checkpoint is chosen without --load_best_model_at_end"),
        "greater_is_better": (args.metric_for_best_model is not None, "there is no --metric_for_best_model"),
        "save_steps": (saves == SaveStrategy.STEPS, by_steps.format("save_strategy", saves.value)),
        "eval_steps": (evaluates == IntervalStrategy.STEPS, by_steps.format("eval_strategy", evaluates.value)),
        "logging_steps": (logs == IntervalStrategy.STEPS, by_steps.format("logging_strategy", logs.value)),
        "eval_delay": (evaluates != IntervalStrategy.NO, "--eval_strategy is no"),
        "save_total_limit": (saves != SaveStrategy.NO, "--save_strategy is no"),
        "warmup_steps": (
            args.lr_scheduler_type != SchedulerType.CONSTANT,
            "--lr_scheduler_type constant has no warm-up; constant_with_warmup has",
        ),
        "do_predict": (False, "`kivla predict` is a command of its own"),
        "fsdp_config": (bool(args.fsdp), "there is no --fsdp"),
    }
    return {name: reason for name, (is_used, reason) in idle.items() if not is_used and _is_given(args, name)}


def _is_given(args: Any, name: str) -> bool:
    entry = next(entry for entry in fields(args) if entry.name == name)
    default = entry.default if entry.default_factory is MISSING else entry.default_factory()
    return getattr(args, name) not in (default, None)

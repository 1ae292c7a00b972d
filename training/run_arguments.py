"""What `kivla train` does where nothing is told: the training arguments of a first real run, and presets by VLM size.

`KIVLATrainingArguments` keep the library's defaults, which are those of a text model. Here are those of a pretrained
VLM and a fresh expert on a robot's demonstrations, each with where it comes from. None of them is a result of ours.
"""

import os
from dataclasses import dataclass, field, replace
from typing import ClassVar

from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from .arguments import KIVLATrainingArguments
from .data.augmentation import AUGMENTATIONS
from .parts import EXPERT
from .recipes import Stage

MAX_STEPS = 30_000
NEW_EXPERT_RATE = 1e-4
_MIN_RATE = "cosine_with_min_lr"

# Where each default comes from; `docs/training_arguments.md` has the table.
SOURCES: dict[str, str] = {
    "max_steps": "30,000, unless `num_train_epochs` is given. openpi",
    "learning_rate": "2.5e-5, of the VLM. openpi and LeRobot, for π0 and π0.5",
    "expert_learning_rate": "1e-4 for a new expert, or `learning_rate` if that is more; that of the VLM for one that "
    "was trained, and with `muon`. LeRobot, for SmolVLA's new expert",
    "lr_scheduler_type": "a cosine that ends at a tenth. openpi and LeRobot",
    "warmup_steps": "a thirtieth of the steps: 1,000 of 30,000. openpi and LeRobot",
    "adam_beta2": "0.95; 0.99 with `muon`. openpi and LeRobot",
    "logging_steps": "100. openpi",
    "save_steps": "1,000. openpi",
    "save_total_limit": "the last 2: were the newest damaged, the one before is there",
    "eval_strategy": "`steps`: the library's default is never",
    "eval_steps": "1,000, as often as a checkpoint is written",
    "dataloader_num_workers": "4, or as many as there are processors, if these are fewer. LeRobot",
    "augment": "`robot`, in openpi's amounts. For data of a simulator, whose light and camera stay: `--augment none`",
}

# Options of the library that stand among ours in `kivla train --help`; its others are behind --help-all.
_SHOWN = (
    *("output_dir", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay"),
    *("per_device_eval_batch_size", "bf16", "gradient_checkpointing", "seed", "report_to", "run_name"),
    *("push_to_hub", "hub_model_id", "resume_from_checkpoint", "max_grad_norm", "use_cpu"),
)

# By how large the VLM is; other options count more. 32 examples a step, as in openpi, on one GPU of 80 GB.
PRESETS: dict[str, dict] = {
    "small": {"per_device_train_batch_size": 32, "bf16": True, "learning_rate": 1e-4},
    "medium": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "bf16": True,
        "gradient_checkpointing": True,
        "learning_rate": 2.5e-5,
    },
    "large": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "bf16": True,
        "gradient_checkpointing": True,
        "lora_rank": 32,
        "learning_rate": 1e-4,
    },
}
_SMALL, _MEDIUM = 1e9, 4.5e9  # parameters of a VLM, up to which it is


def _as_the_library(name: str, text: str):
    """An option of the library with its default, and words of ours."""
    return field(default=TrainingArguments.__dataclass_fields__[name].default, metadata={"help": text})


def preset_for(num_parameters: int) -> str:
    """Which of `PRESETS` is meant for a VLM of so many parameters."""
    return "small" if num_parameters <= _SMALL else "medium" if num_parameters <= _MEDIUM else "large"


@dataclass
class RunArguments(KIVLATrainingArguments):
    """Arguments of `kivla train`: [`KIVLATrainingArguments`], with defaults for a first real run (`SOURCES`).

    Args:
        preset: the name of one of `PRESETS`, whose values become defaults when the command line is read; it is kept for
            people to see.

    Raises:
        ValueError: as `KIVLATrainingArguments`.
    """

    _argument_group_name: ClassVar[str] = "training"

    preset: str | None = field(
        default=None,
        metadata={
            "help": "Defaults by the size of the VLM: small (up to 1B parameters), medium (to 4.5B) or large (LoRA).",
            "choices": list(PRESETS),
        },
    )
    max_steps: int | None = field(
        default=None, metadata={"help": "Optimiser steps; 30000, unless --num_train_epochs is given."}
    )
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "How often all examples are seen, in place of --max_steps."}
    )
    learning_rate: float = field(default=2.5e-5, metadata={"help": "Of the VLM."})
    expert_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Of the action expert; for a new one 1e-4, or --learning_rate if that is more."},
    )
    lr_scheduler_type: str = field(
        default=_MIN_RATE, metadata={"help": "How rates fall: by default as a cosine, to a tenth of what they were."}
    )
    warmup_steps: float = field(
        default=1 / 30, metadata={"help": "Steps in which rates rise from 0: a number, or a share below 1."}
    )
    adam_beta2: float | None = field(
        default=None, metadata={"help": "Second beta of AdamW: 0.95; with muon 0.99, if not given."}
    )
    logging_steps: float = field(default=100, metadata={"help": "Log every so many steps."})
    save_steps: float = field(default=1000, metadata={"help": "Write a checkpoint every so many steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Keep so many checkpoints, the last ones."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: no, steps or epoch."})
    eval_steps: float | None = field(default=1000, metadata={"help": "Evaluate every so many steps."})
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that read data while a step runs; 4, or as many as there are processors."},
    )
    output_dir: str | None = _as_the_library("output_dir", "Where checkpoints and the policy go: a folder of this run.")
    gradient_checkpointing: bool | None = _as_the_library(
        "gradient_checkpointing", "Compute activations twice instead of keeping them: less memory, more time."
    )
    resume_from_checkpoint: str | None = _as_the_library(
        "resume_from_checkpoint", "A checkpoint's folder to go on from; by default the run's newest one."
    )
    augment: str = field(
        default="robot",
        metadata={
            "help": f"Change pictures at random while training: {', '.join(AUGMENTATIONS)}. For simulators none."
        },
    )

    def __post_init__(self):
        if self.max_steps is None:
            self.max_steps = MAX_STEPS if self.num_train_epochs is None else -1
        if self.num_train_epochs is None:
            self.num_train_epochs = 3.0  # the library's, which goes by the steps
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = min(4, os.cpu_count() or 1)
        if self.bf16 and not (self.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available()):
            asked = f"--preset {self.preset} has --bf16, which" if self.preset in PRESETS else "--bf16"
            raise ValueError(
                f"{asked} needs a GPU, and there is none here. Add --bf16 false to compute in float32 on the CPU, or "
                "--use_cpu to compute in bfloat16 there."
            )
        if self.adam_beta2 is None and not self.muon:
            self.adam_beta2 = 0.95
        if self.lr_scheduler_type == _MIN_RATE and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        super().__post_init__()

    def for_stages(self, stages: tuple[Stage, ...], is_new_policy: bool) -> "RunArguments":
        """Fill in what depends on what is trained: a new expert's learning rate, where no stage has one."""
        is_new = is_new_policy and any(EXPERT in stage.parts for stage in stages)
        has_own = any(EXPERT in stage.learning_rates for stage in stages)
        if self.expert_learning_rate is not None or has_own or not is_new or self.muon:
            return self
        return replace(self, expert_learning_rate=max(NEW_EXPERT_RATE, self.learning_rate))


def advanced_options() -> set[str]:
    """The library's options that are not shown before `--help-all`."""
    return {*TrainingArguments.__dataclass_fields__} - {*_SHOWN, *SOURCES}


__all__ = ["MAX_STEPS", "PRESETS", "SOURCES", "RunArguments", "advanced_options", "preset_for"]

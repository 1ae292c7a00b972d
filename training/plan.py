"""What a run is going to do, said before its first step, and how long it will take, said after the first ones."""

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from ..modeling_kivla import KIVLAForActionPrediction
from .arguments import KIVLATrainingArguments
from .data.augmentation import describe
from .data.dataset_checks import robot_datasets
from .memory_plan import COPY_OF_LORA, MemoryPlan, Training, plan_memory, step_shape
from .parts import BACKBONE, EXPERT, NEW_TOKENS, PARTS, PROJECTOR, RATE_ARGUMENTS, part_of
from .recipes import Stage
from .run_arguments import RunArguments, preset_for
from .trainer import KIVLATrainer

PLANNED_FOR = 4  # examples whose longest one the memory is planned for
TIMED = (5, 20)  # the steps that are timed: the first ones warm up
_MOMENTS = {"adafactor": 0, "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1}
_TITLES = {BACKBONE: "VLM", NEW_TOKENS: "new tokens", PROJECTOR: "projector", EXPERT: "expert"}


def format_plan(trainer: KIVLATrainer, stages: Sequence[Stage] = (), number: int = 1) -> str:
    """Write the plan of a run that is about to begin, a line for each thing.

    Args:
        stages, number: those of its recipe, and which of them it is, from 1.
    """
    lines = [f"{title:14}{text}" for title, text in plan(trainer)]
    name = "Plan"
    if len(stages) > 1:
        stage = stages[number - 1]
        config = ", ".join(f"{name} {value:g}" for name, value in stage.config.items())
        name += f" of stage {number} of {len(stages)}: trains {', '.join(stage.trains)}; {config}"
    return "\n".join(["", name, *lines, ""])


def plan(trainer: KIVLATrainer) -> Iterator[tuple[str, str]]:
    """Go through title and text of everything that a person would like to know before the run begins."""
    args, steps = trainer.args, num_steps(trainer)
    model = trainer.accelerator.unwrap_model(trainer.model)
    yield "trained", "; ".join(_parts(model))
    yield "rates", _rates(trainer)
    rows = _rows(trainer)
    examples = rows * args.gradient_accumulation_steps * args.world_size
    text = f"{steps:,} of {examples:,} examples"
    if examples > rows:
        factors = f"{rows} x {args.gradient_accumulation_steps} micro-batches x {args.world_size}"
        text += f" ({factors} {'device' if args.world_size == 1 else 'devices'})"
    frames = sum(len(data) for data in robot_datasets(trainer.train_dataset))
    if frames:
        each = math.ceil(frames / examples)
        text += f"; the demonstrations have {frames:,} frames, {each:,} step{'s' * (each != 1)} an epoch"
    if len(trainer.train_dataset) == frames:
        text += f", {steps * examples / frames:.3g} epochs"
    yield "steps", text
    cameras = [camera for data in robot_datasets(trainer.train_dataset) for camera in data.cameras]
    yield "augmentation", describe(args.augment, list(dict.fromkeys(cameras)), args.wrist_cameras)
    yield "memory", _memory(trainer)
    yield "evaluation", _evaluation(trainer, steps)
    yield "checkpoints", _checkpoints(trainer, steps)
    words = ", ".join(args.report_to)
    yield "report", f"to {words}" if words else "to nobody; --report_to trackio, wandb or tensorboard"
    size = sum(parameter.numel() for parameter in _policy(model).vlm.parameters())
    if isinstance(args, RunArguments) and args.preset != (fitting := preset_for(size)):
        yield "preset", f"{args.preset or 'none'}; for a VLM of {_count(size)} parameters there is --preset {fitting}"
    yield "time", f"said after {TIMED[1]} steps" if steps > TIMED[1] else "too few steps to say it beforehand"


def num_steps(trainer: KIVLATrainer) -> int:
    """Optimiser steps of the run."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(len(trainer.train_dataset) / (args.train_batch_size * args.world_size))
    return math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)


def _rows(trainer: KIVLATrainer) -> int:
    """Examples of a micro-batch: no more than there are."""
    return min(trainer.args.train_batch_size, len(trainer.train_dataset))


def _policy(model: nn.Module) -> KIVLAForActionPrediction:
    return model if isinstance(model, KIVLAForActionPrediction) else model.get_base_model()


def _parts(model: nn.Module) -> Iterator[str]:
    """Of each part how many parameters are trained, of how many."""
    trained: dict[str, int] = defaultdict(int)
    whole: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if COPY_OF_LORA in name.split("."):
            continue
        whole[part_of(name)] += parameter.numel()
        trained[part_of(name)] += parameter.numel() * parameter.requires_grad
    for part in PARTS:
        if whole[part]:
            frozen = "" if trained[part] == whole[part] else f" of {_count(whole[part])}"
            yield f"{_TITLES[part]} {_count(trained[part])}{frozen}" if trained[part] else f"{_TITLES[part]} frozen"


def _rates(trainer: KIVLATrainer) -> str:
    args = trainer.args
    own = {part: getattr(args, name) for part, name in RATE_ARGUMENTS.items()}
    rates = [
        f"{args.learning_rate:g}",
        *(f"{_TITLES[part]} {rate:g}" for part, rate in own.items() if rate is not None),
    ]
    warmup = args.get_warmup_steps(num_steps(trainer))
    shape = args.lr_scheduler_type.value.replace("_", " ")
    if (args.lr_scheduler_kwargs or {}).keys() == {"min_lr_rate"}:
        shape = f"a cosine that ends at {args.lr_scheduler_kwargs['min_lr_rate']:.0%}"
    return f"{', '.join(rates)}; {warmup:,} step{'s' * (warmup != 1)} of warm-up, then {shape}"


def _memory(trainer: KIVLATrainer) -> str:
    """What a step needs on each device, by part; worked out for the first examples."""
    if trainer.is_deepspeed_enabled:
        return "not planned with DeepSpeed"
    (planned,) = _plan_steps(trainer, _training(trainer))
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in planned.parts().items() if size)
    where = "the CPU" if trainer.args.device.type == "cpu" else "each device"
    return f"about {_bytes(planned.peak)} on {where} at the peak: {parts}"


def _plan_steps(trainer: KIVLATrainer, *ways: Training) -> list[MemoryPlan]:
    """Plan the memory of a step of the first examples, in each of these ways."""
    model, data = trainer.accelerator.unwrap_model(trainer.model), trainer.train_dataset
    examples = [data[i] for i in range(min(PLANNED_FOR, len(data)))]
    shape = step_shape(_policy(model), trainer.data_collator(examples), _rows(trainer))
    return [plan_memory(_policy(model), shape, way, model.parameters()) for way in ways]


def memory_table(trainer: KIVLATrainer, devices: Sequence[int] = (1, 2, 4, 8)) -> str:
    """Write what a step needs on each of so many GPUs, by part, and with gradient checkpointing.

    Several GPUs share weights, gradients and moments (FSDP2); with DDP each has what one has. FSDP2 shares out no LoRA.
    """
    if isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
        devices = (1,)
    way = replace(_training(trainer), wide_attention=False)
    plans = _plan_steps(trainer, *(replace(way, devices=count) for count in devices))
    rows = {name: [plan.parts()[name] for plan in plans] for name in plans[0].parts()}
    rows["at the peak"] = [plan.peak for plan in plans]
    if not way.checkpointing:
        less = _plan_steps(trainer, *(replace(way, devices=count, checkpointing=True) for count in devices))
        rows["at the peak, with --gradient_checkpointing"] = [plan.peak for plan in less]
    head = [f"{'1 GPU' if count == 1 else f'FSDP2 x {count}':>12}" for count in devices]
    cells = {"Memory of a step on each GPU": head}
    cells |= {name: [f"{_bytes(size):>12}" for size in sizes] for name, sizes in rows.items() if any(sizes)}
    return "\n".join([*(f"{name:44}{''.join(row)}" for name, row in cells.items()), ""])


def _training(trainer: KIVLATrainer) -> Training:
    """How the run computes a step."""
    args = trainer.args
    return Training(
        bf16=args.bf16 or args.fp16,
        wide_attention=args.device.type == "cpu",
        checkpointing=bool(args.gradient_checkpointing),
        accumulates=args.gradient_accumulation_steps > 1,
        devices=args.world_size if trainer.is_fsdp_enabled else 1,
        moments=moments_of(args) + (args.ema_decay is not None),
    )


def moments_of(args: KIVLATrainingArguments) -> float:
    """What the optimiser keeps, in numbers of the weights' type for each that is trained; as AdamW if it is unknown."""
    if args.muon:
        return 1  # of matrices, which nearly all are
    name = args.optim.value
    if "8bit" in name:
        return 2 / torch.float32.itemsize
    return next((moments for part, moments in _MOMENTS.items() if part in name), 2)


def _evaluation(trainer: KIVLATrainer, steps: int) -> str:
    args, sets = trainer.args, trainer.eval_dataset
    named = sets if isinstance(sets, dict) else {"evaluation": sets}
    text = ", ".join(f"{name} ({len(data):,})" for name, data in named.items() if data is not None)
    when = {"no": "at the end", "epoch": "after every epoch and at the end"}.get(args.eval_strategy.value)
    if when is None:
        every = math.ceil(args.eval_steps * (steps if args.eval_steps < 1 else 1))
        when = "at the end" if every >= steps else f"{_every(every)} and at the end"
    held_out = "" if "held_out" in named else "; no episode is held out (--eval_episodes 0 1)"
    return f"{when} on {text}{held_out}"


def _checkpoints(trainer: KIVLATrainer, steps: int) -> str:
    args = trainer.args
    if args.save_strategy.value == "no":
        return "none"
    checkpoint, _, most = trainer.disk_use(steps, args.num_train_epochs)
    number = math.ceil(args.save_steps * (steps if args.save_steps < 1 else 1))
    every = "at the end" if number >= steps else f"{_every(number)} and at the end"
    every = {"epoch": "after every epoch", "best": "after the best evaluation"}.get(args.save_strategy.value, every)
    limit = args.save_total_limit
    kept = "all kept" if not limit else "the last one kept" if limit == 1 else f"the last {limit} kept"
    folder = Path(args.output_dir).resolve()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
    disk = f"{_bytes(checkpoint)} each, at most {_bytes(most)} on the disk with the policy ({_bytes(free)} free)"
    return f"{every}, {kept}; {disk}"


class TimeLeft(TrainerCallback):
    """Says after the first steps how long the others will take."""

    def __init__(self):
        self.times: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        if len(self.times) > TIMED[1] or not state.is_world_process_zero:
            return
        self.times.append(time.monotonic())
        if len(self.times) == TIMED[1] + 1:
            print(time_left(self.times, state.max_steps - state.global_step))


def time_left(times: list[float], steps: int) -> str:
    """Say how long so many steps take.

    Args:
        times: when the first steps ended, seconds.
    """
    step = median(after - before for before, after in zip(times[TIMED[0] - 1 :], times[TIMED[0] :], strict=False))
    return (
        f"A step takes {step:.3g} s (median of steps {TIMED[0] + 1} to {len(times)}): the other {steps:,} take about "
        f"{_duration(step * steps)}, evaluations and checkpoints aside."
    )


def _every(steps: int) -> str:
    return "after every step" if steps == 1 else f"every {steps:,} steps"


def _count(number: float) -> str:
    """Parameters for people: 2.92B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


__all__ = ["TimeLeft", "format_plan", "plan", "time_left"]

"""Small trainings of which `test_distributed.py` compares the results: on one process, or on the ranks of a launcher.

accelerate launch --config_file training/launch/fsdp2.yaml --num_processes 2 -m tests.training.distributed_runs \
    FOLDER fsdp2-paligemma ddp-qwen3_vl-accumulated ...

Batches go through every disagreement of ranks: nobody has labels, nobody has actions, one rank only has them; with
`texts`, one rank only has plain text.
"""

import copy
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, GradientAccumulationPlugin
from torch.utils.data import SequentialSampler

from kivla import (
    BinningActionTokenizer,
    KIVLACollator,
    KIVLAConfig,
    KIVLAForActionPrediction,
    KIVLAProcessor,
    KIVLATrainer,
    KIVLATrainingArguments,
)
from kivla.processing import compute_statistics
from kivla.training.data_parallel import DDPGradients, ended_process_group
from kivla.training.evaluation.text_nll import HeldOutTexts
from kivla.training.parts import PARTS, RATE_ARGUMENTS
from kivla.training.recipes import Stage, set_stage
from tests.helpers.families import FAMILIES, FAST, Family, make_example, randomize_zero_parameters
from tests.helpers.vlm_processors import KINDS

# One for each mechanism; beside them convolutions, an adapter, experts among linear layers, a head inside the VLM, and
# several residual streams
SHARDED_FAMILIES = (
    *dict.fromkeys(FAST.values()),
    *("lfm2_vl", "molmo2", "qwen3_5_moe", "nemotron_h_omni", "glm5_next"),
)
# Experts; linear layers, too; state spaces; positions added to tokens; no rotary embedding at all; towers for sound
COPIED_FAMILIES = (
    "qwen3_vl_moe",
    "qwen3_5_moe",
    "nemotron_h_omni",
    "blip-2",
    "inkling_mm_model",
    "qwen3_omni_moe_thinker",
)
STEPS, BATCH, LEARNING_RATE = 20, 4, 2e-3
CHUNK, WIDTH, STATE = 3, 2, 2
SIZES = {"chunk_size": CHUNK, "max_action_dim": WIDTH, "max_state_dim": STATE}
# What the four examples of a step teach: both parts, the VLM ("say", or "read" of plain text), the expert ("act"). A
# rank has two of them.
USUAL = ("both", "say", "act", "both")
RANKS_DISAGREE = {9: ("act", "act", "both", "say"), 12: ("say", "say", "both", "act")}
TEXTS = {1: ("both", "read", "both", "say"), 4: ("both", "say", "read", "read"), 7: ("act", "act", "read", "read")}
ONE_PART_ONLY = {3: ("act",) * 4, 6: ("say",) * 4, 15: ("act",) * 4, 16: ("act",) * 4, 18: ("say",) * 4}


def example(index: int, teaches: str) -> dict:
    random = np.random.default_rng(index)
    if teaches == "read":
        return {"index": index, "document": random.integers(0, 100, 5 + index % 7).tolist(), "learned": True}
    image = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    if teaches == "say":
        return {"index": index, "images": [image], "text": "what is it", "response": str(index), "learned": True}
    values = {"state": random.normal(size=STATE), "actions": random.normal(size=(CHUNK, WIDTH))}
    return {"index": index, "images": [image], "text": f"go {index}", **values, "learned": teaches == "both"}


def examples(both_parts: bool, texts: bool = False) -> list[dict]:
    """`both_parts`: some example teaches the VLM and some the expert, in every step. `texts`: some are plain text."""
    unusual = RANKS_DISAGREE if both_parts else RANKS_DISAGREE | ONE_PART_ONLY
    unusual = unusual | TEXTS if texts else unusual
    kinds = [kind for step in range(STEPS) for kind in unusual.get(step, USUAL)]
    return [example(index, kind) for index, kind in enumerate(kinds)]


class Collator(KIVLACollator):
    """Noise and flow time belong to an example, whichever rank has it; and some actions teach the expert alone."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        batch["labels"][[i for i, e in enumerate(examples) if not e["learned"]]] = -100
        if "actions" in batch:
            generators = [torch.Generator().manual_seed(e["index"]) for e in examples]
            batch["noise"] = torch.stack([torch.randn(CHUNK, WIDTH, generator=g) for g in generators])
            batch["timestep"] = torch.stack([torch.rand((), generator=g) for g in generators])
        return batch


class InOrder(KIVLATrainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def make_trainer(
    folder: Path,
    kind: str,
    accumulation: int = 1,
    both_parts: bool = False,
    texts: bool = False,
    config: dict | None = None,
    stage: Stage | None = None,
    **settings,
) -> InOrder:
    numbers = np.random.default_rng(0)
    statistics = {
        "actions": compute_statistics(numbers.normal(size=(50, WIDTH))),
        "state": compute_statistics(numbers.normal(size=(50, STATE))),
    }
    processor = KIVLAProcessor(KINDS[kind].processor(), BinningActionTokenizer(), statistics, **SIZES)
    model = KINDS[kind].policy(**SIZES, **(config or {}))
    if stage is not None:
        set_stage(model, stage)
    size = BATCH // int(os.environ.get("WORLD_SIZE", 1)) // accumulation
    args = KIVLATrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": size,
            "per_device_eval_batch_size": 2,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": LEARNING_RATE,
            "weight_decay": 0.1,
            "adam_epsilon": 1e-4,  # Adam divides by gradients: rounding of the smallest would decide their direction
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            **settings,
        },
    )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        on_cpu(args.mixed_precision, DistributedType.FSDP, fsdp_plugin=FullyShardedDataParallelPlugin())
    elif args.deepspeed_plugin is not None:
        plugin, args.deepspeed_plugin = args.deepspeed_plugin, None
        plugin.select(_from_accelerator_state=True)
        on_cpu(args.mixed_precision, DistributedType.DEEPSPEED, deepspeed_plugins={"default": plugin})
    return InOrder(
        model,
        args,
        train_dataset=examples(both_parts, texts),
        eval_dataset=[example(1000 + i, kind) for i, kind in enumerate(("both", "both", "say", "say"))],
        processing_class=processor,
        data_collator=Collator(processor),
    )


def on_cpu(mixed_precision: str, distributed_type: DistributedType, **plugins) -> None:
    """accelerate goes by these settings on accelerators only; torch and DeepSpeed themselves share out on CPUs, too."""
    accumulation = GradientAccumulationPlugin(num_steps=1)  # is the Trainer's
    Accelerator(cpu=True, mixed_precision=mixed_precision, gradient_accumulation_plugin=accumulation)
    if mixed_precision != "no" and "fsdp_plugin" in plugins:
        plugins["fsdp_plugin"].set_mixed_precision(mixed_precision)
    PartialState._shared_state["distributed_type"] = distributed_type
    AcceleratorState._shared_state |= plugins


def results(trainer: KIVLATrainer) -> dict:
    """Losses of every step, and the weights after the last one, whole."""
    names = ("loss", "token_loss", "flow_loss", "text_loss", "grad_norm", *(f"{part}_grad_norm" for part in PARTS))
    history = [{n: entry[n] for n in names if n in entry} for entry in trainer.state.log_history if "loss" in entry]
    weights = trainer.accelerator.get_state_dict(trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model)
    weights = weights or {}  # ZeRO-3 gives them to the first rank alone
    return {"history": history, "weights": {name: weight.cpu().clone() for name, weight in weights.items()}}


def each_family_on_two_ranks(folder: Path) -> None:
    """Losses and gradients of policies on several VLMs, beside those of one process; writes families.pt."""
    found = {
        how: {name: gradients(FAMILIES[name]) for name in names if name in FAMILIES}
        for how, names, gradients in (
            ("fsdp2", SHARDED_FAMILIES, sharded_gradients),
            ("ddp", COPIED_FAMILIES, copied_gradients),
        )
    }
    if PartialState().is_main_process:
        torch.save(found, folder / "families.pt")


def policy_and_examples(family: Family, scale: float) -> tuple[KIVLAForActionPrediction, list[dict]]:
    """A policy, and an example for each rank, with noise and flow time of its own."""
    torch.manual_seed(0)
    expert = {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2}
    config = KIVLAConfig(vlm_config=family.config(), expert_config=expert, backbone_gradient_scale=scale, **SIZES)
    model = KIVLAForActionPrediction(config).train()
    randomize_zero_parameters(model)
    batches = []
    for seed in range(2):
        batch, generator = make_example(family, seed=seed), torch.Generator().manual_seed(seed)
        chunk = (1, CHUNK, WIDTH)
        batch |= {name: torch.randn(chunk, generator=generator) for name in ("actions", "noise")}
        batches.append({**batch, "timestep": torch.full((1,), 0.5)})
    return model, batches


def gradients_alone(model: KIVLAForActionPrediction, batches: list[dict]) -> tuple[float, dict]:
    """The sum of the losses of all examples, and its gradients by name."""
    model = copy.deepcopy(model)
    loss = sum(model(**batch).loss for batch in batches)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def sharded_gradients(family: Family) -> tuple[list[float], dict, dict]:
    """By FSDP2: (sum of losses, sharded and not), and the gradients by name, sharded and not."""
    model, batches = policy_and_examples(family, scale=0.5)
    alone, expected = gradients_alone(model, batches)
    PartialState._reset_state()
    AcceleratorState._reset_state()
    on_cpu("no", DistributedType.FSDP, fsdp_plugin=FullyShardedDataParallelPlugin())
    accelerator = Accelerator(cpu=True)
    model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    loss = model(**batches[accelerator.process_index]).loss
    accelerator.backward(loss * accelerator.num_processes)
    total = accelerator.reduce(loss.detach(), "sum")
    found = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    return [float(total), alone], found, expected


def copied_gradients(family: Family) -> tuple[list[float], dict, dict]:
    """By DDP, insulated and checkpointed; one rank learns to say and to act, the other one to act alone."""
    model, batches = policy_and_examples(family, scale=0.0)
    batches[1]["labels"] = torch.full_like(batches[1]["labels"], -100)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    alone, expected = gradients_alone(model, batches)
    PartialState._reset_state()
    AcceleratorState._reset_state()
    with mock.patch.dict(os.environ, ACCELERATE_USE_FSDP="false"):
        accelerator = Accelerator(cpu=True)
    copied = accelerator.prepare(model)
    averaged = DDPGradients(copied)
    loss = copied(**batches[accelerator.process_index]).loss
    accelerator.backward(averaged.touch(loss * accelerator.num_processes))
    averaged.forget_unused(accelerator)
    total = accelerator.reduce(loss.detach(), "sum")
    return [float(total), alone], {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected


def run(folder: Path, name: str) -> None:
    """A training as its name says; writes FOLDER/NAME.pt.

    Names are "families" (see `each_family_on_two_ranks`), or HOW-KIND and any of `accumulated`, `both`, `texts` (see
    `examples`; they are anchored, too), `joint` (no insulation), `evaluated`, `bf16`, `warmup` (the VLM rests but for
    new tokens and projector), and `resumed`: stopped after half of the steps and begun again, its policy in
    FOLDER/NAME.
    """
    if name == "families":
        return each_family_on_two_ranks(folder)
    how, kind, *variants = name.split("-")
    if how == "ddp":
        os.environ.pop("ACCELERATE_USE_FSDP", None)
    options = {
        "kind": kind,
        "accumulation": 2 if "accumulated" in variants else 1,
        "both_parts": "both" in variants,
        "texts": "texts" in variants,
        "anchor_weight": 0.5 if "texts" in variants else 0.0,
        "bf16": "bf16" in variants,
        "sample_in_eval": how != "zero3",
        "config": {"backbone_gradient_scale": 1.0 if "joint" in variants else 0.0},
    }
    if "warmup" in variants:
        rates = dict.fromkeys(RATE_ARGUMENTS.values(), LEARNING_RATE / 2)
        options |= {"stage": Stage(("new_tokens", "projector", "expert")), **rates}
    checkpoint = None
    if "resumed" in variants:
        first = make_trainer(folder / name, **options, max_steps=STEPS // 2, save_strategy="steps", save_steps=5)
        first.train()
        checkpoint = str(folder / name / f"checkpoint-{STEPS // 2}")
    trainer = make_trainer(folder / name, **options)
    texts, before = {"text": HeldOutTexts(["go to the left", "what is it, and where is it"])}, {}
    if "evaluated" in variants:
        before = trainer.evaluate(texts, metric_key_prefix="before")
    trainer.train(resume_from_checkpoint=checkpoint)
    if "resumed" in variants:
        trainer.save_model(str(folder / name))
    found = results(trainer)
    if "evaluated" in variants:
        found["metrics"] = {**before, **trainer.evaluate(), **trainer.evaluate(texts)}
    if trainer.is_world_process_zero():
        torch.save(found, folder / f"{name}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ended_process_group():
        for run_name in sys.argv[2:]:
            run(Path(sys.argv[1]), run_name)

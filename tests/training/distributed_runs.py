"""Small trainings of which `test_distributed.py` compares the results: on one process, or on the ranks of a launcher.

accelerate launch --config_file training/launch/fsdp2.yaml --num_processes 2 -m tests.training.distributed_runs \
    FOLDER fsdp2-paligemma ddp-qwen3_vl-accumulated ...

Batches go through every disagreement of ranks: nobody has labels, nobody has actions, one rank only has them.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.utils.data import SequentialSampler

from kivla import BinningActionTokenizer, KIVLACollator, KIVLAProcessor, KIVLATrainer, KIVLATrainingArguments
from kivla.processing import compute_statistics
from tests.vlm_processors import KINDS

STEPS, BATCH = 20, 4
CHUNK, WIDTH, STATE = 3, 2, 2
SIZES = {"chunk_size": CHUNK, "max_action_dim": WIDTH, "max_state_dim": STATE}
# What the four examples of a step teach: both parts, the VLM ("say"), the expert ("act"). A rank has two of them.
USUAL = ("both", "say", "act", "both")
UNUSUAL = {
    3: ("act",) * 4,
    6: ("say",) * 4,
    9: ("act", "act", "both", "say"),
    12: ("say", "say", "both", "act"),
    15: ("act",) * 4,
    16: ("act",) * 4,
    18: ("say",) * 4,
}


def example(index: int, teaches: str) -> dict:
    random = np.random.default_rng(index)
    image = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    if teaches == "say":
        return {"index": index, "images": [image], "text": "what is it", "response": str(index), "learned": True}
    values = {"state": random.normal(size=STATE), "actions": random.normal(size=(CHUNK, WIDTH))}
    return {"index": index, "images": [image], "text": f"go {index}", **values, "learned": teaches == "both"}


def examples() -> list[dict]:
    kinds = [kind for step in range(STEPS) for kind in UNUSUAL.get(step, USUAL)]
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


def make_trainer(folder: Path, kind: str, accumulation: int = 1, config: dict | None = None, **settings) -> InOrder:
    numbers = np.random.default_rng(0)
    statistics = {
        "actions": compute_statistics(numbers.normal(size=(50, WIDTH))),
        "state": compute_statistics(numbers.normal(size=(50, STATE))),
    }
    processor = KIVLAProcessor(KINDS[kind].processor(), BinningActionTokenizer(), statistics, **SIZES)
    model = KINDS[kind].policy(**SIZES, **(config or {}))
    size = BATCH // int(os.environ.get("WORLD_SIZE", 1)) // accumulation
    args = KIVLATrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": size,
            "per_device_eval_batch_size": 2,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": 2e-3,
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
        fsdp_on_cpu(args.mixed_precision)
    return InOrder(
        model,
        args,
        train_dataset=examples(),
        eval_dataset=[example(1000 + i, kind) for i, kind in enumerate(("both", "both", "say", "say"))],
        processing_class=processor,
        data_collator=Collator(processor),
    )


def fsdp_on_cpu(mixed_precision: str) -> None:
    """accelerate reads its FSDP settings on accelerators only; torch itself shards on CPUs as well."""
    plugin = FullyShardedDataParallelPlugin()
    if mixed_precision != "no":
        plugin.set_mixed_precision(mixed_precision)
    Accelerator(cpu=True, mixed_precision=mixed_precision)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin


def results(trainer: KIVLATrainer) -> dict:
    """Losses of every step, and the weights after the last one, whole."""
    names = ("loss", "token_loss", "flow_loss", "grad_norm", "backbone_grad_norm", "expert_grad_norm")
    history = [{n: entry[n] for n in names if n in entry} for entry in trainer.state.log_history if "loss" in entry]
    weights = trainer.accelerator.get_state_dict(trainer.model)
    return {"history": history, "weights": {name: weight.cpu().clone() for name, weight in weights.items()}}


def run(folder: Path, name: str) -> None:
    how, kind, *variants = name.split("-")
    if how == "ddp":
        os.environ.pop("ACCELERATE_USE_FSDP", None)
    trainer = make_trainer(folder / "run", kind, accumulation=2 if "accumulated" in variants else 1)
    trainer.train()
    found = results(trainer)
    if "evaluated" in variants:
        found["metrics"] = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(found, folder / f"{name}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for run_name in sys.argv[2:]:
        run(Path(sys.argv[1]), run_name)

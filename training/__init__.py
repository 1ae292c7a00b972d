"""Train a policy: data, recipes, the trainer and the figures of a policy.

The public names are loaded when they are first used: who reads a dataset does not wait for the trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .arguments import KIVLATrainingArguments
    from .data.collator import KIVLACollator
    from .data.lerobot.dataset import LeRobotDataset
    from .trainer import KIVLATrainer

_MODULES = {
    "KIVLACollator": ".data.collator",
    "KIVLATrainer": ".trainer",
    "KIVLATrainingArguments": ".arguments",
    "LeRobotDataset": ".data.lerobot.dataset",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = ["KIVLACollator", "KIVLATrainer", "KIVLATrainingArguments", "LeRobotDataset"]

from .arguments import KIVLATrainingArguments
from .data.collator import KIVLACollator
from .data.lerobot.dataset import LeRobotDataset
from .trainer import KIVLATrainer

__all__ = ["KIVLACollator", "KIVLATrainer", "KIVLATrainingArguments", "LeRobotDataset"]

from .arguments import KIVLATrainingArguments
from .collator import KIVLACollator
from .lerobot_dataset import LeRobotDataset
from .trainer import KIVLATrainer

__all__ = ["KIVLACollator", "KIVLATrainer", "KIVLATrainingArguments", "LeRobotDataset"]

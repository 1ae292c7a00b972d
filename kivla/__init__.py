"""KIVLA turns any Hugging Face vision-language model into a robot policy, with knowledge insulation."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .acting import ChunkExecutor
from .modeling_kivla import (
    ActionPredictionPipeline,
    KIVLAConfig,
    KIVLAExpertConfig,
    KIVLAForActionPrediction,
    KIVLAOutput,
    UnsupportedBackboneError,
)
from .processing import ActionDecodingFailure, BinningActionTokenizer, FASTActionTokenizer, KIVLAProcessor
from .training.arguments import KIVLATrainingArguments
from .training.data.collator import KIVLACollator
from .training.data.lerobot.dataset import LeRobotDataset
from .training.trainer import KIVLATrainer

__version__ = "0.1.0"

# With `import kivla`, the library's Auto classes and `pipeline("action-prediction")` know our models.
AutoConfig.register("kivla", KIVLAConfig)
AutoModel.register(KIVLAConfig, KIVLAForActionPrediction)
AutoModelForImageTextToText.register(KIVLAConfig, KIVLAForActionPrediction)
AutoProcessor.register(KIVLAConfig, KIVLAProcessor)
PIPELINE_REGISTRY.register_pipeline(
    "action-prediction", pipeline_class=ActionPredictionPipeline, pt_model=AutoModelForImageTextToText
)
# Every saved policy brings its code along, for `trust_remote_code=True` where kivla is not installed.
KIVLAConfig.register_for_auto_class()
KIVLAForActionPrediction.register_for_auto_class("AutoModelForImageTextToText")
KIVLAProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "ActionDecodingFailure",
    "ActionPredictionPipeline",
    "BinningActionTokenizer",
    "ChunkExecutor",
    "FASTActionTokenizer",
    "KIVLACollator",
    "KIVLAConfig",
    "KIVLAExpertConfig",
    "KIVLAForActionPrediction",
    "KIVLAOutput",
    "KIVLAProcessor",
    "KIVLATrainer",
    "KIVLATrainingArguments",
    "LeRobotDataset",
    "UnsupportedBackboneError",
]

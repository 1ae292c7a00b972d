"""KIVLA turns any Hugging Face vision-language model into a robot policy, with knowledge insulation."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .modeling_kivla import (
    ActionPredictionPipeline,
    KIVLAConfig,
    KIVLAExpertConfig,
    KIVLAForActionPrediction,
    KIVLAOutput,
    UnsupportedBackboneError,
)
from .processing import (
    ActionDecodingFailure,
    BinningActionTokenizer,
    FASTActionTokenizer,
    KIVLAProcessor,
)
from .training import KIVLACollator, KIVLATrainer, KIVLATrainingArguments, LeRobotDataset

# With `import kivla`, the library's Auto classes and `pipeline("action-prediction")` know our models.
AutoConfig.register("kivla", KIVLAConfig)
AutoModelForImageTextToText.register(KIVLAConfig, KIVLAForActionPrediction)
AutoProcessor.register(KIVLAConfig, KIVLAProcessor)
PIPELINE_REGISTRY.register_pipeline(
    "action-prediction", pipeline_class=ActionPredictionPipeline, pt_model=AutoModelForImageTextToText
)

__all__ = [
    "ActionDecodingFailure",
    "ActionPredictionPipeline",
    "BinningActionTokenizer",
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

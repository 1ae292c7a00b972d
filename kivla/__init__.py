"""KIVLA turns any Hugging Face vision-language model into a robot policy, with knowledge insulation."""

from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from . import training
from .acting import ChunkExecutor
from .modeling_kivla import (
    ActionPredictionPipeline,
    KIVLAConfig,
    KIVLAExpertConfig,
    KIVLAForActionPrediction,
    KIVLAOutput,
    RealTimeChunking,
    UnsupportedBackboneError,
)
from .processing import ActionDecodingFailure, BinningActionTokenizer, FASTActionTokenizer, KIVLAProcessor

if TYPE_CHECKING:  # loaded when they are first used, see `__getattr__`
    from .training import KIVLACollator, KIVLATrainer, KIVLATrainingArguments, LeRobotDataset

__version__ = "0.1.0"

# With `import kivla`, the library's Auto classes and `pipeline("action-prediction")` know our models. They must be told
# with the classes themselves, and these need torch: the pipelines alone cost what nearly all of `import kivla` costs
# (`python -m benchmarks imports`). The trainer and the datasets, which nobody has to be told of, wait.
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


def __getattr__(name: str):
    if name not in training.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(training, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
    "RealTimeChunking",
    "UnsupportedBackboneError",
]

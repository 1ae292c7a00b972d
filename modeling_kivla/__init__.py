from .action_checks import NonFiniteActionsError, UndecodableActionsError, actions_of
from .backbone_attention import UnsupportedBackboneError
from .backbone_probe import probe_backbone
from .configuration_kivla import KIVLAConfig, KIVLAExpertConfig
from .modeling_kivla import KIVLAForActionPrediction, KIVLAOutput
from .pipeline_kivla import ActionPredictionPipeline
from .real_time_chunking import RealTimeChunking, count_learned_actions

__all__ = [
    "ActionPredictionPipeline",
    "KIVLAConfig",
    "KIVLAExpertConfig",
    "KIVLAForActionPrediction",
    "KIVLAOutput",
    "NonFiniteActionsError",
    "RealTimeChunking",
    "UndecodableActionsError",
    "UnsupportedBackboneError",
    "actions_of",
    "count_learned_actions",
    "probe_backbone",
]

from .backbone_attention import UnsupportedBackboneError, probe_backbone
from .configuration_kivla import KIVLAConfig, KIVLAExpertConfig
from .modeling_kivla import KIVLAForActionPrediction, KIVLAOutput

__all__ = [
    "KIVLAConfig",
    "KIVLAExpertConfig",
    "KIVLAForActionPrediction",
    "KIVLAOutput",
    "UnsupportedBackboneError",
    "probe_backbone",
]

"""Execute chunks of actions on a robot, one action at a time."""

from .chunk_execution import ChunkExecutor
from .chunk_schedule import WAYS, Chunk, ChunkSchedule
from .execution_counts import ExecutionCounts
from .latency import LatencyEstimate
from .limits import ActionLimits
from .real_time import RealTimeExecutor
from .remote_policy import RemotePolicy
from .ticks import ticks

__all__ = [
    "WAYS",
    "ActionLimits",
    "Chunk",
    "ChunkExecutor",
    "ChunkSchedule",
    "ExecutionCounts",
    "LatencyEstimate",
    "RealTimeExecutor",
    "RemotePolicy",
    "ticks",
]

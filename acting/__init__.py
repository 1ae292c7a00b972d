"""Execute chunks of actions on a robot, one action at a time."""

from .chunk_execution import ChunkExecutor

__all__ = ["ChunkExecutor"]

"""Decoded frames kept in memory, so that a frame that is asked for again is not decoded again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np


class FrameCache:
    """The most recently used frames, up to a size in bytes. Every process (data-loader worker) fills its own.

    Args:
        max_bytes: how much the frames may take together; 0 keeps none.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._frames: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The frame of a key, decoded if it is not there; a copy, which the caller may change."""
        frame = self._frames.get(key)
        if frame is not None:
            self._frames.move_to_end(key)
            return frame.copy()
        frame = decode()
        if frame.nbytes <= self.max_bytes:
            self._frames[key] = frame.copy()
            self.num_bytes += frame.nbytes
            while self.num_bytes > self.max_bytes:
                _, oldest = self._frames.popitem(last=False)
                self.num_bytes -= oldest.nbytes
        return frame

    def __len__(self) -> int:
        return len(self._frames)

    def __getstate__(self) -> dict:
        return {"max_bytes": self.max_bytes}  # a spawned worker starts empty

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

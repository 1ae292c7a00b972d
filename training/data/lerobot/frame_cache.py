"""Decoded frames kept in memory, so that a frame that is asked for again is not decoded again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

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

    def get(self, keys: Sequence[Hashable], decode: Callable[[list[int]], list[np.ndarray]]) -> list[np.ndarray]:
        """The frames of several keys: copies, which the caller may change.

        Args:
            decode: called once with the places in `keys` of those that are not there, if there are any.
        """
        found = [self._frames.get(key) for key in keys]
        missing = [i for i, frame in enumerate(found) if frame is None]
        for key in (key for key, frame in zip(keys, found, strict=True) if frame is not None):
            self._frames.move_to_end(key)
        frames = [None if frame is None else frame.copy() for frame in found]
        for i, frame in zip(missing, decode(missing) if missing else (), strict=True):
            self._keep(keys[i], frame)
            frames[i] = frame
        return frames

    def _keep(self, key: Hashable, frame: np.ndarray) -> None:
        if frame.nbytes <= self.max_bytes:
            self._frames[key] = frame.copy()
            self.num_bytes += frame.nbytes
            while self.num_bytes > self.max_bytes:
                _, oldest = self._frames.popitem(last=False)
                self.num_bytes -= oldest.nbytes

    def __len__(self) -> int:
        return len(self._frames)

    def __getstate__(self) -> dict:
        return {"max_bytes": self.max_bytes}  # a spawned worker starts empty

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

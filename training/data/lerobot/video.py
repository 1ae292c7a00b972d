"""Frames out of video files, by their number in the order in which they are shown.

Training asks for frames in two patterns: one after the other (evaluation, statistics) and in random order
(shuffled batches). A reader therefore keeps its file open and decodes on when the next frame is asked for, and
otherwise jumps to the key frame before the wanted one and decodes forward from there.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .pyav import av, open_mp4
from .video_file import VideoReadError

MAX_PIXELS = 64_000_000  # of a frame

# A frame that is at most so many further on is decoded towards, and so is one before the next key frame; others are
# jumped to.
_NEAR = 4


def frame_times(path: Path) -> np.ndarray:
    """(F,) when each frame of a video is shown, in seconds after the first one; nothing is decoded.

    Raises:
        VideoReadError: the file cannot be opened as a video.
    """
    container, stream = _open(path)
    try:
        pts = _presentation_times(path, container, stream)
        return (pts - pts[0]) * float(stream.time_base)
    finally:
        container.close()


def _open(path: Path):
    """(container, its video stream)."""
    try:
        container = open_mp4(path)
        stream = container.streams.video[0]
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise VideoReadError(f"{path} cannot be opened as a video: {error}") from error
    if stream.codec_context is None or stream.time_base is None:
        raise VideoReadError(f"{path} holds no video that can be decoded.")
    return container, stream


def _presentation_times(path: Path, container, stream) -> np.ndarray:
    """(F,) in units of the stream's time base, in order.

    The file's index says when frames are *decoded*. Where that is at a steady rate so is their presentation, and the
    index is enough; otherwise all packets are read.
    """
    entries = stream.index_entries
    decoded = np.fromiter((entry.timestamp for entry in entries), np.int64, len(entries))
    steps = np.diff(decoded)
    is_whole = len(decoded) > 0 and len(decoded) == stream.frames and not any(entry.is_discard for entry in entries)
    if is_whole and stream.start_time is not None and (len(steps) == 0 or (steps[0] > 0 and (steps == steps[0]).all())):
        return stream.start_time + decoded - decoded[0]
    try:
        times = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
    except av.FFmpegError as error:
        raise VideoReadError(f"{path} cannot be read: {error}") from error
    if not times or None in times:
        raise VideoReadError(f"{path} has {'a frame without a time' if times else 'no frames'}.")
    return np.unique(np.array(times, np.int64))


class VideoReader:
    """One open video file; its frames are numbered in the order in which they are shown.

    Frames come out as a player shows them: turned, if the file says that the camera was.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._container, self._stream = _open(path)
        self._check_size(self._stream.codec_context.width, self._stream.codec_context.height)
        # One thread, here and in `read`: parallelism comes from data-loader workers. More threads would compete with
        # them, would make every jump dearer (they decode ahead), and a forked worker would wait for them for ever.
        self._stream.codec_context.thread_count = 1
        self._reformatter = (
            av.video.reformatter.VideoReformatter()
        )  # reused, because setting one up costs more than converting a frame
        self._pts = _presentation_times(path, self._container, self._stream)
        # In the order of decoding, which differs by a few frames at most: this only decides what is faster
        self._key_frames = np.flatnonzero([entry.is_keyframe for entry in self._stream.index_entries])
        self._number = _NOWHERE  # of the frame decoded last

    def read(self, number: int) -> np.ndarray:
        """A frame as uint8 (height, width, 3) RGB.

        Raises:
            VideoReadError: there is no such frame, or it cannot be decoded.
        """
        if not 0 <= number < len(self._pts):
            raise VideoReadError(f"{self.path} has {len(self._pts)} frames, and no frame {number}.")
        try:
            if not self._is_ahead(number):
                self._jump(number)
            while self._number < number:
                self._advance(number)
        except av.FFmpegError as error:
            self._number = _NOWHERE  # the decoder's state is unknown: the next read must jump
            raise VideoReadError(f"{self.path} cannot be decoded at frame {number}: {error}") from error
        if self._number > number:
            raise VideoReadError(f"{self.path} is damaged: frame {number} is missing. Download or copy it again.")
        if self._frame.is_corrupt:
            raise VideoReadError(f"{self.path} is damaged at frame {number}. Download or copy it again.")
        image = self._reformatter.reformat(self._frame, format="rgb24", threads=1).to_ndarray()
        turns = round(self._frame.rotation / 90)  # to the left
        return np.ascontiguousarray(np.rot90(image, turns)) if turns % 4 else image

    def _is_ahead(self, number: int) -> bool:
        """Whether a frame comes sooner by decoding on than by a jump."""
        if not 0 <= number - self._number <= _NEAR and len(self._key_frames):
            before, now = np.searchsorted(self._key_frames, [number, self._number], side="right")
            return self._number <= number and before == now
        return 0 <= number - self._number <= _NEAR

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise VideoReadError(f"{self.path} has {width} x {height} pixels; at most {MAX_PIXELS} are decoded.")

    def close(self) -> None:
        self._container.close()

    def _jump(self, number: int) -> None:
        """Decode one frame at or before this one, from the nearest key frame."""
        step_back = 1
        while True:
            start = max(number - step_back, 0)
            self._container.seek(int(self._pts[start]), stream=self._stream)
            self._frames: Iterator[av.VideoFrame] = self._container.decode(self._stream)
            self._advance(number)
            # In open groups of pictures a key frame is stored before frames that are shown earlier, and those cannot
            # be decoded from it: the jump came too late, so start further back.
            if start == 0 or self._number <= number:
                return
            step_back *= 8

    def _advance(self, number: int) -> None:
        self._frame = next(self._frames, None)
        if self._frame is None:
            self._number = _NOWHERE
            raise VideoReadError(f"{self.path} ends before frame {number}.")
        self._check_size(self._frame.width, self._frame.height)
        pts = self._frame.pts
        self._number = _NOWHERE if pts is None else int(np.searchsorted(self._pts, pts))
        if pts is None or self._number == len(self._pts) or self._pts[self._number] != pts:
            self._number = _NOWHERE
            raise VideoReadError(f"{self.path} has a frame at an unexpected time, near frame {number}.")


_NOWHERE = -(1 << 40)


class VideoReaders:
    """The most recently used video readers of this process, at most `max_open` of them.

    Safe to use from forked and spawned data-loader workers: every process opens its own files. Not safe to share
    between threads.

    Args:
        open_file: makes the reader of a path.
    """

    def __init__(self, max_open: int = 16, open_file: Callable[[Path], VideoReader] = VideoReader):
        self._max_open, self._open_file = max_open, open_file
        self._forget()

    def read(self, path: Path, numbers: Sequence[int]) -> list[np.ndarray]:
        """Several frames of a file, decoded in the order in which they are shown; see `VideoReader.read`."""
        if self._process_id != os.getpid():  # a forked worker shares file offsets with its parent
            self._forget()
        if path not in self._readers:
            while self._readers and (len(self._readers) >= self._max_open or not self._oldest.path.is_file()):
                self._oldest.close()  # a file that was deleted meanwhile needs its space until then
                self._readers.popitem(last=False)
            self._readers[path] = self._open_file(path)
        self._readers.move_to_end(path)
        frames = {number: self._readers[path].read(number) for number in sorted(set(numbers))}
        return [frames[number] for number in numbers]

    @property
    def _oldest(self) -> VideoReader:
        return next(iter(self._readers.values()))

    def _forget(self) -> None:
        self._readers: OrderedDict[Path, VideoReader] = OrderedDict()
        self._process_id = os.getpid()

    def __getstate__(self) -> dict:
        return {"max_open": self._max_open, "open_file": self._open_file}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

"""Frames out of video files, by time.

Training asks for frames in two patterns: one after the other (evaluation, statistics) and in random order
(shuffled batches). A reader therefore keeps its file open and decodes on when the next frame is asked for, and
otherwise jumps to the key frame before the wanted one and decodes forward from there.
"""

import os
import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

try:
    import av
    from av.video.reformatter import VideoReformatter
except ImportError as error:
    raise ImportError("Reading video needs PyAV. Install it with `pip install 'kivla[video]'`.") from error


# Of a frame; and of a file at its top level, where there are usually four
MAX_PIXELS = 64_000_000
_MAX_BOXES = 10_000


class VideoReadError(RuntimeError):
    """A video file is damaged, or has no frame at the requested time."""


def check_video_file(path: Path) -> None:
    """Raise `VideoReadError` when `path` is visibly not a whole MP4 file, by reading its box headers only.

    This costs a few reads whatever the size of the file, and finds what goes wrong most often: an interrupted
    download or copy, and a Git LFS pointer in the place of the video. Damage inside the stream shows when it is
    decoded.
    """
    size = path.stat().st_size
    boxes, position, count = set(), 0, 0
    with path.open("rb") as file:
        while position < size and count < _MAX_BOXES:
            count += 1
            file.seek(position)
            header = file.read(16)
            if len(header) < 8:
                raise VideoReadError(f"{path} is cut off in the middle. Download or copy it again.")
            length, name = struct.unpack(">I4s", header[:8])
            if position == 0 and name != b"ftyp":
                raise VideoReadError(
                    f"{path} is not an MP4 video (it starts with {header!r}). If it is a Git LFS pointer, run "
                    "`git lfs pull`; otherwise download it again."
                )
            if length == 1:  # the size did not fit in 32 bits and follows the name
                length = int.from_bytes(header[8:16], "big")
            elif length == 0:  # the box runs to the end of the file
                length = size - position
            boxes.add(name)
            position += max(length, 8)
    if position != size or not {b"ftyp", b"moov", b"mdat"} <= boxes:
        raise VideoReadError(f"{path} ({size} bytes) is cut off or incomplete. Download or copy it again.")


class VideoReader:
    """One open video file with a constant frame rate; time 0 is its first frame."""

    def __init__(self, path: Path, fps: float):
        self._path = path
        self._frame_duration = 1.0 / fps
        try:
            # A stranger's file: MP4 alone, not one of the playlists by which FFmpeg is led to other files and servers.
            options = {"protocol_whitelist": "file"}
            self._container = av.open(str(path), format="mp4", options=options, metadata_errors="replace")
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise VideoReadError(f"{path} cannot be opened as a video: {error}") from error
        context = self._stream.codec_context
        if context is None or self._stream.time_base is None:
            raise VideoReadError(f"{path} holds no video that can be decoded.")
        self._check_size(context.width, context.height)
        # One thread, here and in `read`: parallelism comes from data-loader workers. More threads would compete with
        # them, would make every jump dearer (they decode ahead), and a forked worker would wait for them for ever.
        self._stream.codec_context.thread_count = 1
        self._reformatter = VideoReformatter()  # reused, because setting one up costs more than converting a frame
        self._time_base = float(self._stream.time_base)
        self._first_pts = self._stream.start_time or 0
        self._time = -np.inf  # of the frame decoded last; nothing yet

    def read(self, timestamp: float) -> np.ndarray:
        """The frame at `timestamp` (seconds) as uint8 (height, width, 3) RGB.

        Raises:
            VideoReadError: no frame lies within half a frame of `timestamp`, or the frame cannot be decoded.
        """
        tolerance = 0.5 * self._frame_duration
        try:
            if not -tolerance <= timestamp - self._time <= self._frame_duration + tolerance:
                self._jump(timestamp)
            while self._time < timestamp - tolerance:
                self._advance(timestamp)
        except av.FFmpegError as error:
            self._time = -np.inf  # the decoder's state is unknown: the next read must jump
            raise VideoReadError(f"{self._path} cannot be decoded at {timestamp:.4f} s: {error}") from error
        # Frames are at least a frame's duration apart, so the first one inside the tolerance is the nearest one.
        if self._time > timestamp + tolerance:
            raise VideoReadError(
                f"{self._path} has no frame within {tolerance:.4f} s of {timestamp:.4f} s; the nearest later one is "
                f"at {self._time:.4f} s"
            )
        if self._frame.is_corrupt:
            raise VideoReadError(f"{self._path} is damaged at {timestamp:.4f} s. Download or copy it again.")
        return self._reformatter.reformat(self._frame, format="rgb24", threads=1).to_ndarray()

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise VideoReadError(f"{self._path} has {width} x {height} pixels; at most {MAX_PIXELS} are decoded.")

    def close(self) -> None:
        self._container.close()

    def _jump(self, timestamp: float) -> None:
        """Decode one frame at or before `timestamp`, from the nearest key frame."""
        step_back = self._frame_duration
        while True:
            start = max(timestamp - step_back, 0.0)
            self._container.seek(self._first_pts + int(start / self._time_base), stream=self._stream)
            self._frames: Iterator[av.VideoFrame] = self._container.decode(self._stream)
            self._advance(timestamp)
            # In open groups of pictures a key frame is stored before frames that are shown earlier, and those cannot
            # be decoded from it: the jump came too late, so start further back.
            if start == 0.0 or self._time < timestamp + 0.5 * self._frame_duration:
                return
            step_back *= 8

    def _advance(self, timestamp: float) -> None:
        self._frame = next(self._frames, None)
        if self._frame is None:
            self._time = -np.inf
            raise VideoReadError(f"{self._path} ends before {timestamp:.4f} s")
        if self._frame.pts is None:
            self._time = -np.inf
            raise VideoReadError(f"{self._path} has a frame without a time, near {timestamp:.4f} s")
        self._check_size(self._frame.width, self._frame.height)
        self._time = (self._frame.pts - self._first_pts) * self._time_base


class VideoReaders:
    """The most recently used video readers of this process, at most `max_open` of them.

    Safe to use from forked and spawned data-loader workers: every process opens its own files. Not safe to share
    between threads.
    """

    def __init__(self, max_open: int = 16):
        self._max_open = max_open
        self._forget()

    def read(self, path: Path, timestamp: float, fps: float) -> np.ndarray:
        """See `VideoReader.read`."""
        if self._process_id != os.getpid():  # a forked worker shares file offsets with its parent
            self._forget()
        if path not in self._readers:
            if len(self._readers) >= self._max_open:
                _, oldest = self._readers.popitem(last=False)
                oldest.close()
            self._readers[path] = VideoReader(path, fps)
        self._readers.move_to_end(path)
        return self._readers[path].read(timestamp)

    def _forget(self) -> None:
        self._readers: OrderedDict[Path, VideoReader] = OrderedDict()
        self._process_id = os.getpid()

    def __getstate__(self) -> dict:
        return {"max_open": self._max_open}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

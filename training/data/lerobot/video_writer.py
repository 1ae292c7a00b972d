"""Encodes frames into the video files of a LeRobot dataset."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from .pyav import av


@dataclass(frozen=True)
class VideoCodec:
    """How frames are encoded.

    Attributes:
        encoder: FFmpeg's name of the encoder; all named here are in PyAV's wheels.
        input_format: the pixel format that the encoder is given.
        options: the encoder's options.
        name, pixel_format: what a reader finds in the file.
    """

    encoder: str
    input_format: str
    options: dict[str, str]
    name: str
    pixel_format: str


# A key frame every second frame, because training jumps to random frames (LeRobot's choice, too). One level of
# parallelism: with more SVT-AV1 starts dozens of threads for each file, and has been seen to wait for them for ever.
AV1 = VideoCodec("libsvtav1", "yuv420p", {"g": "2", "crf": "30", "svtav1-params": "lp=1"}, "av1", "yuv420p")
# Without lookahead ("zerolatency"), which only serves to distribute a bit rate, no frame is held back.
LOSSLESS_H264 = VideoCodec(
    "libx264rgb",
    "rgb24",
    {"g": "2", "bf": "0", "qp": "0", "preset": "veryfast", "tune": "zerolatency"},
    "h264",
    "gbrp",
)


class VideoFile:
    """One MP4 file with a constant frame rate that grows by episodes.

    Attributes:
        num_frames: frames given so far.
        num_bytes: size of what has been encoded so far; AV1's encoder holds back the last frames until `close`.
    """

    def __init__(self, path: Path, fps: int, height: int, width: int, codec: VideoCodec):
        os.environ.setdefault("SVT_LOG", "1")  # only errors: SVT-AV1 otherwise prints its settings for every file
        self.num_frames = 0
        self.num_bytes = 0
        self._time_base = Fraction(1, fps)
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(codec.encoder, rate=fps, options=codec.options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, codec.input_format

    def append(self, images: np.ndarray) -> None:
        """Add frames, uint8 (T, H, W, 3) RGB."""
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = self.num_frames, self._time_base
            self._write(frame)
            self.num_frames += 1

    def close(self) -> None:
        self._write(None)  # what the encoder still holds
        self._container.close()

    def discard(self) -> None:
        """Close a file that nobody will read."""
        self._container.close()

    def _write(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self.num_bytes += packet.size
            self._container.mux(packet)

"""Where a video can be entered: its key frames. A frame between two of them is decoded from the one before."""

from dataclasses import dataclass
from pathlib import Path

from .pyav import open_mp4


@dataclass(frozen=True)
class KeyFrames:
    """What the packets of a video file say; nothing is decoded.

    Attributes:
        frames, key_frames: how many there are.
        starts_with_one: whether the first frame is a key frame.
        decoded: how many frames are decoded, on average, for one at random.
        codec: its name.
    """

    frames: int
    key_frames: int
    starts_with_one: bool
    decoded: float
    codec: str


def read_key_frames(path: Path) -> KeyFrames:
    """Read the key frames of a video file.

    Raises:
        av.FFmpegError: it is damaged.
    """
    with open_mp4(path) as container:
        stream = container.streams.video[0]
        is_key = [packet.is_keyframe for packet in container.demux(stream) if packet.pts is not None]
        codec = stream.codec_context.codec.canonical_name
    since, decoded = 0, 0
    for key in is_key:  # in the order of decoding
        since = 1 if key else since + 1
        decoded += since
    return KeyFrames(len(is_key), sum(is_key), bool(is_key and is_key[0]), decoded / max(len(is_key), 1), codec)


__all__ = ["KeyFrames", "read_key_frames"]

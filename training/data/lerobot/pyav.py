"""PyAV, which only datasets with videos need."""

from pathlib import Path

from packaging.version import Version

try:
    import av
except ImportError as error:
    raise ImportError("Videos need PyAV. Install it with `pip install 'kivla[video]'`.", name=error.name) from error

_VERSION = Version(av.__version__)
if _VERSION.major < 17:  # as LeRobot has it: it does not say when frames are shown
    raise ImportError(f"Videos need PyAV 17 or newer, not {_VERSION}: `pip install 'kivla[video]'`.", name="av")
# What a file says of itself need not be UTF-8. From 19 on PyAV reads it anyway, and knows no such option.
_TEXTS = {"metadata_errors": "replace"} if _VERSION.major < 19 else {}


def open_mp4(path: Path) -> av.container.InputContainer:
    """Open a stranger's video: MP4 alone, and none of the playlists by which FFmpeg is led to other files and servers.

    Raises:
        av.FFmpegError: it is none, or damaged.
    """
    return av.open(str(path), format="mp4", options={"protocol_whitelist": "file"}, **_TEXTS)


__all__ = ["av", "open_mp4"]

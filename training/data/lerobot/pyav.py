"""PyAV, which only datasets with videos need."""

from pathlib import Path

from packaging.version import Version

try:
    import av
except ImportError as error:
    raise ImportError("Videos need PyAV. Install it with `pip install 'kivla[video]'`.", name=error.name) from error

# What a file says of itself need not be UTF-8. From 19 on PyAV reads it anyway, and knows no such option.
_TEXTS = {"metadata_errors": "replace"} if Version(av.__version__) < Version("19") else {}


def open_mp4(path: Path) -> av.container.InputContainer:
    """Open a stranger's video: MP4 alone, and none of the playlists by which FFmpeg is led to other files and servers.

    Raises:
        av.FFmpegError: it is none, or damaged.
    """
    return av.open(str(path), format="mp4", options={"protocol_whitelist": "file"}, **_TEXTS)


__all__ = ["av", "open_mp4"]

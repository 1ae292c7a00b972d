"""Whether a video file is whole, by its outer structure: nothing is decoded, and PyAV is not needed."""

import struct
from pathlib import Path

_MAX_BOXES = 10_000  # at the top level of a file, where there are usually four


class VideoReadError(RuntimeError):
    """A video file is damaged, or does not have the frame."""


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

"""Encodes the videos of a LeRobot dataset again, with key frames at a chosen spacing; all else is copied.

Training reads frames at random, and each is decoded from the key frame before it: one in 250 frames, as recorders and
video tools like it, costs a hundred times what every second one does.
"""

import json
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from .pyav import av, open_mp4

# For each codec its encoder, how close to the original it is, and what makes frames come out in the order they came in
_ENCODERS = {
    "av1": ("libsvtav1", {"crf": "20", "svtav1-params": "lp=1"}, ("yuv420p", "yuv420p10le")),
    "h264": ("libx264", {"crf": "18", "bf": "0"}, ("yuv420p", "yuv422p", "yuv444p")),
}
CODECS = tuple(_ENCODERS)


def transcode_dataset(
    source: Path, target: Path, keyframes_every: int, codec: str | None = None, note: Callable[[Path], None] = print
) -> int:
    """Write a dataset of the same frames at the same times with other key frames; return the number of its videos.

    Args:
        source: folder of a LeRobot dataset with videos, v2.0 to v3.0.
        target: a folder that is not there yet. It appears when it is whole.
        keyframes_every: frames from one key frame to the next.
        codec: of `CODECS`; each video's own by default.
        note: told of each video, before it is encoded.

    Raises:
        FileNotFoundError: there is no dataset with videos.
        FileExistsError: the target is there.
        ValueError: the target is in the source; or a video that could not be kept as it is (another codec or pixel
            format, a rotation).
    """
    videos = sorted(path.relative_to(source) for path in (source / "videos").rglob("*.mp4"))
    if not (source / "meta" / "info.json").is_file() or not videos:
        raise FileNotFoundError(f"{source} is no folder of a LeRobot dataset with videos (meta/info.json, videos/).")
    if target.exists():
        raise FileExistsError(f"{target} is there already. Name a folder that is not.")
    if source.resolve() in target.resolve().parents:
        raise ValueError(f"{target} lies in the dataset itself, which is to stay as it is. Name a folder elsewhere.")
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns("*.mp4"))
    for video in videos:
        note(video)
        (unfinished / video).parent.mkdir(parents=True, exist_ok=True)
        transcode(source / video, unfinished / video, keyframes_every, codec)
    _tell_info(unfinished / "meta" / "info.json", keyframes_every, codec)
    unfinished.rename(target)
    return len(videos)


def transcode(source: Path, target: Path, keyframes_every: int, codec: str | None = None) -> None:
    """Encode one video again, every frame at its own time.

    Raises:
        ValueError: it cannot be kept as it is.
    """
    os.environ.setdefault("SVT_LOG", "1")  # only errors
    with open_mp4(source) as given:
        stream = given.streams.video[0]
        name = codec or stream.codec_context.codec.canonical_name
        if name not in _ENCODERS:
            raise ValueError(f"{source.name} is {name}, which is not written here. Give a codec: {', '.join(CODECS)}.")
        encoder, options, formats = _ENCODERS[name]
        if stream.pix_fmt not in formats:
            raise ValueError(
                f"{source.name} has pixels as {stream.pix_fmt}, and {name} is written as {', '.join(formats)}: colours "
                "would change."
            )
        base = Fraction(stream.time_base)
        timescale = {"video_track_timescale": str(base.denominator)}
        with av.open(str(target), "w", options=timescale) as written:
            out = written.add_stream(encoder, rate=stream.average_rate, options={**options, "g": str(keyframes_every)})
            out.width, out.height, out.pix_fmt = stream.width, stream.height, stream.pix_fmt
            out.codec_context.time_base = base
            for frame in given.decode(stream):
                if frame.rotation:
                    raise ValueError(f"{source.name} is turned by {frame.rotation} degrees when shown, which is lost.")
                frame.pict_type = 0  # the encoder's to choose
                written.mux(out.encode(frame))
            written.mux(out.encode(None))
    if frame_times(source) != frame_times(target):
        raise ValueError(f"The times of {source.name} could not be kept: its clock runs in steps of {base} s.")


def frame_times(path: Path) -> list[Fraction]:
    """When each frame is shown, in seconds."""
    with open_mp4(path) as container:
        stream = container.streams.video[0]
        return sorted(p.pts * Fraction(stream.time_base) for p in container.demux(stream) if p.pts is not None)


def _tell_info(path: Path, keyframes_every: int, codec: str | None) -> None:
    """Correct what meta/info.json says of the videos, where it says it."""
    info = json.loads(path.read_text(encoding="utf-8"))
    told = {"video.g": keyframes_every, **({} if codec is None else {"video.codec": codec})}
    for feature in info["features"].values():
        about = feature.get("info") or feature.get("video_info") or {}
        about.update({key: value for key, value in told.items() if key in about})
    path.write_text(json.dumps(info, indent=4, ensure_ascii=False), encoding="utf-8")


__all__ = ["CODECS", "frame_times", "transcode", "transcode_dataset"]

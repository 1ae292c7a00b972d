import importlib
import os
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kivla.training.data.lerobot.key_frames import read_key_frames
from kivla.training.data.lerobot.transcode import transcode
from kivla.training.data.lerobot.video import VideoReader, VideoReaders
from kivla.training.data.lerobot.video_file import VideoReadError, check_video_file
from tests.helpers.lerobot_v21 import decode

FIXTURE = Path(__file__).parents[3] / "data" / "lerobot_v3_metaworld"
SOURCE = FIXTURE / "videos/observation.images.corner2/chunk-000/file-000.mp4"  # AV1, 182 frames at 80 fps

# Codec, its options, and the frame rate: key frames far apart, frames stored out of order (B-frames), frames shown
# before the key frame that is stored before them (open groups of pictures), a rate that is no whole number.
ENCODINGS = {
    "open groups": ("libx264", {"x264-params": "keyint=12:bframes=3:b-adapt=0:scenecut=0:open-gop=1"}, 80),
    "b-frames": ("libx264", {"x264-params": "keyint=30:bframes=3"}, 50),
    "one key frame": ("libx264", {"x264-params": "keyint=250:scenecut=0"}, Fraction(30000, 1001)),
    "mpeg4": ("mpeg4", {"bf": "2", "g": "20"}, 30),
}


@pytest.fixture(scope="module")
def planes():
    return decode(SOURCE)


def encode(planes, path, codec, options, fps):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for number, plane in enumerate(planes):
            frame = av.VideoFrame.from_ndarray(plane, format="yuv420p")
            frame.pts, frame.time_base = number, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def decode_rgb(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_random_access_gives_the_frames_of_sequential_decoding(encoding, planes, tmp_path):
    codec, options, fps = ENCODINGS[encoding]
    path = tmp_path / "video.mp4"
    encode(planes, path, codec, options, fps)
    check_video_file(path)
    frames = decode_rgb(path)
    assert len(frames) == 182
    reader = VideoReader(path)
    for number in np.random.default_rng(0).permutation(182):
        np.testing.assert_array_equal(reader.read(number), frames[number], strict=True)


def test_the_same_and_the_next_frame_need_no_jump(monkeypatch):
    jumps = []
    jump = VideoReader._jump
    monkeypatch.setattr(VideoReader, "_jump", lambda self, number: jumps.append(number) or jump(self, number))
    reader = VideoReader(SOURCE)
    for number in range(100, 150):
        np.testing.assert_array_equal(reader.read(number), reader.read(number))
    assert jumps == [100]


def test_reading_past_the_end_is_an_error_and_leaves_the_reader_usable():
    reader = VideoReader(SOURCE)
    last = reader.read(181)
    for _ in range(2):
        with pytest.raises(VideoReadError, match=r"file-000.mp4 has 182 frames, and no frame 182"):
            reader.read(182)
    np.testing.assert_array_equal(reader.read(181), last)


def test_only_a_few_files_stay_open(tmp_path):
    paths = [Path(shutil.copy(SOURCE, tmp_path / f"{number}.mp4")) for number in range(5)]
    opened, closed = [], []

    class Counted(VideoReader):
        def __init__(self, path):
            super().__init__(path)
            opened.append(path)

        def close(self):
            super().close()
            closed.append(self.path)

    readers = VideoReaders(max_open=2, open_file=Counted)
    frames = decode_rgb(SOURCE)
    for number in (0, 1, 0, 2, 0, 3, 0, 4):  # 0 is always among the two used last
        np.testing.assert_array_equal(readers.read(paths[number], [number])[0], frames[number])
    assert opened == paths
    assert closed == [paths[1], paths[2], paths[3]]


def test_a_file_that_was_deleted_is_closed_when_another_one_is_opened(tmp_path):
    paths = [Path(shutil.copy(SOURCE, tmp_path / f"{number}.mp4")) for number in range(3)]
    readers = VideoReaders()
    first, _ = (readers.read(path, [5]) for path in paths[:2])
    paths[0].unlink()
    np.testing.assert_array_equal(readers.read(paths[0], [5]), first)  # while it is open
    paths[1].unlink()
    readers.read(paths[2], [5])
    with pytest.raises(VideoReadError, match="No such file"):
        readers.read(paths[0], [5])
    assert list(readers._readers) == [paths[2]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_its_own_files():
    readers = VideoReaders()
    frames = decode_rgb(SOURCE)
    readers.read(SOURCE, [0])
    child = os.fork()
    if child == 0:
        same = np.array_equal(readers.read(SOURCE, range(1, 60)), frames[1:60])
        os._exit(0 if same else 1)
    same = np.array_equal(readers.read(SOURCE, range(1, 60)), frames[1:60])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert same


def test_a_file_that_is_no_video(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("no video")
    with pytest.raises(VideoReadError, match=r"text.mp4 cannot be opened as a video"):
        VideoReader(path)


def test_what_a_file_says_of_itself_need_not_be_utf_8(planes, tmp_path):
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = "made by someone"
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        frame = av.VideoFrame.from_ndarray(planes[0], format="yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 30)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = path.read_bytes()
    path.write_bytes(content.replace(b"made by someone", b"made by s\xf6meone"))
    assert b"s\xf6meone" in path.read_bytes()
    assert VideoReader(path).read(0).shape == (96, 96, 3)
    assert read_key_frames(path).frames == 1
    transcode(path, tmp_path / "new.mp4", 1)
    assert VideoReader(tmp_path / "new.mp4").read(0).shape == (96, 96, 3)


@pytest.mark.parametrize(
    "opens", [VideoReader, read_key_frames, lambda path: transcode(path, path.with_name("n.mp4"), 1)]
)
def test_a_playlist_is_no_video(opens, tmp_path):
    """FFmpeg would follow it to other files, and servers."""
    path = tmp_path / "video.mp4"
    path.write_text(f"ffconcat version 1.0\nfile '{SOURCE}'\n")
    with pytest.raises((VideoReadError, av.FFmpegError)):
        opens(path)
    assert not path.with_name("n.mp4").exists()


def test_a_pyav_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(av, "__version__", "15.1.0")
    monkeypatch.delitem(sys.modules, "kivla.training.data.lerobot.pyav")
    with pytest.raises(ImportError, match=r"PyAV 17 or newer, not 15\.1\.0: `pip install .kivla"):
        importlib.import_module("kivla.training.data.lerobot.pyav")

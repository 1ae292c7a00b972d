"""A dataset with other key frames has the same frames at the same times."""

import json

import pytest

from kivla.cli import main
from kivla.training.data.lerobot.dataset import LeRobotDataset
from kivla.training.data.lerobot.key_frames import read_key_frames
from kivla.training.data.lerobot.transcode import frame_times, transcode
from kivla.training.data.lerobot.video import VideoReader
from tests.helpers.lerobot_folder import number_of, pictures_are_right, write_folder, write_video


@pytest.mark.parametrize("codec", ["h264", "av1"])
@pytest.mark.parametrize("times", [None, [0, 0.1, 0.21, 0.3, 0.55, 0.6, 0.7, 1.2]], ids=["steady", "uneven"])
def test_frames_and_times_stay(tmp_path, codec, times):
    write_video(tmp_path / "old.mp4", range(300, 308), 10, times=times)
    transcode(tmp_path / "old.mp4", tmp_path / "new.mp4", 3, codec)
    found = read_key_frames(tmp_path / "new.mp4")
    assert (found.frames, found.key_frames, found.codec) == (8, 3, codec)
    assert frame_times(tmp_path / "new.mp4") == frame_times(tmp_path / "old.mp4")
    new = VideoReader(tmp_path / "new.mp4")
    assert [number_of(new.read(i)) for i in range(8)] == list(range(300, 308))
    transcode(tmp_path / "new.mp4", tmp_path / "again.mp4", 1)  # in its own codec
    assert read_key_frames(tmp_path / "again.mp4").key_frames == 8


def test_a_dataset_is_written_again(tmp_path, capsys):
    write_folder(tmp_path / "old")
    main(["transcode", str(tmp_path / "old"), "--output_dir", str(tmp_path / "new"), "--codec", "h264"])
    old, new = (LeRobotDataset(tmp_path / name, chunk_size=2) for name in ("old", "new"))
    assert pictures_are_right(new) and len(new) == len(old)
    assert (new[3]["actions"] == old[3]["actions"]).all()
    files = [{path.relative_to(root) for path in root.rglob("*")} for root in (tmp_path / "old", tmp_path / "new")]
    assert files[0] == files[1]
    assert all(read_key_frames(path).decoded <= 1.5 for path in (tmp_path / "new").rglob("*.mp4"))
    assert "3 videos" in capsys.readouterr().out


def test_what_cannot_be_kept_is_refused(tmp_path):
    write_folder(tmp_path / "old")
    command = ["transcode", str(tmp_path / "old"), "--output_dir", str(tmp_path / "new")]
    with pytest.raises(SystemExit, match=r"mpeg4, which is not written here\. Give a codec: av1, h264"):
        main(command)
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    with pytest.raises(SystemExit, match="is there already"):
        main([*command, "--codec", "h264"])
    with pytest.raises(SystemExit, match=r"--keyframes_every must be at least 1, got 0"):
        main([*command, "--keyframes_every", "0"])
    with pytest.raises(SystemExit, match="lies in the dataset itself"):
        main(["transcode", str(tmp_path / "old"), "--output_dir", str(tmp_path / "old" / "new"), "--codec", "h264"])
    with pytest.raises(SystemExit, match="is no folder of a LeRobot dataset"):
        main(["transcode", str(tmp_path), "--output_dir", str(tmp_path / "newer")])
    write_video(tmp_path / "turned.mp4", range(3), 10, rotation=90)
    with pytest.raises(ValueError, match=r"is turned by -?90 degrees"):
        transcode(tmp_path / "turned.mp4", tmp_path / "lost.mp4", 2, "h264")


def test_the_metadata_say_what_is_there(tmp_path):
    def tell(info):
        for feature in info["features"].values():
            if feature["dtype"] == "video":
                feature["info"] = {"video.codec": "mpeg4", "video.g": 5, "video.fps": 10}

    write_folder(tmp_path / "old", edit_info=tell)
    main(["transcode", str(tmp_path / "old"), "--output_dir", str(tmp_path / "new"), "--codec", "h264"])
    info = json.loads((tmp_path / "new" / "meta" / "info.json").read_text())
    (about,) = (feature["info"] for feature in info["features"].values() if feature["dtype"] == "video")
    assert about == {"video.codec": "h264", "video.g": 2, "video.fps": 10}


def test_a_dataset_of_the_hub_is_fetched_whole(hub, tmp_path):
    main(["transcode", "user/arm@v1", "--output_dir", str(tmp_path / "new"), "--codec", "h264"])
    new = LeRobotDataset(tmp_path / "new", chunk_size=2)
    assert len(new) == 5 + 6 and pictures_are_right(new), "of the revision that was asked for"
    assert all(read_key_frames(path).decoded <= 1.5 for path in (tmp_path / "new").rglob("*.mp4"))

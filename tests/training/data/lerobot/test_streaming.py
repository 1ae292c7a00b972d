"""Videos are fetched when they are needed, each about once an epoch, and only so many are kept."""

import os
import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader

from kivla.training.data.lerobot.dataset import LeRobotDataset
from kivla.training.data.mixture import Mixture
from tests.helpers.lerobot_folder import CAMERA, pictures_are_right, write_folder, write_video
from tests.training.data.lerobot.conftest import WRIST


def video(episode, camera):
    return f"videos/chunk-000/{camera}/episode_{episode:06d}.mp4"


def requests(hub):
    """The names of files of which the content was asked for, in order; each as often as it was."""
    log = [path for method, path in hub.log if method == "GET" and "/resolve/" in path]
    return [path.split("/resolve/")[1].partition("/")[2] for path in log]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


@pytest.fixture
def stream_gb(hub):
    """Space for the videos of two episodes: one is trained on, one is loaded ahead."""
    sizes = [sum(len(hub.repos["user/arm"]["main"][video(e, c)]) for c in (CAMERA, WRIST)) for e in range(3)]
    return 2 * max(sizes) / 1e9


def test_a_pass_asks_for_every_needed_video_once(hub, tmp_path, stream_gb):
    data = LeRobotDataset("user/arm", 3, episodes=[0, 2], cameras=["top"], streaming=True, stream_gb=stream_gb)
    data.statistics, data.content_digest, data.action_chunks(5)
    assert not [name for name in requests(hub) if name.endswith(".mp4")], "nothing before a picture is asked for"
    assert {name for name in requests(hub) if name.startswith("data")} == {
        f"data/chunk-000/episode_{e:06d}.parquet" for e in (0, 2)
    }
    local = LeRobotDataset(tmp_path / "data", 3, episodes=[0, 2], cameras=["top"])
    hub.log.clear()
    order = list(data.file_windows.epoch(seed=3))
    for item in order:
        assert_equal(data[item], local[item])
    first = data[order[0]]["episode_index"]
    assert requests(hub) == [video(e, CAMERA) for e in (first, 2 - first)]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_examples_are_those_of_the_folder(hub, tmp_path, version):
    root = write_folder(tmp_path / "folder", version)
    hub.upload("user/other", root)
    data, local = LeRobotDataset("user/other", 3, streaming=True), LeRobotDataset(root, 3)
    data = pickle.loads(pickle.dumps(data))  # as a loader worker gets it
    for item in range(len(local)):
        assert_equal(data[item], local[item])
    assert any("at most 20 GB" in note for note in data.notes)


def test_a_history_needs_no_other_files(hub, tmp_path, stream_gb):
    history = {"history": 3, "history_stride": 2}
    data = LeRobotDataset("user/arm", 3, cameras=["top"], streaming=True, stream_gb=stream_gb, **history)
    local = LeRobotDataset(tmp_path / "data", 3, cameras=["top"], **history)
    for item in data.file_windows.epoch(seed=3):
        assert_equal(data[item], local[item])
    fetched = [name for name in requests(hub) if name.endswith(".mp4")]
    assert sorted(fetched) == [video(episode, CAMERA) for episode in data.episodes]


def test_files_with_several_episodes_are_fetched_once(hub, tmp_path):
    def in_two_files(episodes):
        for episode, (file, start, end) in zip(episodes, [(0, 0, 1.2), (1, 0, 0.9), (1, 0.9, 2.4)], strict=True):
            values = {"file_index": file, "from_timestamp": start, "to_timestamp": end}
            episode |= {f"videos/{CAMERA}/{name}": value for name, value in values.items()}

    root = write_folder(tmp_path / "two", "v3.0", edit_episodes=in_two_files)
    for file, numbers in enumerate((range(12), [*range(100, 109), *range(200, 215)])):
        write_video(root / f"videos/{CAMERA}/chunk-000/file-{file:03d}.mp4", list(numbers), 10)
    hub.upload("user/two", root)
    largest = (root / f"videos/{CAMERA}/chunk-000/file-001.mp4").stat().st_size
    data = LeRobotDataset("user/two", 3, streaming=True, stream_gb=2 * largest / 1e9)
    local = LeRobotDataset(root, 3)
    order = list(data.file_windows.epoch(seed=1))
    for item in order:
        assert_equal(data[item], local[item])
    assert len([name for name in requests(hub) if name.endswith(".mp4")]) == 2
    assert pictures_are_right(data)
    episodes = [data[item]["episode_index"] for item in order]
    later = [episode for episode in episodes if episode]
    assert later != sorted(later) and later != sorted(later, reverse=True), "episodes of a file are mixed"


def test_no_more_is_kept_than_asked_for_and_what_is_there_is_not_fetched_again(hub, stream_gb):
    data = LeRobotDataset("user/arm", 3, streaming=True, stream_gb=stream_gb)
    kept = lambda: sum(path.stat().st_size for path in data._stream.files())  # noqa: E731
    for item in data.file_windows.epoch(seed=0):
        data[item]
        assert 0 < kept() <= stream_gb * 1e9
    assert len(set(requests(hub))) == len(requests(hub)), "each file once"
    assert len(data._stream.files()) < 6, "the whole dataset does not fit"
    last = item
    hub.log.clear()
    again = LeRobotDataset("user/arm", 3, streaming=True, stream_gb=stream_gb)
    again[last]
    assert not requests(hub), "a run that goes on finds the videos that it was at"
    # An episode that made room for others is fetched again.
    for first in (0, 12, 21):
        again[first]
    assert {video(e, c) for e in range(3) for c in (CAMERA, WRIST)} > set(requests(hub)) > set()


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_fetch_each_file_once_for_all(hub, tmp_path, stream_gb, start):
    """Workers want frames of the same files at the same time."""
    data = LeRobotDataset("user/arm", 3, streaming=True, stream_gb=stream_gb)
    order = list(data.file_windows.epoch(seed=2))
    loader = DataLoader(data, batch_size=None, sampler=order, num_workers=2, multiprocessing_context=start)
    local = LeRobotDataset(tmp_path / "data", 3)
    for item, example in zip(order, loader, strict=True):
        assert_equal({name: np.asarray(value) for name, value in example.items()}, local[item])
    videos = [name for name in requests(hub) if name.endswith(".mp4")]
    assert len(videos) == len(set(videos)) == 6


def test_a_file_that_another_process_deletes_is_fetched_again(hub, tmp_path, stream_gb):
    stream = LeRobotDataset("user/arm", 3, streaming=True, stream_gb=stream_gb)._stream
    path = stream.hub.root / video(1, CAMERA)
    calls = []

    def read(file):
        calls.append(file)
        if len(calls) == 1:
            file.unlink()
        return file.read_bytes()

    assert stream.use(path, read) == (tmp_path / "data" / video(1, CAMERA)).read_bytes()
    assert requests(hub)[-2:] == [video(1, CAMERA)] * 2
    with pytest.raises(ZeroDivisionError):
        stream.use(path, lambda file: 1 / 0)


def test_downloads_that_were_killed_leave_nothing(hub):
    stream = LeRobotDataset("user/arm", 3, streaming=True)._stream
    left = [stream.folder / stream.hub.commit / f".cache/huggingface/download/videos/{n}.incomplete" for n in "ab"]
    left[0].parent.mkdir(parents=True)
    for path in left:
        path.touch()
    os.utime(left[0], (0, 0))
    LeRobotDataset("user/arm", 3, streaming=True)
    assert not left[0].exists() and left[1].exists(), "the other one may be going on"


def test_a_mixture_goes_on_with_the_files_it_is_at(hub, stream_gb):
    def mixture():
        return Mixture([LeRobotDataset("user/arm", 3, streaming=True, stream_gb=stream_gb)], [1], 72, seed=5)

    whole = mixture()
    undisturbed = [whole[i] for i in range(72)]  # two epochs
    episodes = [example["episode_index"] for example in undisturbed]
    assert sorted(episodes[:36]) == sorted(episodes[36:]) and len(set(episodes[:9])) == 1
    for path in whole.sources[0]._stream.files():
        path.unlink()
    start = next(i for i in range(36) if episodes[i] != episodes[0]) + 2  # in the second window
    hub.log.clear()
    resumed = mixture()
    for i in range(start, 36):
        assert_equal(resumed[i], undisturbed[i])
    left = dict.fromkeys(episodes[start:36])
    wanted = {video(e, c) for e in left for c in (CAMERA, WRIST)}
    assert {name for name in requests(hub) if name.endswith(".mp4")} == wanted
    assert video(episodes[0], CAMERA) not in wanted


def test_what_cannot_be_placed_is_refused_when_it_is_fetched(hub, tmp_path):
    short = tmp_path / "short.mp4"
    write_video(short, [100, 101, 102], 10)
    hub.repos["user/arm"]["main"][video(1, CAMERA)] = short.read_bytes()
    data = LeRobotDataset("user/arm", 3, cameras=["top"], streaming=True)
    data[0]
    with pytest.raises(ValueError, match=r"episode 1 in .*: 9 rows, and 3 frames"):
        data[12]


def test_videos_of_another_rate_need_all_others(hub, tmp_path):
    root = write_folder(tmp_path / "slow", video_fps=5)
    assert len(LeRobotDataset(root, 3)) == 36, "all have a frame for each row"
    hub.upload("user/slow", root)
    data = LeRobotDataset("user/slow", 3, streaming=True)
    with pytest.raises(ValueError, match=r"does not run at 10 fps, but has a frame for each row.*leave out streaming"):
        data[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_no_episode_has_the_video_of_another_one(streaming, hub, tmp_path):
    """Nor where `video_path` is the same for all, and one is selected alone."""
    path = "videos/chunk-000/{video_key}/episode_000000.mp4"
    root = write_folder(tmp_path / "one", lengths=(12,) * 3, edit_info=lambda info: info.update(video_path=path))
    hub.upload("user/one", root)
    assert pictures_are_right(LeRobotDataset("user/one", 3, episodes=[2], streaming=streaming))
    assert [name for name in requests(hub) if name.endswith(".mp4")] == [video(2, CAMERA)]


def test_missing_videos_are_named_at_opening(hub):
    del hub.repos["user/arm"]["main"][video(1, CAMERA)]
    with pytest.raises(FileNotFoundError, match=r"1 video.* missing: .*episode_000001.mp4"):
        LeRobotDataset("user/arm", cameras=["top"], streaming=True)


def test_what_cannot_be_streamed_is_refused(hub, tmp_path, stream_gb):
    with pytest.raises(ValueError, match="is a folder of this machine"):
        LeRobotDataset(tmp_path / "data", streaming=True)
    with pytest.raises(ValueError, match="for streaming=True, got 3"):
        LeRobotDataset("user/arm", stream_gb=3)
    with pytest.raises(ValueError, match="stream_gb must be twice as large"):
        LeRobotDataset("user/arm", streaming=True, stream_gb=stream_gb * 0.9)

    def as_pictures(info):
        info["features"][CAMERA]["dtype"] = "image"

    hub.upload("user/pictures", write_folder(tmp_path / "pictures", edit_info=as_pictures))
    with pytest.raises(ValueError, match="no videos that could be streamed"):
        LeRobotDataset("user/pictures", streaming=True)

"""Of a dataset on the Hub only the files that are needed are asked for."""

import pytest
from huggingface_hub import constants

from kivla.training.data.lerobot.dataset import LeRobotDataset
from tests.helpers.lerobot_folder import CAMERA, pictures_are_right, write_folder

WRIST = "observation.images.wrist"


def files(*episodes, cameras=(CAMERA, WRIST)):
    data = {f"data/chunk-000/episode_{episode:06d}.parquet" for episode in episodes}
    return data | {f"videos/chunk-000/{camera}/episode_{e:06d}.mp4" for camera in cameras for e in episodes}


META = {"meta/info.json", "meta/tasks.jsonl", "meta/episodes.jsonl"}


def test_only_the_files_of_the_selection_are_downloaded_and_only_once(hub, tmp_path):
    data = LeRobotDataset("user/arm", chunk_size=3, episodes=[2], cameras=["top"])
    assert pictures_are_right(data) and (data.episodes, data.cameras) == ([2], [CAMERA])
    assert hub.downloads() == META | files(2, cameras=[CAMERA])
    hub.log.clear()
    data = LeRobotDataset("user/arm", chunk_size=3, episodes=[0, 2])
    assert pictures_are_right(data) and data.cameras == [CAMERA, WRIST]
    assert hub.downloads() == files(0, 2) - files(2, cameras=[CAMERA]), "what is there is not asked for again"
    hub.log.clear()
    LeRobotDataset("user/arm", chunk_size=3, episodes=[0, 2])
    assert not hub.downloads()
    whole = LeRobotDataset("user/arm", chunk_size=3)
    assert whole.episodes == [0, 1, 2]
    assert whole.content_digest == LeRobotDataset(tmp_path / "data", chunk_size=3).content_digest, "as in a folder"


def test_an_interrupted_download_goes_on(hub, monkeypatch):
    missing = "videos/chunk-000/observation.images.top/episode_000001.mp4"
    content = hub.repos["user/arm"]["main"].pop(missing)
    with pytest.raises(FileNotFoundError, match=r"1 video.* missing: .*episode_000001.mp4"):
        LeRobotDataset("user/arm", cameras=["top"])
    hub.repos["user/arm"]["main"][missing] = content
    hub.log.clear()
    assert pictures_are_right(LeRobotDataset("user/arm", cameras=["top"]))
    assert hub.downloads() == {missing}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pictures_are_right(LeRobotDataset("user/arm", cameras=["top"])), "without a network, what is there"


@pytest.mark.parametrize(
    ("ending", "what"),
    [
        (".parquet", r"data/.*\.parquet of the dataset"),
        pytest.param("info.json", "meta/ of", marks=pytest.mark.slow),
    ],
)
def test_a_download_that_breaks_off_is_named_and_goes_on(ending, what, hub):
    hub.cut, hub.cut_ending = 1000, ending
    with pytest.raises(ConnectionError, match=f"{what}.* could not be downloaded: .*Try again"):
        LeRobotDataset("user/arm", cameras=["top"])
    hub.cut = 0
    assert pictures_are_right(LeRobotDataset("user/arm", cameras=["top"]))


def test_a_revision(hub):
    for name, options in (("user/arm@v1", {}), ("user/arm", {"revision": "v1"})):
        data = LeRobotDataset(name, chunk_size=3, **options)
        assert pictures_are_right(data) and data.episodes == [0, 1] and data.name == "user/arm"
        assert any("revision v1" in note for note in data.notes)
    with pytest.raises(FileNotFoundError, match="user/arm has no revision 'v9'"):
        LeRobotDataset("user/arm@v9")
    with pytest.raises(FileNotFoundError, match="'user/leg' is neither a folder here nor a dataset"):
        LeRobotDataset("user/leg")


def test_names_of_cameras_need_no_pictures(hub):
    for episode in range(3):
        del hub.repos["user/arm"]["main"][f"videos/chunk-000/{WRIST}/episode_{episode:06d}.mp4"]
    assert LeRobotDataset.camera_names("user/arm") == [CAMERA]
    assert hub.downloads() <= META
    data = LeRobotDataset("user/arm")
    assert data.cameras == [CAMERA] and any(f"camera {WRIST}, but the folder holds no" in n for n in data.notes)


def test_neither_a_folder_nor_on_the_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*no/such/folder"):
        LeRobotDataset(tmp_path / "no/such/folder")  # no valid Hub id, so nothing is asked over the network
    with pytest.raises(ValueError, match="is a folder, which has no revision 'v1'"):
        LeRobotDataset(write_folder(tmp_path / "data"), revision="v1")

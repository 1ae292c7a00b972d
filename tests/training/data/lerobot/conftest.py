"""A dataset on a stand-in of the Hub."""

import pytest
from huggingface_hub import constants

from tests.helpers.hub_stand_in import hub_stand_in
from tests.helpers.lerobot_folder import CAMERA, write_folder, write_video

WRIST = "observation.images.wrist"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in, which has a dataset of three episodes and two cameras, and an older one at `v1`."""

    def two_cameras(info):
        info["features"][WRIST] = info["features"][CAMERA]

    root = write_folder(tmp_path / "data", edit_info=two_cameras)
    for episode, length in enumerate((12, 9, 15)):
        path = root / f"videos/chunk-000/{WRIST}/episode_{episode:06d}.mp4"
        write_video(path, [1000 + 100 * episode + k for k in range(length)], 10)
    with hub_stand_in() as (endpoint, stand_in):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / ".cache/huggingface"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name, value in (("HF_ENDPOINT", endpoint), ("HF_HUB_OFFLINE", "0"), ("HF_HOME", tmp_path / "home")):
            monkeypatch.setenv(name, str(value))  # of processes that are started anew
        stand_in.upload("user/arm", write_folder(tmp_path / "old", lengths=(5, 6)), "v1")
        stand_in.upload("user/arm", root)
        yield stand_in

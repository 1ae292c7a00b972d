"""Shared by every test."""

import datasets
import pytest


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Tests, and the processes that they start, must not write into the user's cache, nor read what is left there."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("datasets_cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        yield


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """The folder of a tiny VLM with random weights."""
    from kivla.demo.tiny_vlm import save_tiny_vlm  # most tests need none of it

    folder = tmp_path_factory.mktemp("vlm")
    save_tiny_vlm(folder, image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    return folder

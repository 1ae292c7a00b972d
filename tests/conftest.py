"""Shared by every test."""

import datasets
import pytest


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Tests must not write into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
        yield

"""Decoded frames that are kept: which, how many, and that nobody notices."""

import pickle

import numpy as np
import pytest

from kivla.training.data.lerobot.dataset import LeRobotDataset
from kivla.training.data.lerobot.frame_cache import FrameCache
from tests.helpers.policies import DATASET


def test_the_least_recently_used_goes_first():
    cache, decoded = FrameCache(max_bytes=20), []

    def get(key):
        (frame,) = cache.get([key], lambda _: [decoded.append(key) or np.full(10, ord(key), dtype=np.uint8)])
        return frame

    for key in "abacab":  # room for two: c drives out b, and b then c
        assert (get(key) == ord(key)).all()
        assert cache.num_bytes == 10 * len(cache) <= 20
    assert "".join(decoded) == "abcb"


def test_a_frame_beyond_the_limit_is_not_kept():
    cache = FrameCache(max_bytes=5)
    assert len(cache.get(["a"], lambda _: [np.zeros(6, dtype=np.uint8)])[0]) == 6
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_what_a_caller_does_to_a_frame_stays_with_the_caller():
    cache = FrameCache(max_bytes=100)
    for _ in range(3):
        (frame,) = cache.get(["a"], lambda _: [np.ones(10, dtype=np.uint8)])
        assert frame.all()
        frame[:] = 0


def test_several_frames_are_decoded_by_one_call_and_only_those_that_are_not_there():
    cache, asked = FrameCache(max_bytes=100), []

    def decode(keys):
        return lambda places: asked.append([keys[i] for i in places]) or [np.full(2, keys[i]) for i in places]

    for keys in ([3, 5], [1, 3, 5, 7], [7, 1]):
        assert [frame[0] for frame in cache.get(keys, decode(keys))] == keys
    assert asked == [[3, 5], [1, 7]]


@pytest.mark.parametrize("megabytes", [0.05, 10])
def test_a_dataset_gives_the_same_frames_and_decodes_them_once(megabytes, monkeypatch):
    """96 pixels: 27 kB a frame, so that the small cache holds one and the large one all."""
    plain, cached = LeRobotDataset(DATASET, 4), LeRobotDataset(DATASET, 4, frame_cache_mb=megabytes)
    decode, decoded = cached._decoded, []
    monkeypatch.setattr(cached, "_decoded", lambda *args: decoded.append(args[0]) or decode(*args))
    order = [3, 90, 3, -1, 90, 3]
    for i in order:
        np.testing.assert_array_equal(cached[i]["images"][0], plain[i]["images"][0])
    assert len(decoded) == (len(set(order)) if megabytes > 1 else len(order))
    assert cached._frame_cache.num_bytes <= megabytes * 1e6


def test_a_spawned_worker_starts_empty():
    data = LeRobotDataset(DATASET, 4, frame_cache_mb=10)
    data[0]
    assert len(data._frame_cache) == 1
    assert len(pickle.loads(pickle.dumps(data._frame_cache))) == 0

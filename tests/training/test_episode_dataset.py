"""A dataset of a user's own format gives the same as the reader of LeRobot's, on the same demonstrations."""

import numpy as np
import pytest

from kivla import LeRobotDataset
from kivla.training.data.episode_dataset import EpisodeDataset
from kivla.training.data.robot_dataset import RobotDataset
from tests.helpers.policies import DATASET

CHUNK = 8


class InMemory(EpisodeDataset):
    """The episodes of a LeRobot dataset, as a user's own reader would give them."""

    def __init__(self, folder, chunk_size=50, episodes=None, cameras=None, robot=None):
        self.source = LeRobotDataset(folder, chunk_size=1)
        lengths = {episode: len(self.source.episode_range(episode)) for episode in self.source.episodes}
        names = {"action_names": self.source.action_names, "state_names": self.source.state_names}
        layout = {"lengths": lengths, "all_cameras": self.source.cameras, "fps": self.source.fps, **names}
        super().__init__(folder, chunk_size, episodes, cameras, robot, **layout)

    def read_vectors(self, episode):
        items = [self.source[i] for i in self.source.episode_range(episode)]
        return {
            "actions": np.concatenate([item["actions"] for item in items]),
            "state": [item["state"] for item in items],
        }

    def read_images(self, episode, frame):
        images = self.source[self.source.episode_range(episode)[frame]]["images"]
        return [images[self.source.cameras.index(camera)] for camera in self.cameras]

    def read_text(self, episode, frame):
        return self.source[self.source.episode_range(episode)[frame]]["text"]


@pytest.fixture(scope="module", params=[{}, {"episodes": [2, 0], "robot": "arm"}], ids=["all", "selected"])
def both(request):
    return InMemory(DATASET, CHUNK, **request.param), LeRobotDataset(DATASET, CHUNK, **request.param)


def test_items_are_the_same(both):
    own, lerobot = both
    assert len(own) == len(lerobot)
    for index in (0, 1, len(own) // 2, len(own) - 3, -1):
        mine, theirs = own[index], lerobot[index]
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if name == "images":
                assert all(np.array_equal(*pair) for pair in zip(mine[name], value, strict=True))
            elif name == "timestamp":
                assert mine[name] == pytest.approx(value, abs=1e-5)
            else:
                np.testing.assert_array_equal(mine[name], value, err_msg=name)
        assert own.size_of(index % len(own)) == lerobot.size_of(index % len(own))
    with pytest.raises(IndexError):
        own[len(own)]


def test_what_training_asks_of_it_is_the_same(both):
    own, lerobot = both
    for name in (
        "cameras",
        "fps",
        "episodes",
        "num_episodes",
        "state_dim",
        "action_dim",
        "state_names",
        "action_names",
    ):
        assert getattr(own, name) == getattr(lerobot, name), name
    np.testing.assert_array_equal(own.action_chunks(20), lerobot.action_chunks(20))
    for kind, statistics in lerobot.statistics.items():
        for name, values in statistics.items():
            np.testing.assert_allclose(own.statistics[kind][name], values, err_msg=f"{name} of {kind}")
    assert [own.episode_range(episode) for episode in own.episodes] == [
        lerobot.episode_range(episode) for episode in own.episodes
    ]


def test_other_data_has_another_digest(both):
    own, _ = both
    again = InMemory(DATASET, 3, own.episodes, robot=own.robot)
    assert again.content_digest == own.content_digest, "the chunk size is no content"
    assert InMemory(DATASET, CHUNK, own.episodes[:1]).content_digest != own.content_digest


def test_the_frames_of_an_episode_are_those_of_its_items(both):
    own, lerobot = both
    from_items = RobotDataset.episode_frames(lerobot, 2)
    for data in (own, lerobot):
        frames = data.episode_frames(2)
        assert frames.keys() == from_items.keys()
        for name in ("actions", "state"):
            np.testing.assert_array_equal(frames[name], from_items[name], err_msg=name)
        np.testing.assert_allclose(frames["timestamp"], from_items["timestamp"], atol=1e-5)
        assert data.episode_texts(2) == RobotDataset.episode_texts(lerobot, 2)

"""A dataset of a user's own format, in one file: each episode an npz with actions, state, front (pictures) and text."""

from pathlib import Path

import numpy as np

from kivla.training.data.episode_dataset import EpisodeDataset


class NpzDataset(EpisodeDataset):
    def __init__(self, folder, chunk_size=50, episodes=None, cameras=None, robot=None):
        self.files = [dict(np.load(path)) for path in sorted(Path(folder).glob("*.npz"))]
        lengths = {number: len(file["actions"]) for number, file in enumerate(self.files)}
        layout = {"lengths": lengths, "all_cameras": ["front"], "fps": 10, "action_names": ["x", "y"]}
        super().__init__(folder, chunk_size, episodes, cameras, robot, **layout)

    def read_vectors(self, episode):
        return {name: self.files[episode][name] for name in ("actions", "state")}

    def read_images(self, episode, frame):
        return [self.files[episode][camera][frame] for camera in self.cameras]

    def read_text(self, episode, frame):
        return str(self.files[episode]["text"])

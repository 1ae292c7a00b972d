"""Learn from demonstrations in a format of your own. Here: a folder for each episode, with CSV files and PNG pictures.

    python examples/own_dataset.py    # writes a small sample of the format, and looks at what is read from it

The class is all that the commands need, in the repository's root:

    kivla train --dataset outputs/own_format --dataset_format examples.own_dataset:CsvDataset \
        --vlm tabletop --chunk_size 8 --expert_hidden_size 64 --expert_intermediate_size 256 \
        --max_steps 20 --output_dir outputs/example_own_dataset
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from kivla import KIVLACollator, KIVLAProcessor
from kivla.simulation import TabletopVectorEnv
from kivla.simulation.recording import demonstrate
from kivla.training.data.episode_dataset import EpisodeDataset


class CsvDataset(EpisodeDataset):
    """`episode_0000/` has instruction.txt, actions.csv and state.csv (a row a frame), and top_0000.png, ..."""

    def __init__(self, folder, chunk_size=50, episodes=None, cameras=None, robot=None):
        self.folders = sorted(Path(folder).glob("episode_*"))
        lengths = {number: len(self._table(number, "actions")) for number in range(len(self.folders))}
        super().__init__(folder, chunk_size, episodes, cameras, robot, lengths=lengths, all_cameras=["top"], fps=10)

    def read_vectors(self, episode: int) -> dict[str, np.ndarray]:
        """(frames, D) each, in the robot's units. Leave out "state" where there is none."""
        return {name: self._table(episode, name) for name in ("actions", "state")}

    def read_images(self, episode: int, frame: int) -> list[np.ndarray]:
        """uint8 (height, width, 3) for each of `self.cameras`. Only these are read when an example is asked for."""
        files = [self.folders[episode] / f"{camera}_{frame:04}.png" for camera in self.cameras]
        return [np.asarray(Image.open(file).convert("RGB")) for file in files]

    def read_text(self, episode: int, frame: int) -> str:
        return (self.folders[episode] / "instruction.txt").read_text(encoding="utf-8").strip()

    def _table(self, episode: int, name: str) -> np.ndarray:
        return np.loadtxt(self.folders[episode] / f"{name}.csv", delimiter=",", ndmin=2)


def write_sample(folder: Path, num_episodes: int) -> None:
    """What your robot has recorded. Here the scripted expert of the simulated table stands in for it."""
    for number, episode in enumerate(demonstrate(TabletopVectorEnv(num_episodes), list(range(num_episodes)))):
        place = folder / f"episode_{number:04}"
        place.mkdir(parents=True, exist_ok=True)
        np.savetxt(place / "actions.csv", episode.actions, "%.5f", ",")
        np.savetxt(place / "state.csv", episode.states, "%.5f", ",")
        (place / "instruction.txt").write_text(episode.instruction + "\n", encoding="utf-8")
        for frame, picture in enumerate(episode.images["top"]):
            Image.fromarray(picture).save(place / f"top_{frame:04}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Read demonstrations in a format of your own.")
    parser.add_argument("--vlm", default="simulation/tabletop_vlm", help="a folder or a Hub id")
    parser.add_argument("--folder", type=Path, default=Path("outputs/own_format"))
    parser.add_argument("--num_episodes", type=int, default=20)
    args = parser.parse_args()

    write_sample(args.folder, args.num_episodes)
    data = CsvDataset(args.folder, chunk_size=8)
    print(f"{len(data)} frames of {len(data.episodes)} episodes, cameras {data.cameras}")
    print({name: np.shape(value) for name, value in data[0].items()})
    print("mean action", data.statistics["actions"]["mean"].round(3))

    # What the model gets of it
    robot = {"statistics": data.statistics, "cameras": data.cameras}
    processor = KIVLAProcessor.from_vlm(args.vlm, chunk_size=8, max_action_dim=data.action_dim, **robot)
    batch = KIVLACollator(processor)([data[0], data[1]])
    print({name: tuple(tensor.shape) for name, tensor in batch.items()})


if __name__ == "__main__":
    main()

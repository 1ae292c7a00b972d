"""`python -m benchmarks.video_loading`: does a loader keep up with two cameras of 640 x 480 pixels, kept as videos?

Datasets of the same frames, in AV1 and in H.264, with a key frame every 2 frames (LeRobot's choice), 30 and 250 (a
recorder's). Random examples are read and collated as for training: two pictures each, actions, FAST tokens, prompt.
Beside it, in the same process and in turn, the demo's training step on as many examples. All on one thread; a loader
has as many processes as `--dataloader_num_workers` says.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from kivla import KIVLACollator, LeRobotDataset
from kivla.demo.stages import TabletopArguments, options
from kivla.hub_cards.environment_info import environment_info
from kivla.named_models import TABLETOP_VLM
from kivla.simulation import TabletopVectorEnv
from kivla.training.build import start_policy
from kivla.training.data.lerobot.transcode import CODECS, transcode_dataset
from kivla.training.data.lerobot.writer import LeRobotWriter
from kivla.training.muon import MuonWithAdamW
from kivla.training.parts import freeze_vision

from .demo import demonstrated
from .loading import train
from .options import count
from .timing import interleaved

HEIGHT, WIDTH = 480, 640
CAMERAS = ("top", "wrist")
SPACINGS = (2, 30, 250)  # frames from one key frame to the next


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.video_loading", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--frames", type=count, default=250, help="of an episode; 250")
    parser.add_argument("--episodes", type=count, default=4, help="4")
    parser.add_argument("--batch_size", type=count, default=32, help="examples; 32")
    parser.add_argument("--repetitions", type=count, default=7, help="of each, in turn; 7")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        print(table(given, measure(given, Path(folder))))


def measure(given: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds for a batch: of the demo's step (under "step"), and of loading by codec and spacing."""
    original = folder / "original"
    write(original, given.episodes, given.frames)
    args = TabletopArguments(num_demonstrations=min(given.batch_size, 100), batch_size=given.batch_size)
    chosen = np.random.default_rng(0).integers(
        given.episodes * given.frames, size=(given.repetitions + 1, args.batch_size)
    )
    calls = {}
    with demonstrated(args) as (demonstrations, model, processor):
        freeze_vision(model)  # as in the demo
        optimizer = MuonWithAdamW(model.named_parameters(), lr=1e-9)
        batch = KIVLACollator(processor)([demonstrations[i % len(demonstrations)] for i in range(args.batch_size)])
        calls["step"] = partial(train, model, optimizer, batch)
        for codec in CODECS:
            for spacing in SPACINGS:
                name = f"{codec}, {spacing}"
                transcode_dataset(original, folder / name, spacing, codec, note=lambda path: None)
                data = LeRobotDataset(folder / name, args.chunk_size)
                collate = KIVLACollator(start_policy(TABLETOP_VLM, [data], options(data, args)).processor)
                calls[name] = partial(_load, data, collate, iter(chosen))
        return interleaved("Two cameras", calls, given.repetitions)


def write(folder: Path, num_episodes: int, num_frames: int) -> None:
    """Write episodes of a tabletop under a lamp, by cameras whose pixels are noisy."""
    names = {"state_names": ["x", "y", "closed"], "action_names": ["dx", "dy", "grip"]}
    cameras = dict.fromkeys(CAMERAS, (HEIGHT, WIDTH))
    with LeRobotWriter(folder, 30, cameras, **names, robot_type="tabletop", image_format="video") as writer:
        for episode in range(num_episodes):
            frames = list(_frames(episode, num_frames))
            images = np.stack([image for image, _ in frames])
            rng = np.random.default_rng(episode)
            actions = rng.normal(size=(num_frames, 3)).cumsum(0).astype(np.float32) / 10
            states = np.stack([state for _, state in frames])
            pictures = {"top": images, "wrist": images[:, :, ::-1]}
            writer.add_episode(pictures, states, actions, task="touch the red star")


def _frames(seed: int, num_frames: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    env = TabletopVectorEnv(1, kinds=["move"], render_mode="rgb_array", render_size=HEIGHT, max_steps=num_frames + 1)
    observation, _ = env.reset(seed=seed)
    lamp = np.linspace(0.6, 1, WIDTH)[:, None]
    heading = rng.normal(size=2)
    for number in range(num_frames):
        picture = np.pad(env.render()[0], ((0, 0), (0, WIDTH - HEIGHT), (0, 0)), mode="edge")
        noisy = picture * lamp + rng.normal(0, 3, (HEIGHT, WIDTH, 1))
        yield noisy.clip(0, 255).astype(np.uint8), observation["state"][0]
        if number % 20 == 0:
            heading = rng.normal(size=2)
        observation, *_ = env.step(np.array([[*heading, -1.0]], np.float32))


def _load(data: LeRobotDataset, collate: KIVLACollator, batches: Iterator[np.ndarray]) -> None:
    collate([data[int(i)] for i in next(batches)])


def table(given: argparse.Namespace, seconds: dict[str, list[float]]) -> str:
    """A line for each codec and spacing, with the ratios of each repetition: median, and from the least to the most."""
    step = np.array(seconds["step"])
    lines = [
        f"{given.batch_size} random examples of {given.episodes} episodes of {given.frames} frames, two cameras of "
        f"{WIDTH} x {HEIGHT}; {environment_info()['cpu']}. The demo's step takes {np.median(step):.2f} s.",
        "",
        "| codec, frames from key frame to key frame | s a batch | ms a picture | batches in the time of a step |",
        "|---|--:|--:|--:|",
    ]
    for name in [name for name in seconds if name != "step"]:
        taken = np.array(seconds[name])
        ratio = step / taken
        milliseconds = 1000 * np.median(taken) / given.batch_size / len(CAMERAS)
        shown = f"{np.median(ratio):.2f} ({ratio.min():.2f} - {ratio.max():.2f})"
        lines.append(f"| {name} | {np.median(taken):.2f} | {milliseconds:.1f} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

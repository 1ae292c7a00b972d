"""Pictures of roll-outs: videos of single episodes, and a contact sheet of many."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from .rollout import Episode

SUCCESS, FAILURE = "#2a9d5c", "#d1495b"
MIN_VIDEO_WIDTH = 240  # pixels; smaller frames are enlarged by a whole factor, so that every pixel stays visible


def choose_episodes(episodes: Sequence[Episode], count: int) -> list[Episode]:
    """At most `count` episodes: as many failures as successes as far as there are, failures first."""
    failures = [episode for episode in episodes if not episode.success]
    successes = [episode for episode in episodes if episode.success]
    num_failures = min(len(failures), max(count // 2, count - len(successes)))
    return failures[:num_failures] + successes[: count - num_failures]


def title(episode: Episode) -> str:
    """Instruction and outcome in one line."""
    outcome = "success" if episode.success else "failure"
    return f"{episode.instruction}: {outcome} ({episode.steps} steps, seed {episode.seed})"


def write_video(path: str | os.PathLike, episode: Episode, fps: int) -> None:
    """An episode with its title over it, as .mp4 (H.264, needs PyAV) or .gif.

    Raises:
        ValueError: the episode was not recorded, or the suffix is another one.
    """
    path = Path(path)
    if episode.frames is None:
        raise ValueError(f"The episode with seed {episode.seed} was not recorded: call rollout(..., record=...).")
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"Videos are written as .mp4 or .gif, not as {path.name!r}.")
    frames = _titled(episode)
    if path.suffix == ".gif":
        first, *rest = (Image.fromarray(frame) for frame in frames)
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    else:
        from ..training.data.lerobot.video_writer import (  # only here: GIFs and contact sheets need no PyAV
            VideoCodec,
            VideoFile,
        )

        # yuv420p is what browsers play
        codec = VideoCodec("libx264", "yuv420p", {"crf": "18"}, "h264", "yuv420p")
        file = VideoFile(path, fps, *frames.shape[1:3], codec)
        file.append(frames)
        file.close()


def write_contact_sheet(path: str | os.PathLike, episodes: Sequence[Episode], columns: int = 6) -> None:
    """One row for each episode, with frames from its beginning (left) to its end, spread evenly.

    Raises:
        ValueError: no episodes, or one that was not recorded.
    """
    if not episodes or any(episode.frames is None for episode in episodes):
        raise ValueError("A contact sheet needs at least one episode, and all recorded: call rollout(..., record=...).")
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(episodes)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)  # inches, so that titles keep off the labels above them
    axes = figure.subplots(len(episodes), columns, squeeze=False)
    for row, episode in zip(axes, episodes, strict=True):
        color = SUCCESS if episode.success else FAILURE
        row[0].set_title(title(episode), fontsize=9, loc="left", color=color)
        for axis, i in zip(row, np.linspace(0, len(episode.frames) - 1, columns).round().astype(int), strict=True):
            axis.imshow(episode.frames[i], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(f"step {i}", fontsize=7)
            for edge in axis.spines.values():
                edge.set_color(color)
    figure.savefig(path, dpi=100)


def _titled(episode: Episode) -> np.ndarray:
    """(T, height, width, 3) uint8, sides even as H.264 needs them: enlarged frames under a strip with the title."""
    scale = max(1, -(-MIN_VIDEO_WIDTH // episode.frames.shape[2]))
    frames = episode.frames.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    font = ImageFont.load_default(12)
    strip = Image.new("RGB", (width, 36), "white")
    instruction, _, outcome = title(episode).rpartition(": ")
    draw = ImageDraw.Draw(strip)
    draw.text((4, 3), instruction, fill="black", font=font)
    draw.text((4, 19), outcome, fill=SUCCESS if episode.success else FAILURE, font=font)
    strips = np.broadcast_to(np.asarray(strip), (len(frames), 36, width, 3))
    return np.concatenate([strips, frames[:, :height, :width]], axis=1)

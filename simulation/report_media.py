"""Pictures of roll-outs: videos of single episodes, and a contact sheet of many."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure, FigureBase
from PIL import Image, ImageDraw, ImageFont

from ..training.evaluation.plots import DEMONSTRATED, OTHER
from .rollout import Episode

SUCCESS, FAILURE = "#2a9d5c", "#d1495b"
MIN_VIDEO_WIDTH = 240  # pixels; smaller frames are enlarged by a whole factor, so that every pixel stays visible


def choose_episodes(episodes: Sequence[Episode], count: int) -> list[Episode]:
    """At most `count` episodes: as many failures as successes as far as there are, failures first.

    Failures that stopped before different phases, or of which some ran out of time and others did not, take turns.
    """
    kinds: dict[tuple, list[Episode]] = {}
    for episode in episodes:
        if not episode.success:
            kinds.setdefault((episode.stopped_before, episode.timed_out), []).append(episode)
    failures = [episode for turn in zip_longest(*kinds.values()) for episode in turn if episode is not None]
    successes = [episode for episode in episodes if episode.success]
    num_failures = min(len(failures), max(count // 2, count - len(successes)))
    return failures[:num_failures] + successes[: count - num_failures]


def title(episode: Episode) -> str:
    """Instruction and outcome in one line."""
    outcome, stop = _outcome(episode), _stop(episode)
    return f"{episode.instruction}: {outcome}{', ' + stop if stop else ''}"


def write_title(row: FigureBase, episode: Episode) -> None:
    """Write an episode's title over its pictures, in its colour: in as many lines as it takes, from edge to edge."""
    color = SUCCESS if episode.success else FAILURE
    row.suptitle(title(episode), x=0.01, ha="left", fontsize=9, color=color, wrap=True)


def _outcome(episode: Episode) -> str:
    if episode.success:
        outcome = "success"
    else:
        outcome = "failure, time was up" if episode.timed_out else "failure, decided early"
    return f"{outcome} ({episode.steps} steps, seed {episode.seed})"


def _stop(episode: Episode) -> str | None:
    """Where a failure stopped, if the environment says so."""
    is_known = not episode.success and episode.stopped_before is not None
    return f'stopped before "{episode.stopped_before}"' if is_known else None


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


def plot_phases(path: str | os.PathLike, series: Mapping[str, Sequence[dict]]) -> None:
    """Draw how far episodes came: a bar for each phase and what was told, with 95 % Wilson intervals.

    Args:
        path: where the picture goes; the suffix decides its format.
        series: what was told ("true instruction") → its phases, as `count_phases` has them.
    """
    names = list(dict.fromkeys(phase["name"] for phases in series.values() for phase in phases))
    height = 0.8 / len(series)
    figure = Figure(figsize=(7, 0.9 + 0.3 * len(names) * len(series)), layout="constrained")
    axis = figure.subplots()
    for number, ((label, phases), color) in enumerate(zip(series.items(), (DEMONSTRATED, OTHER), strict=False)):
        rates = [phase["reached"] for phase in phases]
        places = np.array([names.index(phase["name"]) for phase in phases]) + (number - (len(series) - 1) / 2) * height
        shares = 100 * np.array([rate["rate"] for rate in rates])
        bounds = 100 * np.array([[rate["low"], rate["high"]] for rate in rates]).T  # (2, phases)
        errors = np.maximum(np.stack([shares - bounds[0], bounds[1] - shares]), 0)  # rounding may leave -0
        axis.barh(places, shares, height, color=color, alpha=0.75, label=label)
        # Thin and grey, with a dot on the rate: an interval from 0 on must not look like a bar.
        axis.errorbar(shares, places, xerr=errors, fmt="o", ms=3.5, color=color, ecolor="0.45", elinewidth=1, capsize=3)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.invert_yaxis()  # the first phase is on top
    axis.set(xlim=(0, 100), xlabel="% of the episodes")
    axis.grid(axis="x", alpha=0.25)
    if len(series) > 1:  # not on the bars, wherever they end
        figure.legend(loc="outside upper right", ncols=len(series), fontsize=8)
    figure.savefig(path, dpi=110)


def write_contact_sheet(path: str | os.PathLike, episodes: Sequence[Episode], columns: int = 6) -> None:
    """One row for each episode, with frames from its beginning (left) to its end, spread evenly.

    Raises:
        ValueError: no episodes, or one that was not recorded.
    """
    if not episodes or any(episode.frames is None for episode in episodes):
        raise ValueError("A contact sheet needs at least one episode, and all recorded: call rollout(..., record=...).")
    figure = Figure(figsize=(1.5 * columns, 1.9 * len(episodes)), layout="constrained")
    rows = figure.subfigures(len(episodes), 1, squeeze=False)[:, 0]
    for row, episode in zip(rows, episodes, strict=True):
        write_title(row, episode)
        color, moments = SUCCESS if episode.success else FAILURE, np.linspace(0, len(episode.frames) - 1, columns)
        for axis, i in zip(row.subplots(1, columns), moments.round().astype(int), strict=True):
            axis.imshow(episode.frames[i], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(f"step {i}", fontsize=7)
            for edge in axis.spines.values():
                edge.set_color(color)
    figure.savefig(path, dpi=100)


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a text into lines of at most so many pixels, as far as its words allow; none of an empty text."""
    longest = len(text)
    while longest > 1 and any(font.getlength(line) > width for line in textwrap.wrap(text, longest)):
        longest -= 1
    return textwrap.wrap(text, max(longest, 1), break_long_words=False)


def _titled(episode: Episode) -> np.ndarray:
    """(T, height, width, 3) uint8, sides even as H.264 needs them: enlarged frames under a strip with the title."""
    scale = max(1, -(-MIN_VIDEO_WIDTH // episode.frames.shape[2]))
    frames = episode.frames.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    font, color = ImageFont.load_default(12), SUCCESS if episode.success else FAILURE
    texts = [(episode.instruction, "black"), (_outcome(episode), color), (_stop(episode) or "", color)]
    lines = [(line, fill) for text, fill in texts for line in _lines(text, font, width - 8)]
    strip = Image.new("RGB", (width, 4 + 16 * len(lines)), "white")
    draw = ImageDraw.Draw(strip)
    for i, (line, fill) in enumerate(lines):
        draw.text((4, 3 + 16 * i), line, fill=fill, font=font)
    strips = np.broadcast_to(np.asarray(strip), (len(frames), strip.height, width, 3))
    return np.concatenate([strips, frames[:, :height, :width]], axis=1)

"""Plausible but wrong places of episodes in their videos, and videos that are not what their rows are."""

from pathlib import Path

import numpy as np

from kivla import LeRobotDataset
from tests.helpers.lerobot_folder import CAMERA, pictures_are_right, write_folder

FROM, TO = f"videos/{CAMERA}/from_timestamp", f"videos/{CAMERA}/to_timestamp"
FPS = 10


def random_faults(rng: np.random.Generator) -> dict:
    """Options of `write_folder`: one fault in the videos, and perhaps in places, times and rates as well.

    Left out is what leaves no trace: as many frames as before, at the same times, of which some are others.
    """
    lengths = rng.integers(5, 14, size=int(rng.integers(2, 5))).tolist()
    if rng.random() < 0.3:
        lengths = [lengths[0]] * len(lengths)
    repeated = int(rng.choice([1, 1, 3]))  # a video of three times the rate
    videos = [[100 * e + k // repeated for k in range(length * repeated)] for e, length in enumerate(lengths)]
    which, many = int(rng.integers(len(videos))), int(rng.integers(1, 4))
    video, place = videos[which], int(rng.integers(1, len(videos[which]) - 1))
    videos[which] = {
        "whole": video,
        "the end is missing": video[:-many],
        "the beginning is missing": video[many:],
        "a frame is lost": video[:place] + video[place + 1 :],
        "frames are doubled": video[: place + many] + video[place:],
        "more at the end": video + [7] * many,
        "more at the beginning": [7] * many + video,
    }[rng.choice(["whole", "the end is missing", "the beginning is missing", "a frame is lost", "frames are doubled",
                  "more at the end", "more at the beginning"])]  # fmt: skip
    shift = rng.choice([0, 0, 1 / FPS, 0.35, 1e9])
    # Of a faster video measured times are believed: the row's own picture is then not what counts.
    jitter = (repeated == 1) * rng.choice([0, 0, 0.3]) / FPS

    def edit_columns(columns, episode):
        noise = np.random.default_rng(episode).uniform(-jitter, jitter, len(columns["timestamp"]))
        columns["timestamp"] = columns["timestamp"] + shift + noise

    moves = [
        (int(rng.integers(len(lengths))), rng.choice([FROM, TO, "both"]), int(rng.choice([-3, -1, 1, 3])))
        for _ in range(int(rng.choice([0, 0, 1, 2])))
    ]
    swap = rng.permutation(len(lengths))[:2] if rng.random() < 0.2 else None
    of_rows = rng.random() < 0.5  # the table is that of the rows, whatever is in the video

    def edit_episodes(episodes):
        if FROM not in episodes[0]:
            return
        for episode, start in zip(episodes, np.cumsum([0, *lengths]), strict=False):
            if of_rows:
                episode[FROM], episode[TO] = start / FPS, (start + episode["length"]) / FPS
        if swap is not None:
            one, two = (episodes[i] for i in swap)
            for column in (FROM, TO):
                one[column], two[column] = two[column], one[column]
        for episode, column, frames in moves:
            for name in (FROM, TO) if column == "both" else (column,):
                episodes[episode][name] = max(episodes[episode][name] + frames / FPS / repeated, 0.0)

    return {
        "version": str(rng.choice(["v2.1", "v3.0", "v3.0"])),
        "lengths": lengths,
        "fps": FPS,
        "videos": videos,
        "video_fps": repeated * float(rng.choice([FPS, FPS, FPS, 9.7, 15])),
        "edit_columns": edit_columns,
        "edit_episodes": edit_episodes,
    }


def check(folder: Path, seed: tuple[int, ...]) -> None:
    """Open a dataset with random faults.

    Raises:
        ValueError: it is refused.
        AssertionError: it opens, and a row has another row's picture.
    """
    data = LeRobotDataset(write_folder(folder, **random_faults(np.random.default_rng(seed))), chunk_size=2)
    assert pictures_are_right(data), "a row has the picture of another row"


__all__ = ["check", "random_faults"]

"""Small LeRobot folders of any structure: every picture shows its number, so that a shifted one is seen.

The picture of row k of episode e has the number 100 e + k.
"""

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CAMERA = "observation.images.top"
SIDE, BITS = 16, 4  # of a square in pixels, and squares in a row


def picture(number: int) -> np.ndarray:
    """uint8 (64, 64, 3): the bits of a number as black and white squares."""
    bits = (number >> np.arange(BITS * BITS)) & 1
    return np.repeat((255 * bits.reshape(BITS, BITS)).astype(np.uint8).repeat(SIDE, 0).repeat(SIDE, 1)[..., None], 3, 2)


def number_of(image: np.ndarray) -> int:
    """What `picture` was made of."""
    bits = image[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE, 0].ravel() > 127
    return int((bits << np.arange(BITS * BITS)).sum())


def write_video(
    path: Path, numbers: Sequence[int], fps: float, times: Sequence[float] | None = None, rotation: int = 0
) -> None:
    """Write the pictures of these numbers, at steady times or at those given (seconds)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate if times is None else 1000, options={"g": "5", "bf": "0"})
        stream.width = stream.height = BITS * SIDE
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for i, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = (i, 1 / rate) if times is None else (round(1000 * times[i]), Fraction(1, 1000))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_folder(
    root: Path,
    version: str = "v2.1",
    lengths: Sequence[int] = (12, 9, 15),
    fps: float = 10,
    keys: tuple[str, str, str] = ("action", "observation.state", CAMERA),
    dim: int = 7,
    edit_columns: Callable[[dict, int], None] | None = None,
    edit_info: Callable[[dict], None] | None = None,
    videos: Sequence[Sequence[int]] | None = None,
    video_fps: float | None = None,
    times: Sequence[Sequence[float]] | None = None,
    edit_episodes: Callable[[list[dict]], None] | None = None,
) -> Path:
    """Write a dataset; v3.0 has all its episodes in one data file and one video.

    Args:
        keys: columns of actions and state, and the camera.
        edit_columns: changes the columns of an episode (name → array or list), given its number.
        edit_info: changes `meta/info.json`.
        videos: the pictures of each episode's video; by default those of its rows.
        video_fps: of the videos; by default `fps`.
        times: of the frames of each episode's video, in v2.x.
        edit_episodes: changes the rows of the episode table.
    """
    action, state, camera = keys
    videos = [[100 * e + k for k in range(length)] for e, length in enumerate(lengths)] if videos is None else videos
    video_fps = video_fps or fps
    tables = []
    for episode, length in enumerate(lengths):
        values = np.random.default_rng(episode).normal(size=(length, dim)).cumsum(0).astype(np.float32)
        columns = {
            action: values.tolist(),
            state: (values + 1).tolist(),
            "timestamp": np.arange(length) / fps,
            "frame_index": np.arange(length),
            "episode_index": np.full(length, episode),
            "index": sum(lengths[:episode]) + np.arange(length),
            "task_index": np.zeros(length, np.int64),
        }
        if edit_columns is not None:
            edit_columns(columns, episode)
        tables.append(pa.table(columns))
    info = {
        "codebase_version": version,
        "fps": fps,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 1000,
        "features": {
            action: {"dtype": "float32", "shape": [dim], "names": None},
            state: {"dtype": "float32", "shape": [dim], "names": None},
            camera: {"dtype": "video", "shape": [64, 64, 3], "names": ["height", "width", "channels"]},
        },
    }
    starts = np.cumsum([0, *map(len, videos)]) / video_fps
    episodes = [{"episode_index": e, "tasks": ["pick up the cup"], "length": n} for e, n in enumerate(lengths)]
    (root / "meta").mkdir(parents=True)
    if version == "v3.0":
        info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        for e, episode in enumerate(episodes):
            episode |= {"data/chunk_index": 0, "data/file_index": 0}
            episode |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0}
            episode |= {f"videos/{camera}/from_timestamp": starts[e], f"videos/{camera}/to_timestamp": starts[e + 1]}
        if edit_episodes is not None:
            edit_episodes(episodes)
        _write_table(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(episodes))
        _write_table(root / "meta/tasks.parquet", pa.table({"task_index": [0], "task": ["pick up the cup"]}))
        _write_table(root / "data/chunk-000/file-000.parquet", pa.concat_tables(tables))
        write_video(root / f"videos/{camera}/chunk-000/file-000.mp4", list(chain(*videos)), video_fps)
    else:
        info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        if edit_episodes is not None:
            edit_episodes(episodes)
        _write_lines(root / "meta/episodes.jsonl", episodes)
        _write_lines(root / "meta/tasks.jsonl", [{"task_index": 0, "task": "pick up the cup"}])
        for e, table in enumerate(tables):
            _write_table(root / f"data/chunk-000/episode_{e:06d}.parquet", table)
            path = root / f"videos/chunk-000/{camera}/episode_{e:06d}.mp4"
            write_video(path, videos[e], video_fps, None if times is None else times[e])
    if edit_info is not None:
        edit_info(info)
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def pictures_are_right(data) -> bool:
    """Whether every item of a dataset has the picture of its own row."""
    items = (data[i] for i in range(len(data)))
    return all(number_of(item["images"][0]) == 100 * item["episode_index"] + item["frame_index"] for item in items)


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

"""Rewrites a LeRobot v3.0 dataset as v2.1, for tests: one parquet file and one video per episode, JSON-lines tables.

The v2.1 layout is the one of LeRobot 0.1 to 0.3. Videos are decoded and encoded again without loss.
"""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq


def write_v21_twin(source: Path, target: Path) -> Path:
    """Write the v3.0 dataset `source` (in one data file and one video file per camera) as v2.1 to `target`."""
    info = json.loads((source / "meta/info.json").read_text())
    cameras = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    episodes = pq.read_table(source / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    tasks = pq.read_table(source / "meta/tasks.parquet").to_pylist()
    rows = pq.read_table(source / "data/chunk-000/file-000.parquet")
    frames = {camera: decode(source / f"videos/{camera}/chunk-000/file-000.mp4") for camera in cameras}

    (target / "meta").mkdir(parents=True)
    (target / "data/chunk-000").mkdir(parents=True)
    for episode in episodes:
        name = f"episode_{episode['episode_index']:06d}"
        first, end = episode["dataset_from_index"], episode["dataset_to_index"]
        pq.write_table(rows.slice(first, end - first), target / f"data/chunk-000/{name}.parquet")
        for camera in cameras:
            encode(frames[camera][first:end], target / f"videos/chunk-000/{camera}/{name}.mp4", info["fps"])

    write_json_lines(
        target / "meta/tasks.jsonl",
        [{"task_index": task["task_index"], "task": task["__index_level_0__"]} for task in tasks],
    )
    write_json_lines(
        target / "meta/episodes.jsonl",
        [{key: episode[key] for key in ("episode_index", "tasks", "length")} for episode in episodes],
    )
    info |= {
        "codebase_version": "v2.1",
        "total_videos": len(cameras) * len(episodes),
        "total_chunks": 1,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (target / "meta/info.json").write_text(json.dumps(info))
    return target


def decode(path: Path) -> list[np.ndarray]:
    """All frames of a video, as YUV 4:2:0 planes (height * 3 / 2, width)."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]


def encode(frames: list[np.ndarray], path: Path, fps: int) -> None:
    """Write YUV 4:2:0 frames without loss, with key frames far apart and frames stored out of order (B-frames)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"qp": "0", "preset": "veryfast", "g": "12", "x264-params": "bframes=2:b-adapt=0:scenecut=0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames[0].shape[0] * 2 // 3, frames[0].shape[1]
        stream.pix_fmt = "yuv420p"
        for number, planes in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_json_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

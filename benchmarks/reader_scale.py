"""`python -m benchmarks.reader_scale`: what a LeRobot dataset of many episodes costs to open and to read.

Writes datasets of three frames an episode (no cameras) in a temporary folder, opens each in a process of its own, and
reads random frames. Prints a table; `--write` puts it into `benchmarks/reader_scale.md`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from kivla.hub_cards.environment_info import environment_info

from .options import count

REPORT = Path(__file__).with_suffix(".md")
LENGTH, FPS, DIM = 3, 10, 4
EPISODES_PER_FILE = 10_000
SIZES = {"v3.0": (1_000, 10_000, 100_000, 1_000_000), "v2.1": (100, 1_000, 10_000)}
READS = 2_000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reader_scale", description=__doc__)
    parser.add_argument("--max_episodes", type=count, default=1_000_000, help="leave out datasets of more")
    parser.add_argument("--write", action="store_true", help=f"put the report into benchmarks/{REPORT.name}")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the process that opens one dataset
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    cases = [(version, n) for version, sizes in SIZES.items() for n in sizes if n <= options.max_episodes]
    rows = []
    for version, episodes in tqdm(cases, desc="datasets"):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "data"
            write(root, version, episodes)
            command = [sys.executable, "-m", "benchmarks.reader_scale", "--measure", str(root)]
            first, later = (
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                for _ in range(2)
            )
            copied = sum(path.stat().st_size for path in (root.parent / "cache").rglob("*") if path.is_file())
        opened = {"first_open": first["open"], "first_peak": first["peak"], "copied": copied}
        rows.append({"version": version, "episodes": episodes, **opened, **later})
    report = as_markdown(rows)
    print(report)
    if options.write:
        REPORT.write_text(report, encoding="utf-8")


def write(root: Path, version: str, episodes: int) -> None:
    """A dataset of `episodes` episodes of `LENGTH` frames."""
    vector = {"dtype": "float32", "shape": [DIM], "names": None}
    info = {
        "codebase_version": version,
        "fps": FPS,
        "total_episodes": episodes,
        "total_frames": LENGTH * episodes,
        "chunks_size": 1000,
        "features": {"action": vector, "observation.state": vector},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    }
    if version == "v2.1":
        info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    if version == "v2.1":
        lines = (json.dumps({"episode_index": i, "tasks": ["reach"], "length": LENGTH}) for i in range(episodes))
        (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
        (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "reach"}) + "\n")
        for i in range(episodes):
            path = root / info["data_path"].format(episode_chunk=i // 1000, episode_index=i)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(frames(i, 1), path)
        return
    pq.write_table(pa.table({"task_index": [0], "task": ["reach"]}), root / "meta/tasks.parquet")
    for number, first in enumerate(range(0, episodes, EPISODES_PER_FILE)):
        count = min(EPISODES_PER_FILE, episodes - first)
        index = np.arange(first, first + count)
        place = {"chunk_index": np.full(count, number // 1000), "file_index": np.full(count, number % 1000)}
        table = {"episode_index": index, "length": np.full(count, LENGTH)}
        table |= {f"data/{name}": values for name, values in place.items()}
        for folder, rows in (("meta/episodes", pa.table(table)), ("data", frames(first, count))):
            path = root / folder / f"chunk-{number // 1000:03d}" / f"file-{number % 1000:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, path)


def frames(first_episode: int, count: int) -> pa.Table:
    n = count * LENGTH
    values = np.random.default_rng(first_episode).standard_normal((2, n * DIM)).astype(np.float32)
    frame_index = np.tile(np.arange(LENGTH), count)
    return pa.table(
        {
            "action": pa.FixedSizeListArray.from_arrays(values[0], DIM),
            "observation.state": pa.FixedSizeListArray.from_arrays(values[1], DIM),
            "timestamp": (frame_index / FPS).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.repeat(np.arange(first_episode, first_episode + count), LENGTH),
            "index": np.arange(n) + first_episode * LENGTH,
            "task_index": np.zeros(n, np.int64),
        }
    )


def measure(root: Path) -> dict[str, float]:
    """Open the dataset at `root`, and read of it at random."""
    import datasets

    from kivla.training.data.lerobot.dataset import LeRobotDataset

    datasets.config.HF_DATASETS_CACHE = root.parent / "cache"
    datasets.disable_progress_bars()
    before, start = private_bytes(), time.perf_counter()
    data = LeRobotDataset(root)
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    pa.default_memory_pool().release_unused()
    held = private_bytes() - before
    items = np.random.default_rng(0).integers(len(data), size=READS).tolist()
    start = time.perf_counter()
    for item in items:
        data[item]
    access = (time.perf_counter() - start) / READS
    start = time.perf_counter()
    data.statistics  # noqa: B018
    statistics = time.perf_counter() - start
    return {
        "index_bytes": data.index_bytes,
        "open": seconds,
        "held": held,
        "peak": peak,
        "access": access,
        "statistics": statistics,
    }


def private_bytes() -> int:
    """Memory of this process alone (Linux): pages of memory-mapped files are not counted."""
    return _status("RssAnon")


def peak_bytes() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(fields[name].split()[0]) * 1024


def as_markdown(rows: list[dict]) -> str:
    about = environment_info()
    lines = [
        "# A reader for a million episodes",
        "",
        f"Written by `python -m benchmarks.reader_scale --write`. {LENGTH} frames an episode, {DIM} numbers of state "
        f"and of action, no cameras. {about['cpu']}, {about['cores']} cores, Python {about['python']}.",
        "",
        "| format | episodes | data files | index, bytes/episode | held, MB | largest while opening, MB | "
        "first open, s | later opens, s | random frame, ms | statistics, s | copy in the cache, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        files = row["episodes"] if row["version"] == "v2.1" else -(-row["episodes"] // EPISODES_PER_FILE)
        lines.append(
            f"| {row['version']} | {row['episodes']:,} | {files:,} | {row['index_bytes'] / row['episodes']:.0f} | "
            f"{row['held'] / 1e6:.0f} | {row['peak'] / 1e6:.0f} | {row['first_open']:.1f} | {row['open']:.2f} | "
            f"{1e3 * row['access']:.2f} | {row['statistics']:.2f} | {row['copied'] / 1e6:.0f} |"
        )
    lines += [
        "",
        "*Index*: the arrays that `LeRobotDataset` keeps; a camera that is stored as video adds 32 bytes to every "
        "episode. *Held*: by how much opening makes the process's own memory grow, with what libraries load then. "
        "*Largest*: of the process, libraries and mapped file pages included. The first open copies the tabular "
        "columns into the `datasets` cache, from where they are memory-mapped; every open checks all frames once, in "
        "blocks of 65,536.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

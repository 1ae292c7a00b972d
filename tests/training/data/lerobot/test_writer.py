import gc
import io
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kivla.training.data.lerobot import writer as lerobot_writer
from kivla.training.data.lerobot.dataset import LeRobotDataset
from kivla.training.data.lerobot.writer import LeRobotWriter
from tests.helpers.tolerance import assert_close_relative

FIXTURE = Path(__file__).parents[3] / "data" / "lerobot_v3_metaworld"  # written by lerobot itself
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
CAMERAS = {"front": (24, 32), "wrist": (17, 19)}
TASKS = ("touch the red star", "schiebe das blaue Viereck nach links – «jetzt»", "touch the red star")
LENGTHS = (7, 1, 12)
CHUNK = 5
SETTINGS = {
    "fps": 30,
    "cameras": CAMERAS,
    "state_names": ["x", "y", "gripper"],
    "action_names": ["dx", "dy"],
    "robot_type": "point",
}


def make_episode(seed, length, cameras=CAMERAS, state_dim=3, action_dim=2, smooth=False):
    generator = np.random.default_rng(seed)
    images = {}
    for name, (height, width) in cameras.items():
        if smooth:  # slow waves of colour that move: what a lossy codec can keep
            y, x, t = np.ogrid[:height, :width, :length]
            waves = [np.sin(0.05 * (x + 2 * y) + 0.2 * t + phase) for phase in generator.uniform(0, 6, 3)]
            images[name] = (127.5 + 100 * np.moveaxis(np.stack(waves, -1), 2, 0)).astype(np.uint8)
        else:  # noise: any mixing of frames, pixels or channels shows
            images[name] = generator.integers(0, 256, (length, height, width, 3), np.uint8)
    return {
        "images": images,
        "states": generator.normal(size=(length, state_dim)).astype(np.float32),
        "actions": generator.normal(size=(length, action_dim)).astype(np.float32),
    }


def make_episodes(**options):
    episodes = [make_episode(seed, length, **options) for seed, length in enumerate(LENGTHS)]
    return [episode | {"task": task} for episode, task in zip(episodes, TASKS, strict=True)]


def write(folder, episodes, **changes):
    with LeRobotWriter(folder, **SETTINGS | changes) as writer:
        for episode in episodes:
            writer.add_episode(**episode)
    return folder


def read(root):
    """An independent reading with pyarrow and PyAV, by LeRobot's rules: episodes as `add_episode` takes them."""
    info = json.loads((root / "meta/info.json").read_text())
    tasks = pd.read_parquet(root / "meta/tasks.parquet")
    assert tasks["task_index"].tolist() == list(range(info["total_tasks"]))  # lerobot looks tasks up by row
    rows = [row for path in sorted((root / "meta/episodes").glob("*/*")) for row in pq.read_table(path).to_pylist()]
    assert [row["episode_index"] for row in rows] == list(range(info["total_episodes"]))
    episodes, end = [], 0
    for row in rows:
        assert row["dataset_from_index"] == end
        end = row["dataset_to_index"]
        place = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
        frames = [
            frame
            for frame in pq.read_table(root / info["data_path"].format(**place)).to_pylist()
            if frame["episode_index"] == row["episode_index"]
        ]
        length = row["length"]
        assert [frame["frame_index"] for frame in frames] == list(range(length))
        assert [frame["index"] for frame in frames] == list(range(row["dataset_from_index"], end))
        assert [frame["timestamp"] for frame in frames] == [float(np.float32(t / info["fps"])) for t in range(length)]
        texts = {tasks.iloc[frame["task_index"]].name for frame in frames}
        assert list(texts) == row["tasks"]
        episode = {
            "images": {},
            "states": np.float32([np.atleast_1d(frame["observation.state"]) for frame in frames]),
            "actions": np.float32([np.atleast_1d(frame["action"]) for frame in frames]),
            "task": texts.pop(),
        }
        for key, feature in info["features"].items():
            name = key.removeprefix("observation.images.")
            if feature["dtype"] == "image":
                pictures = [np.array(Image.open(io.BytesIO(frame[key]["bytes"]))) for frame in frames]
                episode["images"][name] = np.stack(pictures)
            elif feature["dtype"] == "video":
                place = {part: row[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")}
                start, stop = row[f"videos/{key}/from_timestamp"], row[f"videos/{key}/to_timestamp"]
                assert stop - start == pytest.approx(length / info["fps"], abs=1e-9)  # seconds
                video = decode(root / info["video_path"].format(video_key=key, **place))
                times = [start + frame["timestamp"] for frame in frames]
                # lerobot takes the nearest frame and refuses one that is more than 1e-4 s away
                nearest = [min(video, key=lambda at: abs(at - time)) for time in times]
                np.testing.assert_allclose(nearest, times, rtol=0, atol=1e-4)
                episode["images"][name] = np.stack([video[at] for at in nearest])
        episodes.append(episode)
    assert end == info["total_frames"]
    return episodes


def decode(path):
    """Time in seconds → RGB frame."""
    with av.open(str(path)) as container:
        return {frame.time: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}


def psnr(images, expected):
    """(T,) peak signal-to-noise ratio of every frame, in dB."""
    error = np.mean((images.astype(float) - expected) ** 2, axis=(1, 2, 3))
    return 10 * np.log10(255**2 / error)


def assert_same_images(images, expected, lossy):
    assert images.keys() == expected.keys()
    for name, frames in expected.items():
        assert images[name].dtype == np.uint8
        if lossy:
            assert psnr(images[name], frames).min() > 30
            # A neighbouring frame is clearly worse: frames are not shifted by one.
            if len(frames) > 1:
                assert (psnr(images[name][1:], frames[:-1]) < psnr(images[name][1:], frames[1:])).all()
        else:
            np.testing.assert_array_equal(images[name], frames)


def paths_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# What was written is read back

LAYOUTS = [
    {"image_format": "lossless_video"},
    {"image_format": "video"},
    {"image_format": "image"},
    # A new file for every episode, two files in a folder.
    {
        "image_format": "lossless_video",
        "data_file_size_in_mb": 1e-6,
        "video_file_size_in_mb": 1e-6,
        "chunks_size": 2,
    },
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["lossless_video", "video", "image", "several files"])
def test_what_was_written_is_read_back(layout, tmp_path):
    lossy = layout["image_format"] == "video"
    written = make_episodes(smooth=lossy)
    root = write(tmp_path / "data[1] {x}", written, **layout)

    for episode, expected in zip(read(root), written, strict=True):
        assert_same_images(episode["images"], expected["images"], lossy)
        np.testing.assert_array_equal(episode["states"], expected["states"], strict=True)
        np.testing.assert_array_equal(episode["actions"], expected["actions"], strict=True)
        assert episode["task"] == expected["task"]

    data = LeRobotDataset(root, chunk_size=CHUNK)
    assert (len(data), data.num_episodes, data.fps, data.robot_type) == (20, 3, 30, "point")
    assert (data.state_names, data.action_names) == (["x", "y", "gripper"], ["dx", "dy"])
    assert data.tasks == {0: TASKS[0], 1: TASKS[1]}
    for number in (2, 0, 1):  # jumping between the episodes of a file
        expected = written[number]
        items = [data[index] for index in data.episode_range(number)]
        images = {name: np.stack([item["images"][camera] for item in items]) for camera, name in enumerate(CAMERAS)}
        assert_same_images(images, expected["images"], lossy)
        for frame, item in enumerate(items):
            window = np.arange(frame, frame + CHUNK)
            np.testing.assert_array_equal(item["state"], expected["states"][frame], strict=True)
            np.testing.assert_array_equal(
                item["actions"], expected["actions"][np.minimum(window, len(items) - 1)], strict=True
            )
            np.testing.assert_array_equal(item["action_is_pad"], window >= len(items))
            assert (item["text"], item["episode_index"], item["frame_index"]) == (expected["task"], number, frame)


def test_files_are_numbered_and_closed_when_they_have_their_size(tmp_path):
    root = write(tmp_path / "data", make_episodes(), **LAYOUTS[-1])
    names = ["chunk-000", "chunk-000/file-000", "chunk-000/file-001", "chunk-001", "chunk-001/file-000"]
    for folder, suffix in (
        ("data", ".parquet"),
        ("videos/observation.images.front", ".mp4"),
        ("videos/observation.images.wrist", ".mp4"),
    ):
        assert paths_in(root / folder) == [name + suffix if "/" in name else name for name in names]
    # The noise of an episode takes at least half a byte per value, and nothing else is in a video file.
    bound = 24 * 32 * 3 * sum(LENGTHS[:2]) / 2 / 1024**2
    root = write(tmp_path / "two", make_episodes(), video_file_size_in_mb=bound)
    assert paths_in(root / "videos/observation.images.front/chunk-000") == ["file-000.mp4", "file-001.mp4"]


def test_vectors_of_length_one_are_plain_numbers_as_lerobot_writes_them(tmp_path):
    episodes = [episode | {"task": "go"} for episode in [make_episode(0, 4, state_dim=1, action_dim=1)]]
    root = write(tmp_path / "data", episodes, state_names=["x"], action_names=["dx"])
    assert str(pq.read_schema(root / DATA).field("action").type) == "float"
    item = LeRobotDataset(root, chunk_size=2)[1]
    np.testing.assert_array_equal(item["actions"], episodes[0]["actions"][1:3], strict=True)
    np.testing.assert_array_equal(read(root)[0]["states"], episodes[0]["states"], strict=True)
    assert np.shape(json.loads((root / "meta/stats.json").read_text())["action"]["mean"]) == (1,)


def test_views_are_written_as_they_look(tmp_path):
    episode = make_episode(0, 3) | {"task": "go"}
    turned = episode | {
        "images": {name: frames[:, ::-1] for name, frames in episode["images"].items()},
        "states": np.asfortranarray(episode["states"]),
        "actions": episode["actions"][::-1],
    }
    for image_format in ("lossless_video", "image"):
        back = read(write(tmp_path / image_format, [turned], image_format=image_format))[0]
        assert_same_images(back["images"], turned["images"], lossy=False)
        np.testing.assert_array_equal(back["states"], turned["states"])
        np.testing.assert_array_equal(back["actions"], turned["actions"])


def test_many_episodes_in_one_video_keep_their_times(tmp_path):
    """Rounding of timestamps (float32 in the data, 1/fps is not exact) must never pick a neighbouring frame."""
    cameras = {"front": (8, 8)}
    episodes = [make_episode(seed, 3, cameras) | {"task": "go"} for seed in range(230)]
    root = write(tmp_path / "data", episodes, cameras=cameras, fps=29)
    data = LeRobotDataset(root, chunk_size=1)
    expected = np.concatenate([episode["images"]["front"] for episode in episodes])
    for index in np.random.default_rng(0).permutation(len(data))[:150]:
        np.testing.assert_array_equal(data[index]["images"][0], expected[index])
    assert len(pq.read_table(root / EPISODES)) == 230  # more than one row group


# The layout is lerobot's


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The fixture's frames, written again by us."""
    data = LeRobotDataset(FIXTURE)
    episodes = []
    for number in data.episodes:
        items = [data[index] for index in data.episode_range(number)]
        episodes.append(
            {
                "images": {"corner2": np.stack([item["images"][0] for item in items])},
                "states": np.stack([item["state"] for item in items]),
                "actions": np.stack([item["actions"][0] for item in items]),
                "task": items[0]["text"],
            }
        )
    return write(
        tmp_path_factory.mktemp("twin") / "data",
        episodes,
        fps=80,
        cameras={"corner2": (96, 96)},
        state_names=data.state_names,
        action_names=data.action_names,
        robot_type="sawyer",
        image_format="video",
    )


def test_the_files_and_info_are_those_of_lerobot(twin):
    assert paths_in(twin) == paths_in(FIXTURE)
    assert (twin / "meta/info.json").read_text() == (FIXTURE / "meta/info.json").read_text()


def test_the_columns_are_those_of_lerobot(twin):
    for name in (DATA, EPISODES):
        ours, theirs = pq.read_schema(twin / name), pq.read_schema(FIXTURE / name)
        assert ours.equals(theirs), f"{name}\n{ours}\n{theirs}"  # names, types and their order
    ours, theirs = (
        json.loads(pq.read_schema(root / DATA).metadata[b"huggingface"])["info"] for root in (twin, FIXTURE)
    )
    assert ours == theirs
    assert pq.read_metadata(twin / DATA).num_row_groups == 3  # one per episode, as lerobot
    pd.testing.assert_frame_equal(
        pd.read_parquet(twin / "meta/tasks.parquet"), pd.read_parquet(FIXTURE / "meta/tasks.parquet")
    )
    assert pq.read_schema(twin / "meta/tasks.parquet").names == ["task_index", "__index_level_0__"]


def test_the_rows_are_those_of_lerobot(twin):
    assert pq.read_table(twin / DATA).equals(pq.read_table(FIXTURE / DATA))
    ours, theirs = (pq.read_table(root / EPISODES) for root in (twin, FIXTURE))
    for name in ours.column_names:
        if not name.startswith("stats/"):
            assert ours[name].to_pylist() == theirs[name].to_pylist(), name
    # lerobot computes in float32, and its quantiles are approximations. A difference of 2e-4 is in the column's unit.
    for key in ("observation.state", "action", "timestamp", "frame_index", "task_index"):
        for name in ("min", "max", "mean", "std", "count"):
            column = f"stats/{key}/{name}"
            np.testing.assert_allclose(ours[column].to_pylist(), theirs[column].to_pylist(), atol=2e-4, err_msg=column)


def test_statistics_have_the_shapes_and_values_of_lerobot(twin):
    ours, theirs = (json.loads((root / "meta/stats.json").read_text()) for root in (twin, FIXTURE))
    assert ours.keys() == theirs.keys()
    for key, statistics in theirs.items():
        assert list(ours[key]) == list(statistics)
        for name, value in statistics.items():
            assert np.shape(ours[key][name]) == np.shape(value), (key, name)
            assert np.asarray(ours[key][name]).dtype == np.asarray(value).dtype, (key, name)
            if name in ("min", "max", "mean", "std", "count") and "images" not in key:
                np.testing.assert_allclose(ours[key][name], value, atol=2e-4, err_msg=f"{key} {name}")
    camera = "observation.images.corner2"
    np.testing.assert_allclose(ours[camera]["mean"], theirs[camera]["mean"], atol=0.01)  # of a pixel's range, 1


@pytest.mark.parametrize("image_format", ["lossless_video", "image"])
def test_image_features_follow_lerobot(image_format, tmp_path):
    root = write(tmp_path / "data", make_episodes(), image_format=image_format)
    info = json.loads((root / "meta/info.json").read_text())
    feature = info["features"]["observation.images.wrist"]
    schema = pq.read_schema(root / DATA)
    described = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert feature["shape"] == [17, 19, 3]
    if image_format == "image":
        assert feature["dtype"] == "image" and "info" not in feature
        assert info["video_path"] is None and not (root / "videos").exists()
        assert described["observation.images.wrist"] == {"_type": "Image"}
        assert schema.names[:3] == ["observation.images.front", "observation.images.wrist", "observation.state"]
    else:
        assert "observation.images.wrist" not in schema.names
        path = root / "videos/observation.images.wrist/chunk-000/file-000.mp4"
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            found = (stream.codec_context.codec.name, stream.pix_fmt, stream.average_rate, stream.height, stream.width)
            assert len(container.streams) == 1
        described = feature["info"]
        names = ("video.codec", "video.pix_fmt", "video.fps", "video.height", "video.width")
        assert found == tuple(described[name] for name in names)


def test_datasets_itself_reads_the_data_files(tmp_path):
    import datasets

    written = make_episodes()
    root = write(tmp_path / "data", written, image_format="image")
    rows = datasets.Dataset.from_parquet(str(root / DATA))
    assert isinstance(rows.features["observation.images.front"], datasets.Image)
    np.testing.assert_array_equal(rows[8]["observation.images.front"], written[2]["images"]["front"][0])


# Statistics

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def numpy_statistics(values):
    """Of (samples, D)."""
    values = values.astype(np.float64)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        **{name: np.quantile(values, q, axis=0) for name, q in QUANTILES.items()},
    }


def numpy_episode_statistics(episodes, first_episode, first_index):
    """Feature → statistics of all frames of these episodes, straight from what was written."""
    lengths = [len(episode["actions"]) for episode in episodes]
    frames = np.concatenate([np.arange(length) for length in lengths])
    numbers = np.repeat(first_episode + np.arange(len(lengths)), lengths)
    columns = {
        "observation.state": np.concatenate([episode["states"] for episode in episodes]),
        "action": np.concatenate([episode["actions"] for episode in episodes]),
        "timestamp": (frames / 30).astype(np.float32)[:, None],
        "frame_index": frames[:, None],
        "episode_index": numbers[:, None],
        "index": first_index + np.arange(len(frames))[:, None],
        "task_index": np.array([0, 1, 0])[numbers][:, None],
    }
    statistics = {key: numpy_statistics(values) for key, values in columns.items()}
    for name in CAMERAS:
        pixels = np.concatenate([episode["images"][name].reshape(-1, 3) for episode in episodes]) / 255
        values = numpy_statistics(pixels)
        statistics[f"observation.images.{name}"] = {key: value[:, None, None] for key, value in values.items()}
    for values in statistics.values():
        values["count"] = np.array([len(frames)])
    return statistics


def assert_same_statistics(found, expected):
    assert found.keys() == expected.keys()
    for key, statistics in expected.items():
        assert found[key].keys() == statistics.keys()
        scale = np.abs([statistics["min"], statistics["max"]]).max()  # the deviation of a constant is rounding
        for name, value in statistics.items():
            assert np.shape(found[key][name]) == value.shape
            found_value, expected_value = np.asarray(found[key][name], np.float64), value.astype(np.float64)
            assert_close_relative(found_value, expected_value, roundings=1e6, scale=scale, what=name)


@pytest.mark.parametrize("layout", LAYOUTS[2:], ids=["image", "several files"])
def test_statistics_are_those_of_numpy(layout, tmp_path):
    written = make_episodes()
    # Few different pixel values: quantiles then fall on, and between, values that occur.
    written[1]["images"]["wrist"][:] = 7
    written[0]["images"]["front"][..., 1] = np.random.default_rng(0).choice([0, 3, 250], (7, 24, 32))
    root = write(tmp_path / "data", written, **layout)
    stored = json.loads((root / "meta/stats.json").read_text())
    assert_same_statistics(stored, numpy_episode_statistics(written, 0, 0))
    rows = [row for path in sorted((root / "meta/episodes").glob("*/*")) for row in pq.read_table(path).to_pylist()]
    first = 0
    for number, (row, episode) in enumerate(zip(rows, written, strict=True)):
        found = {}
        for column, value in row.items():
            if column.startswith("stats/"):
                _, key, name = column.split("/")
                found.setdefault(key, {})[name] = value
        assert_same_statistics(found, numpy_episode_statistics([episode], number, first))
        first += row["length"]


def test_the_reader_takes_the_statistics_for_its_own(tmp_path):
    data = LeRobotDataset(write(tmp_path / "data", make_episodes()))
    for name, statistics in data.statistics.items():
        for statistic, value in statistics.items():
            assert_close_relative(data.meta_statistics[name][statistic], value, what=f"{name} {statistic}")


# Nothing half-written


def test_the_dataset_appears_when_the_writer_is_closed(tmp_path):
    folder = tmp_path / "new" / "data"
    writer = LeRobotWriter(folder, **SETTINGS)
    for episode in make_episodes():
        writer.add_episode(**episode)
        assert not folder.exists()
        assert list(tmp_path.rglob("info.json")) == []
    assert (writer.num_episodes, writer.num_frames) == (3, 20)
    writer.close()
    writer.close()  # does nothing
    assert paths_in(tmp_path / "new")[0] == "data"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data"]
    assert len(LeRobotDataset(folder)) == 20
    with pytest.raises(ValueError, match="is closed"):
        writer.add_episode(**make_episodes()[0])


@pytest.mark.parametrize("image_format", lerobot_writer.IMAGE_FORMATS)
@pytest.mark.parametrize("episodes", [0, 2])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(error, episodes, image_format, tmp_path):
    with pytest.raises(error), LeRobotWriter(tmp_path / "data", **SETTINGS, image_format=image_format) as writer:
        for episode in make_episodes()[:episodes]:
            writer.add_episode(**episode)
        raise error
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is closed"):
        writer.close()


@pytest.mark.parametrize("moment", ["vector_statistics", "_write_json", "_check_free"])
def test_an_error_inside_the_writer_leaves_nothing(moment, tmp_path, monkeypatch):
    def disk_full(*_):
        raise OSError("No space left on device")

    writer = LeRobotWriter(tmp_path / "data", **SETTINGS)
    with pytest.raises(OSError, match="No space left"):
        writer.add_episode(**make_episodes()[0])
        monkeypatch.setattr(lerobot_writer, moment, disk_full)
        writer.add_episode(**make_episodes()[1])
        writer.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is closed, or an error ended it"):
        writer.close()


def test_a_forgotten_writer_leaves_nothing(tmp_path):
    writer = LeRobotWriter(tmp_path / "data", **SETTINGS)
    writer.add_episode(**make_episodes()[0])
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".data.incomplete-")
    del writer
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_dataset(tmp_path, monkeypatch):
    """What is on the disk until the last moment is no dataset, and does not block the name."""
    write_json = lerobot_writer._write_json
    snapshots = []

    def watched(path, content):
        snapshots.append(shutil.copytree(path.parents[1], tmp_path / f"snapshot {len(snapshots)}"))
        write_json(path, content)

    monkeypatch.setattr(lerobot_writer, "_write_json", watched)
    root = write(tmp_path / "data", make_episodes())
    assert (snapshots[-1] / "meta/stats.json").exists()
    assert paths_in(root) == sorted([*paths_in(snapshots[-1]), "meta/info.json"])
    for snapshot in snapshots:
        with pytest.raises(FileNotFoundError, match=r"no meta/info\.json"):
            LeRobotDataset(snapshot)


def test_only_an_empty_folder_is_written_to(tmp_path):
    (tmp_path / "empty").mkdir()
    assert len(read(write(tmp_path / "empty", make_episodes()))) == 3
    before = paths_in(tmp_path)
    (tmp_path / "file").write_text("mine")
    for name in ("empty", "file"):
        with pytest.raises(FileExistsError, match=rf"{name} exists and is not an empty folder"):
            LeRobotWriter(tmp_path / name, **SETTINGS)
    assert paths_in(tmp_path) == sorted([*before, "file"])


def test_a_mount_point_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "volume")
    with pytest.raises(FileExistsError, match="volume is a mount point"):
        LeRobotWriter(tmp_path / "volume", **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_relative_paths_and_links(tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "inside")
    monkeypatch.chdir(tmp_path)
    write("inside/../a", make_episodes())
    write("link", make_episodes())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "inside", "link"]
    assert len(LeRobotDataset("a")) == len(LeRobotDataset("link")) == 20


def test_a_folder_that_was_filled_meanwhile_is_not_overwritten(tmp_path):
    writers = [LeRobotWriter(tmp_path / "data", **SETTINGS) for _ in range(2)]
    for writer, episode in zip(writers, make_episodes(), strict=False):
        writer.add_episode(**episode)
    writers[0].close()
    with pytest.raises(FileExistsError, match="not an empty folder"):
        writers[1].close()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert len(LeRobotDataset(tmp_path / "data")) == LENGTHS[0]


def test_others_may_read_the_folder(tmp_path):
    (tmp_path / "ordinary").mkdir()
    root = write(tmp_path / "data", make_episodes())
    assert os.stat(root).st_mode == os.stat(tmp_path / "ordinary").st_mode


# Errors


def with_nan(values):
    values = values.copy()
    values[2, 1] = np.nan
    return values


BAD_EPISODES = {
    "nan": (lambda e: {"actions": with_nan(e["actions"])}, "Episode 1, action holds NaN.*frame 2, dimension 'dy'"),
    "inf": (
        lambda e: {"states": np.full_like(e["states"], np.inf)},
        "Episode 1, observation.state holds NaN or infinity; the first is at frame 0, dimension 'x'",
    ),
    "float64": (
        lambda e: {"actions": e["actions"].astype(np.float64)},
        r"Episode 1, action must be float32 of shape \(7, 2\), got float64 of shape \(7, 2\)",
    ),
    "list": (lambda e: {"states": e["states"].tolist()}, "observation.state must be a NumPy array, got list"),
    "wide": (lambda e: {"states": e["states"][:, :2]}, r"observation.state must be .* \(7, 3\), got .* \(7, 2\)"),
    "short": (lambda e: {"states": e["states"][:6]}, r"observation.state must be .* \(7, 3\), got .* \(6, 3\)"),
    "empty": (lambda e: {key: e[key][:0] for key in ("states", "actions")}, "Episode 1 has no frames"),
    "task": (lambda e: {"task": " "}, "needs a task.*got ' '"),
    "no text": (lambda e: {"task": 3}, "needs a task.*got 3"),
    "missing camera": (
        lambda e: {"images": {"front": e["images"]["front"]}},
        r"must have images of \['front', 'wrist'\], got \['front'\]",
    ),
    "unknown camera": (lambda e: {"images": e["images"] | {"top": e["images"]["front"]}}, "got .*'top'"),
    "float images": (
        lambda e: {"images": e["images"] | {"wrist": e["images"]["wrist"] / np.float32(255)}},
        "camera 'wrist' must be uint8 of shape .*, got float32",
    ),
    "channels first": (
        lambda e: {"images": e["images"] | {"wrist": np.moveaxis(e["images"]["wrist"], -1, 1)}},
        r"camera 'wrist' must be uint8 of shape \(7, 17, 19, 3\), got uint8 of shape \(7, 3, 17, 19\)",
    ),
    "too few images": (
        lambda e: {"images": e["images"] | {"wrist": e["images"]["wrist"][1:]}},
        r"camera 'wrist' must be .* \(7, 17, 19, 3\), got .* \(6, 17, 19, 3\)",
    ),
}


@pytest.mark.parametrize("case", BAD_EPISODES)
def test_a_bad_episode_is_refused_and_the_writer_goes_on(case, tmp_path):
    change, message = BAD_EPISODES[case]
    first, second, third = make_episodes()
    with LeRobotWriter(tmp_path / "data", **SETTINGS) as writer:
        writer.add_episode(**second)
        with pytest.raises(ValueError, match=message):
            writer.add_episode(**first | change(first))
        writer.add_episode(**third)
    episodes = read(tmp_path / "data")
    assert [episode["task"] for episode in episodes] == [second["task"], third["task"]]
    for episode, expected in zip(episodes, (second, third), strict=True):
        assert_same_images(episode["images"], expected["images"], lossy=False)


def test_a_dataset_without_episodes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No episode was added"):
        write(tmp_path / "data", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, "fps must be a whole number of at least 1, got 0"),
        ({"fps": 29.97}, "fps must be a whole number of at least 1, got 29.97"),
        ({"image_format": "jpeg"}, "image_format must be one of lossless_video, video, image, got 'jpeg'"),
        ({"cameras": {"a/b": (24, 32)}}, "must not be empty nor contain '/', got 'a/b'"),
        ({"cameras": {"front": (24, 4)}}, r"Camera 'front' needs \(height, width\).*got \(24, 4\)"),
        ({"cameras": {"front": (24, 32, 3)}}, r"Camera 'front' needs \(height, width\).*got \(24, 32, 3\)"),
        ({"state_names": []}, r"observation.state needs one name for each dimension.*got \[\]"),
        ({"action_names": ["x", "x"]}, r"action needs one name for each dimension, all different"),
        ({"chunks_size": 0}, "must be positive, got 0"),
        ({"video_file_size_in_mb": 0}, "must be positive"),
    ],
)
def test_bad_arguments(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(tmp_path / "data", **SETTINGS | change)
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_number_of_episodes(tmp_path):
    cameras = {"front": (64, 64)}
    episode = make_episode(0, 20, cameras) | {"task": "go"}
    episode_bytes = episode["images"]["front"].nbytes
    with LeRobotWriter(tmp_path / "data", **SETTINGS | {"cameras": cameras}, image_format="image") as writer:
        writer.add_episode(**episode)
        tracemalloc.start()
        for _ in range(20):
            writer.add_episode(**episode | {"images": {"front": episode["images"]["front"].copy()}})
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert kept < 2 * episode_bytes, f"{kept} bytes are kept after 20 episodes of {episode_bytes} bytes"

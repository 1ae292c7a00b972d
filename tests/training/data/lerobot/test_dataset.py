import json
import os
import pickle
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from kivla.training.data.lerobot.dataset import LeRobotDataset
from tests.helpers.lerobot_v21 import decode, encode, write_v21_twin
from tests.helpers.tolerance import assert_close_relative

FIXTURE = Path(__file__).parents[3] / "data" / "lerobot_v3_metaworld"  # written by lerobot itself
CAMERA = "observation.images.corner2"
WRIST = "observation.images.wrist"
DATA = "data/chunk-000/file-000.parquet"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
CHUNK = 8


@pytest.fixture(scope="module")
def v21(tmp_path_factory):
    return write_v21_twin(FIXTURE, tmp_path_factory.mktemp("v21") / "twin")


@pytest.fixture(scope="module")
def several_files(tmp_path_factory):
    return write_several_files(tmp_path_factory.mktemp("several_files") / "dataset")


@pytest.fixture
def copy(tmp_path):
    """A copy of the v3.0 fixture, to be damaged."""
    return shutil.copytree(FIXTURE, tmp_path / "copy")


@pytest.fixture
def v21_copy(v21, tmp_path):
    return shutil.copytree(v21, tmp_path / "copy")


def edit_info(root, **changes):
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_features(root, edit):
    info = json.loads((root / "meta/info.json").read_text())
    edit(info["features"])
    edit_info(root, features=info["features"])


def edit_rows(path, edit):
    """Pass the rows of a parquet file, as a list of dicts, to `edit`."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def replace_column(path, name, array):
    table = pq.read_table(path)
    index = table.column_names.index(name)
    pq.write_table(table.set_column(index, name, array).replace_schema_metadata(None), path)


def write_several_files(root):
    """The fixture with a second camera, and spread over several files, chunks and row groups.

    Episode:             0            1            2
    data                 000/000      000/001      001/000
    first camera         000/000      000/000      000/001
    second camera        000/000      001/000      001/000
    episode table        000/000      000/000      001/000
    """
    shutil.copytree(FIXTURE / "meta", root / "meta")
    rows = pq.read_table(FIXTURE / DATA)
    frames = decode(FIXTURE / VIDEO)
    places = {
        "data": [(0, 0), (0, 1), (1, 0)],
        f"videos/{CAMERA}": [(0, 0), (0, 0), (0, 1)],
        f"videos/{WRIST}": [(0, 0), (1, 0), (1, 0)],
    }
    videos = {}
    table = pq.read_table(FIXTURE / EPISODES)
    episodes = table.drop_columns([name for name in table.column_names if name.startswith("stats/")]).to_pylist()
    for number, episode in enumerate(episodes):
        first, end = episode["dataset_from_index"], episode["dataset_to_index"]
        for what, place in places.items():
            chunk, file = episode[f"{what}/chunk_index"], episode[f"{what}/file_index"] = place[number]
            if what == "data":
                path = root / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(rows.slice(first, end - first), path, row_group_size=20)
            else:
                video = videos.setdefault(root / f"{what}/chunk-{chunk:03d}/file-{file:03d}.mp4", [])
                episode[f"{what}/from_timestamp"] = len(video) / 80
                inverted = what.endswith(WRIST)
                video += [255 - planes if inverted else planes for planes in frames[first:end]]
                episode[f"{what}/to_timestamp"] = len(video) / 80
    for path, planes in videos.items():
        encode(planes, path, fps=80)
    pq.write_table(pa.Table.from_pylist(episodes[:2]), root / EPISODES)
    (root / "meta/episodes/chunk-001").mkdir()
    pq.write_table(pa.Table.from_pylist(episodes[2:]), root / "meta/episodes/chunk-001/file-000.parquet")
    edit_features(root, lambda features: features.update({WRIST: features[CAMERA]}))
    return root


def write_images(root):
    """The fixture with its camera stored as PNG bytes in the data file, as lerobot does for "image" features."""
    shutil.copytree(FIXTURE, root)
    shutil.rmtree(root / "videos")
    rows = pq.read_table(root / DATA)
    images = []
    for frame in rgb_frames(FIXTURE / VIDEO):
        Image.fromarray(frame).save(root / "frame.png")
        images.append({"bytes": (root / "frame.png").read_bytes(), "path": "frame.png"})
    (root / "frame.png").unlink()
    images = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(rows.append_column(CAMERA, images).replace_schema_metadata(None), root / DATA, row_group_size=30)
    edit_features(root, lambda features: features[CAMERA].update(dtype="image"))
    edit_info(root, video_path=None)
    return root


def rgb_frames(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def read_v30(root, camera=CAMERA):
    """An independent reading: one dict per frame, straight from pyarrow and PyAV."""
    tasks = {
        row["task_index"]: row["__index_level_0__"] for row in pq.read_table(root / "meta/tasks.parquet").to_pylist()
    }
    frames, videos = [], {}
    for path in sorted((root / "meta/episodes").glob("*/*")):
        for episode in pq.read_table(path).to_pylist():
            file = "chunk-{:03d}/file-{:03d}"
            data = root / "data" / file.format(episode["data/chunk_index"], episode["data/file_index"])
            rows = pq.read_table(data.with_suffix(".parquet")).to_pylist()
            rows = [row for row in rows if row["episode_index"] == episode["episode_index"]]
            prefix = f"videos/{camera}"
            video = root / prefix / file.format(episode[f"{prefix}/chunk_index"], episode[f"{prefix}/file_index"])
            if video not in videos:
                videos[video] = rgb_frames(video.with_suffix(".mp4"))
            first = round(episode[f"{prefix}/from_timestamp"] * 80)
            frames += with_chunks(rows, videos[video][first : first + len(rows)], tasks)
    return frames


def read_v21(root):
    tasks = [json.loads(line)["task"] for line in (root / "meta/tasks.jsonl").read_text().splitlines()]
    frames = []
    for number in range(3):
        name = f"chunk-000/episode_{number:06d}.parquet"
        video = root / f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4"
        frames += with_chunks(pq.read_table(root / "data" / name).to_pylist(), rgb_frames(video), tasks)
    return frames


def with_chunks(rows, images, tasks):
    frames = []
    for row, image in zip(rows, images, strict=True):
        window = range(row["frame_index"], row["frame_index"] + CHUNK)
        frames.append(
            {
                "image": image,
                "text": tasks[row["task_index"]],
                "state": np.array(row["observation.state"], np.float32),
                "actions": np.array([rows[min(step, len(rows) - 1)]["action"] for step in window], np.float32),
                "action_is_pad": np.array([step >= len(rows) for step in window]),
                "episode_index": row["episode_index"],
                "frame_index": row["frame_index"],
                "timestamp": row["timestamp"],
            }
        )
    return frames


def assert_same(item, expected, camera=0):
    np.testing.assert_array_equal(item["images"][camera], expected["image"], strict=True)
    for name in ("state", "actions", "action_is_pad"):
        np.testing.assert_array_equal(item[name], expected[name], strict=True)
    for name in ("text", "episode_index", "frame_index", "timestamp"):
        assert type(item[name]) is type(expected[name])
        assert item[name] == expected[name]


# What is read


@pytest.mark.parametrize("layout", ["v3.0", "v2.1", "v3.0 in several files"])
def test_every_item_equals_an_independent_reading(layout, v21, several_files):
    root = {"v3.0": FIXTURE, "v2.1": v21, "v3.0 in several files": several_files}[layout]
    expected = read_v21(root) if layout == "v2.1" else read_v30(root)
    data = LeRobotDataset(root, chunk_size=CHUNK)
    assert len(data) == len(expected) == 182
    for index, frame in enumerate(expected):
        assert_same(data[index], frame)


def test_both_formats_describe_the_dataset_alike(v21):
    new, old = LeRobotDataset(FIXTURE), LeRobotDataset(str(v21))
    for name in ("cameras", "fps", "num_episodes", "episodes", "state_dim", "action_dim", "robot_type", "tasks"):
        assert getattr(new, name) == getattr(old, name)
    assert (new.cameras, new.fps, new.num_episodes, new.robot_type) == ([CAMERA], 80, 3, "sawyer")
    assert (new.state_dim, new.state_names) == (4, ["x", "y", "z", "gripper"])
    assert (new.action_dim, new.action_names) == (4, ["dx", "dy", "dz", "gripper"])
    assert new.tasks == {0: "reach the goal position", 1: "open the drawer"}
    assert new.features["action"]["shape"] == [4]
    for text in ("v3.0", "sawyer", "182 frames", "3 of 3 episodes", "80 fps", CAMERA):
        assert text in repr(new)


@pytest.mark.parametrize("layout", ["v3.0", "several files"])
def test_random_access_equals_sequential_access(layout, several_files):
    data = LeRobotDataset(FIXTURE if layout == "v3.0" else several_files, chunk_size=1)
    in_order = [data[index]["images"] for index in range(len(data))]
    for index in np.random.default_rng(0).permutation(len(data)):
        np.testing.assert_array_equal(data[index]["images"], in_order[index])


def test_a_chunk_longer_than_the_episode_repeats_the_last_action():
    data = LeRobotDataset(FIXTURE, chunk_size=60)
    item = data[0]  # the episode has 51 frames
    assert item["actions"].shape == (60, 4)
    np.testing.assert_array_equal(item["action_is_pad"], np.arange(60) >= 51)
    np.testing.assert_array_equal(item["actions"][50:], np.repeat(data[50]["actions"][:1], 10, axis=0))


def test_indices_are_those_of_a_sequence():
    data = LeRobotDataset(FIXTURE, cameras=[])
    assert data[-1]["frame_index"] == data[181]["frame_index"] == 86
    for index in (182, -183):
        with pytest.raises(IndexError, match="182 frames"):
            data[index]


def test_items_do_not_share_memory_with_the_dataset():
    data = LeRobotDataset(FIXTURE, chunk_size=2)
    for name in ("state", "actions"):
        before = data[5][name].copy()
        data[5][name][:] = 0
        np.testing.assert_array_equal(data[5][name], before)


def test_two_cameras_in_the_asked_order(several_files):
    assert LeRobotDataset(several_files).cameras == [CAMERA, WRIST]
    data = LeRobotDataset(several_files, chunk_size=CHUNK, cameras=["wrist", CAMERA])
    assert data.cameras == [WRIST, CAMERA]
    corner, wrist = read_v30(several_files, CAMERA), read_v30(several_files, WRIST)
    assert not np.array_equal(corner[0]["image"], wrist[0]["image"])
    for index in range(0, 182, 13):
        assert_same(data[index], wrist[index], camera=0)
        assert_same(data[index], corner[index], camera=1)
    assert LeRobotDataset(several_files, cameras=[])[0]["images"] == []


def test_images_stored_in_the_data_file(tmp_path):
    data = LeRobotDataset(write_images(tmp_path / "images"), chunk_size=CHUNK)
    for index, frame in enumerate(read_v30(FIXTURE)):
        assert_same(data[index], frame)


def test_depth_maps_are_not_cameras(copy):
    edit_features(copy, lambda features: features[CAMERA]["info"].update({"video.is_depth_map": True}))
    assert LeRobotDataset(copy).cameras == []


def test_without_a_state(copy):
    pq.write_table(pq.read_table(copy / DATA).drop_columns("observation.state"), copy / DATA)
    data = LeRobotDataset(copy)
    assert "state" not in data[0]
    assert (data.state_dim, data.state_names) == (0, None)
    assert data.statistics.keys() == {"actions"}


def test_vectors_of_length_one_that_lerobot_writes_as_numbers(copy):
    actions = pa.array(np.arange(182, dtype=np.float32))
    replace_column(copy / DATA, "action", actions)
    edit_features(copy, lambda features: features["action"].update(shape=[1], names=["speed"]))
    data = LeRobotDataset(copy, chunk_size=3)
    np.testing.assert_array_equal(data[50]["actions"], np.float32([[50], [50], [50]]), strict=True)
    np.testing.assert_array_equal(data.statistics["actions"]["max"], [181.0])


def test_lists_of_doubles_become_float32(copy):
    actions = pq.read_table(copy / DATA)["action"].to_pylist()
    replace_column(copy / DATA, "action", pa.array(actions, pa.list_(pa.float64())))
    np.testing.assert_array_equal(
        LeRobotDataset(copy)[0]["actions"], LeRobotDataset(FIXTURE)[0]["actions"], strict=True
    )


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    assert len(LeRobotDataset(shutil.copytree(FIXTURE, tmp_path / "a[1] *"))) == 182


def test_a_dataset_that_was_recorded_again_is_read_again(copy):
    assert LeRobotDataset(copy)[0]["actions"][0, 0] != 7

    def edit(rows):
        rows[0]["action"][0] = 7

    edit_rows(copy / DATA, edit)
    assert LeRobotDataset(copy)[0]["actions"][0, 0] == 7


# Episodes and statistics


def test_episodes_are_selected_in_the_given_order(several_files):
    everything = LeRobotDataset(several_files, chunk_size=CHUNK)
    data = LeRobotDataset(several_files, chunk_size=CHUNK, episodes=[2, 0])
    assert (data.num_episodes, data.episodes, len(data)) == (2, [2, 0], 87 + 51)
    assert data.episode_range(2) == range(87)
    assert data.episode_range(0) == range(87, 138)
    for index, same in [(0, 95), (86, 181), (87, 0), (137, 50)]:
        for name, value in everything[same].items():
            np.testing.assert_array_equal(data[index][name], value)
    with pytest.raises(ValueError, match=r"episode 1 is not among the selected ones, 2, 0"):
        data.episode_range(1)


@pytest.mark.parametrize("episodes", [None, [2, 0], [1, 2]])
def test_statistics_are_those_of_all_selected_frames(episodes, several_files):
    table = pq.read_table(FIXTURE / DATA)
    keep = np.isin(table["episode_index"].to_numpy(), episodes or [0, 1, 2])
    data = LeRobotDataset(several_files, episodes=episodes)
    assert data.statistics.keys() == {"state", "actions"}
    for name, key in (("state", "observation.state"), ("actions", "action")):
        values = np.array(table[key].to_pylist())[keep]
        expected = {
            "mean": values.mean(axis=0),
            "std": np.sqrt(((values - values.mean(axis=0)) ** 2).mean(axis=0)),
            "min": values.min(axis=0),
            "max": values.max(axis=0),
            "q01": np.percentile(values, 1, axis=0),
            "q99": np.percentile(values, 99, axis=0),
        }
        assert data.statistics[name].keys() == expected.keys()
        for statistic, value in expected.items():
            assert data.statistics[name][statistic].dtype == np.float64
            assert_close_relative(data.statistics[name][statistic], value, what=f"{name} {statistic}")


def test_lerobots_own_statistics_stay_reachable(v21):
    data = LeRobotDataset(FIXTURE)
    stored = json.loads((FIXTURE / "meta/stats.json").read_text())
    for name, key in (("state", "observation.state"), ("actions", "action")):
        for statistic, value in data.meta_statistics[name].items():
            np.testing.assert_array_equal(value, np.float64(stored[key][statistic]), strict=True)
        # They agree with ours where averages over episodes cannot go wrong, and only there.
        means = (statistics[name]["mean"] for statistics in (data.meta_statistics, data.statistics))
        assert_close_relative(*means, dtype=torch.float32, what=name)  # what LeRobot computes in
        assert np.abs(data.meta_statistics[name]["q99"] - data.statistics[name]["q99"]).max() > 0.01
    assert LeRobotDataset(v21).meta_statistics is None


# Processes


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_data_loader_workers_read_the_same(start_method, several_files):
    data = LeRobotDataset(several_files, chunk_size=CHUNK)
    expected = [data[index] for index in range(0, 182, 7)]  # and leaves files open in this process
    subset = torch.utils.data.Subset(data, range(0, 182, 7))
    loader = torch.utils.data.DataLoader(
        subset, batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context=start_method
    )
    items = [item for batch in loader for item in batch]
    assert len(items) == len(expected)
    for item, same in zip(items, expected, strict=True):
        for name, value in same.items():
            np.testing.assert_array_equal(item[name], value)
    np.testing.assert_array_equal(data[7]["images"], expected[1]["images"])  # the parent's files still work


def test_pickling_drops_open_files(several_files):
    data = LeRobotDataset(several_files, chunk_size=CHUNK)
    item = data[100]
    copied = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copied[100]["images"], item["images"])
    np.testing.assert_array_equal(copied[100]["actions"], item["actions"])


class TinyPolicy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, state, actions):
        return {"loss": (self.linear(state)[:, None] - actions).square().mean()}


def collate(items):
    return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in ("state", "actions")}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_hugging_face_trainer_trains_on_it(workers, tmp_path):
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        dataloader_num_workers=workers,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    data = LeRobotDataset(FIXTURE, chunk_size=CHUNK)
    result = Trainer(TinyPolicy(), arguments, train_dataset=data, data_collator=collate).train()
    assert result.global_step == 3
    assert np.isfinite(result.training_loss)


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_size": 0}, "at least 1, got 0"),
        ({"cameras": ["front"]}, f"has no camera 'front'. It has: .*{CAMERA}"),
        ({"cameras": ["corner2", CAMERA]}, "selected twice"),
        ({"episodes": [0, 3]}, "no episode 3. Its episodes: 0, 1, 2"),
        ({"episodes": [1, 1]}, "selected twice"),
        ({"episodes": []}, "`episodes` is empty"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(FIXTURE, **arguments)


def test_an_ambiguous_camera(several_files, tmp_path):
    root = shutil.copytree(several_files, tmp_path / "copy")
    edit_features(root, lambda features: features.update({f"{arm}.hand": features[CAMERA] for arm in ("a", "b")}))
    with pytest.raises(ValueError, match=r"'hand' names more than one camera: \['a.hand', 'b.hand'\]"):
        LeRobotDataset(root, cameras=["hand"])


# Damaged datasets


def test_not_a_lerobot_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a LeRobot dataset: it has no meta/info.json"):
        LeRobotDataset(tmp_path)


@pytest.mark.parametrize("version", ["v1.6", "v4.0", None])
def test_unsupported_formats_say_how_to_convert(version, copy):
    edit_info(copy, codebase_version=version)
    with pytest.raises(ValueError, match=f"format {version!r}; supported are v2.0, v2.1, v3.0. Convert"):
        LeRobotDataset(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 30}, r"at 30 fps frames are 0.0333 s apart, but the timestamps are 0.0125 s apart"),
        ({"fps": 0}, "fps must be a positive number, at most 1e6, got 0"),
        ({"fps": "10"}, "fps must be a positive number, at most 1e6, got '10'"),
        ({"data_path": "../elsewhere/{chunk_index}-{file_index}.parquet"}, "leads out of the dataset's folder"),
        ({"data_path": "/etc/{chunk_index}-{file_index}.parquet"}, "leads out of the dataset's folder"),
        ({"video_path": "videos/../../{video_key}.mp4"}, "leads out of the dataset's folder"),
        ({"video_path": "{video_key.__class__}.mp4"}, "may only use the fields"),
        ({"data_path": "data/{frame}.parquet"}, "may only use the fields"),
        ({"video_path": 5}, "needs 'video_path', a path template, but has 5"),
    ],
)
def test_bad_info(changes, message, copy):
    edit_info(copy, **changes)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(copy)


@pytest.mark.parametrize(
    ("edit", "note"),
    [
        (lambda features: features["action"].update(shape=[7]), r"action the shape \[7\]; the data has 4"),
        (lambda features: features["action"].update(shape=None), None),
        (lambda features: features["action"].update(names=["all"]), "1 name.* for the 4 dimensions of action"),
        (lambda features: features.update({WRIST: features[CAMERA]}), f"{WRIST}, but the folder holds no picture"),
        (lambda features: features.update({WRIST: {"dtype": "image"}}), f"{WRIST}, but the folder holds no picture"),
        (lambda features: features.update(weird={"dtype": 5, "shape": "x", "names": [[]]}), None),
    ],
)
def test_features_that_disagree_with_the_data_do_not_matter(edit, note, copy):
    edit_features(copy, edit)
    data = LeRobotDataset(copy)
    assert (data.cameras, data.action_dim) == ([CAMERA], 4)
    assert len(data.notes) == (note is not None)
    assert note is None or re.search(note, data.notes[0])


def test_a_camera_that_is_asked_for_must_be_there(copy):
    edit_features(copy, lambda features: features.update({WRIST: features[CAMERA]}))
    with pytest.raises(FileNotFoundError, match=f"{WRIST}, but the folder holds no picture of it"):
        LeRobotDataset(copy, cameras=["corner2", "wrist"])
    shutil.rmtree(copy / "videos")
    with pytest.raises(FileNotFoundError, match=f"{CAMERA}, {WRIST}, but the folder holds no picture of them"):
        LeRobotDataset(copy)


@pytest.mark.parametrize("change", [{"total_frames": 183}, {"total_episodes": 4}])
def test_totals_that_disagree_with_the_tables_are_said(change, copy):
    edit_info(copy, **change)
    (note,) = LeRobotDataset(copy).notes
    assert re.search(r"info.json says total_\w+ = (183|4), but the episode table lists (182 frames|3 episodes)", note)


def test_a_camera_name_that_leads_out_of_the_folder(v21_copy):
    edit_features(v21_copy, lambda features: features.update({"../../../x": features[CAMERA]}))
    with pytest.raises(ValueError, match="leads out of the dataset's folder"):
        LeRobotDataset(v21_copy)


def test_info_that_is_no_json_or_lacks_a_key(copy):
    path = copy / "meta/info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in info.items() if key != "fps"}))
    with pytest.raises(ValueError, match=r"info.json lacks fps"):
        LeRobotDataset(copy)
    path.write_text(json.dumps(info)[:100])
    with pytest.raises(ValueError, match=r"info.json is not valid JSON"):
        LeRobotDataset(copy)


@pytest.mark.parametrize("name", [DATA, EPISODES])
def test_parquet_files_that_are_cut_off_or_missing(name, copy):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{name} cannot be read as parquet"):
        LeRobotDataset(copy)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"missing|has no meta/episodes"):
        LeRobotDataset(copy)


def test_a_later_data_file_that_is_damaged_or_missing_is_named(v21_copy):
    path = v21_copy / "data/chunk-000/episode_000001.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)  # the pages; the footer stays whole
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"episode_000001.parquet cannot be read as parquet"):
        LeRobotDataset(v21_copy)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 data file missing: .*episode_000001.parquet\."):
        LeRobotDataset(v21_copy)


def episode_lines(*rows):
    return "".join(json.dumps({"episode_index": index, "length": length}) + "\n" for index, length in rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (episode_lines((0, 51)) + '{"episode_index', "episodes.jsonl, line 2, is not valid JSON"),
        ('{"episode_index": 0}\n', "episodes.jsonl, line 1, lacks length"),
        ("", "has no episodes"),
        (episode_lines((0, 95), (1, 0), (2, 87)), "episode 1 has no frames"),
        (episode_lines((0, 51), (0, 44), (2, 87)), "lists an episode more than once"),
        (episode_lines((0, 50), (1, 45), (2, 87)), "episode 0 has 50 frames by its metadata, but 51 in the data"),
    ],
)
def test_a_bad_episode_table(content, message, v21_copy):
    (v21_copy / "meta/episodes.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(v21_copy)


@pytest.mark.parametrize(
    ("path", "column", "message"),
    [
        (EPISODES, "length", f"{EPISODES} lacks the column length"),
        (EPISODES, f"videos/{CAMERA}/from_timestamp", "no column 'videos/.*/from_timestamp'"),
        ("meta/tasks.parquet", "__index_level_0__", "lacks the column __index_level_0__"),
        (DATA, "action", "no column is called 'action'.*action_key"),
    ],
)
def test_a_missing_column(path, column, message, copy):
    pq.write_table(pq.read_table(copy / path).drop_columns(column).replace_schema_metadata(None), copy / path)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(copy)


def test_an_episode_table_with_empty_fields(copy):
    edit_rows(copy / EPISODES, lambda rows: rows[1].update({"data/file_index": None}))
    with pytest.raises(ValueError, match="meta/episodes has values in data/file_index that are empty"):
        LeRobotDataset(copy)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows.pop(), "episode 2 has 87 frames by its metadata, but 86 in the data"),
        (lambda rows: rows.append(rows.pop(0)), "episode are not in one piece"),
        (lambda rows: rows[3].update(frame_index=4), "frames of episode 0 are not numbered 0 to 50"),
        (lambda rows: rows[60].update(task_index=5), "episode 1 has the task 5, but the task table has only 0, 1"),
        (lambda rows: rows[60]["action"].__setitem__(2, np.nan), "'action' holds NaN.* 1 frames.*episode 1, frame 9"),
        (lambda rows: rows[60]["observation.state"].__setitem__(0, -np.inf), "'observation.state' holds.*frame 9"),
        (lambda rows: rows[60]["action"].__setitem__(0, None), "'action' holds NaN.*episode 1, frame 9"),
    ],
)
def test_bad_rows(edit, message, copy):
    edit_rows(copy / DATA, edit)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(copy)


def test_a_bad_episode_can_be_left_out(copy):
    def edit(rows):
        rows[60]["action"][0] = np.nan

    edit_rows(copy / DATA, edit)
    data = LeRobotDataset(copy, episodes=[0, 2])
    assert np.isfinite(data.statistics["actions"]["mean"]).all()


def test_a_missing_video(v21_copy):
    (v21_copy / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").unlink()
    for cameras in (None, [CAMERA]):
        with pytest.raises(FileNotFoundError, match=r"1 video.* missing: .*episode_000001.mp4\."):
            LeRobotDataset(v21_copy, cameras=cameras)
    assert len(LeRobotDataset(v21_copy, cameras=[])) == 182
    assert len(LeRobotDataset(v21_copy, episodes=[0, 2])) == 138
    (v21_copy / f"videos/chunk-000/{CAMERA}/episode_000002.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 video.* missing: .*episode_000001.mp4, .*episode_000002.mp4\."):
        LeRobotDataset(v21_copy)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "cut off"),
        (lambda content: content[:35], "cut off"),
        (lambda content: b"", "cut off"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    ],
)
def test_a_damaged_video_is_found_when_opening(damage, message, copy):
    path = copy / VIDEO
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"camera '{CAMERA}'.*{VIDEO}.*{message}"):
        LeRobotDataset(copy)


def test_damage_inside_a_video_stream_names_the_frame(copy):
    path = copy / VIDEO
    content = bytearray(path.read_bytes())
    content[50_000:90_000] = os.urandom(40_000)
    path.write_bytes(content)
    data = LeRobotDataset(copy)
    with pytest.raises(ValueError, match=rf"copy, camera '{CAMERA}', episode \d, frame \d+: .*{VIDEO}"):
        for index in range(len(data)):
            data[index]


def test_a_stored_image_that_is_lost_is_named_at_opening(tmp_path):
    root = write_images(tmp_path / "images")
    edit_rows(root / DATA, lambda rows: rows[60][CAMERA].update(bytes=None))
    with pytest.raises(FileNotFoundError, match=rf"camera '{CAMERA}', episode 1: 1 picture missing: frame\.png"):
        LeRobotDataset(root)


def test_a_damaged_stored_image_names_the_frame(tmp_path):
    root = write_images(tmp_path / "images")
    edit_rows(root / DATA, lambda rows: rows[60][CAMERA].update(bytes=b"no picture"))
    data = LeRobotDataset(root)
    data[59]
    with pytest.raises(ValueError, match=f"images, camera '{CAMERA}', episode 1, frame 9: "):
        data[60]

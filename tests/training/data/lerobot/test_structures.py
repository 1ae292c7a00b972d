"""Folders as other programs write them: each opens, shows the right pictures, and says what was assumed."""

import io
import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kivla.training.data.lerobot.dataset import LeRobotDataset
from tests.helpers.lerobot_folder import CAMERA, number_of, picture, pictures_are_right, write_folder, write_video

JOINTS = [f"joint_{i}" for i in range(7)]


def names(stored):
    def edit(info):
        for key in ("action", "observation.state"):
            info["features"][key]["names"] = stored

    return {"edit_info": edit}


def template(chunk):
    def edit(info):
        info["data_path"] = f"data/chunk-{chunk}/episode_{{episode_index:06d}}.parquet"
        info["video_path"] = f"videos/chunk-{chunk}/{{video_key}}/episode_{{episode_index:06d}}.mp4"

    return {"edit_info": edit}


def columns(**changes):
    """Change columns of every episode; None leaves one out."""

    def edit(there, episode):
        for name, change in changes.items():
            if change is None:
                del there[name]
            else:
                there[name] = change(there[name])

    return {"edit_columns": edit}


def channel_first(info):
    info["features"][CAMERA] |= {"shape": [3, 64, 64], "names": ["channels", "height", "width"]}


def capitals(info):
    info["features"][CAMERA]["dtype"] = "Video"


def jitter(times):
    return times + np.random.default_rng(0).uniform(-0.04, 0.04, len(times))


# What is written, and a note that there must be (None: none at all).
STRUCTURES = {
    "names in a list": (names([JOINTS]), None),
    "one name for all": (names(["actions"]), "1 name.* for the 7 dimensions of action: they are numbered"),
    "keys of openpi": ({"keys": ("actions", "state", "image")}, "actions are made of the column.* actions"),
    "v2.0": ({"version": "v2.0"}, None),
    "times begin one frame late": (columns(timestamp=lambda t: t + 0.1), r"begin at 0.1 s and not at 0 in all 3 ep"),
    "no frame_index": (columns(frame_index=None), "frame_index is missing: frames are numbered"),
    "chunk_index in v2.1": (template("{chunk_index:03d}"), None),
    "episode_index as the chunk": (template("{episode_index:03d}"), "not where data_path of meta/info.json says"),
    "measured times": (columns(timestamp=jitter), "uneven, .* apart where 10 fps are 0.1 s, in all 3 episodes"),
    "many dimensions": ({"dim": 44}, None),
    "channel first": ({"edit_info": channel_first}, None),
    "a dtype in capitals": ({"edit_info": capitals}, None),
    "no index columns at all": (
        columns(frame_index=None, episode_index=None, index=None, task_index=None, timestamp=None),
        "task_index is missing: there is only one task",
    ),
    "times in a list": (columns(timestamp=lambda t: t[:, None].tolist()), None),
    "Unix times": (columns(timestamp=lambda t: t + 1.7e9), r"begin at 1.7e\+09 s and not at 0"),
    "times that stand still": (columns(timestamp=lambda t: 0 * t), "timestamps do not move in all 3 episodes"),
    "times that are no numbers": (columns(timestamp=lambda t: t + np.nan), "timestamps are no numbers in all 3 ep"),
    "a doubled time": (columns(timestamp=lambda t: np.maximum(t - (t > 0.55) * 0.1, 0)), "uneven"),
    "an even rate a little below fps": (columns(timestamp=lambda t: t / 0.97), "run at 9.7 frames a second where fps"),
    "29.97 fps": ({"fps": 29.97}, None),
    "gaps in frame_index": (columns(frame_index=lambda i: i + (i > 4)), "frame_index leaves numbers out"),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_structure_opens_right(name, version, tmp_path):
    options, note = STRUCTURES[name]
    if version == "v3.0" and ("version" in options or "chunk" in name or name == "no index columns at all"):
        pytest.skip("is about v2.x")
    data = LeRobotDataset(write_folder(tmp_path / "data", **{"version": version} | options), chunk_size=5)
    assert pictures_are_right(data)
    assert len(data) == 36 and data.action_dim == data.state_dim == options.get("dim", 7)
    assert data.action_names is None or len(data.action_names) == data.action_dim
    assert {data[i]["text"] for i in (0, 35)} == {"pick up the cup"}
    assert data.notes if note else not data.notes, data.notes
    assert note is None or any(re.search(note, said) for said in data.notes), data.notes
    values = np.random.default_rng(0).normal(size=(12, data.action_dim)).cumsum(0).astype(np.float32)
    np.testing.assert_array_equal(data[3]["actions"], values[3:8])
    np.testing.assert_array_equal(data[3]["state"], values[3] + 1)


@pytest.mark.parametrize("rate", [7, 8.5, 9.4, 11, 14])
def test_even_times_of_another_rate_are_refused(rate, tmp_path):
    """Which of the two is wrong nobody can tell, and a robot would move at the wrong one."""
    folder = write_folder(tmp_path / "data", **columns(timestamp=lambda t: t * 10 / rate))
    with pytest.raises(ValueError, match=f"evenly .* all 3 episodes.* is {rate} frames a second, but .* fps = 10"):
        LeRobotDataset(folder)


def test_short_episodes_are_even_together(tmp_path):
    def clock(there, _):
        there["timestamp"] = there["timestamp"] * 10 / 12

    with pytest.raises(ValueError, match=r"evenly .* all 3 episodes.* is 12 frames a second, but .* fps = 10"):
        LeRobotDataset(write_folder(tmp_path / "data", lengths=(8, 7, 8), edit_columns=clock))
    few = LeRobotDataset(write_folder(tmp_path / "few", lengths=(4, 4), edit_columns=clock))
    assert any("some 12 frames a second, unevenly" in note for note in few.notes), "few steps may be even by chance"


def lose_a_row(times):
    return np.r_[times[: len(times) // 2], times[len(times) // 2 :] + 0.1]


def in_bursts(times):
    return times // 0.4 * 0.4


@pytest.mark.parametrize(
    ("rate", "change", "said"),
    [
        (8, jitter, 8),
        (12, jitter, 12),
        (8, lose_a_row, 8),
        (10, jitter, None),
        (10, lose_a_row, None),
        (10, lambda times: lose_a_row(lose_a_row(times)) + 0.5 * (times > 0.6), None),
        (10, in_bursts, None),
    ],
)
def test_uneven_times_of_another_rate_are_said(rate, change, said, tmp_path):
    def clock(there, _):
        there["timestamp"] = change(there["timestamp"]) * 10 / rate

    data = LeRobotDataset(write_folder(tmp_path / "data", lengths=(24, 30), edit_columns=clock))
    found = [float(match[1]) for note in data.notes if (match := re.search("at some (.*) frames a second, unev", note))]
    assert len(found) == (said is not None) and all(abs(rate / said - 1) < 0.05 for rate in found)


def turn_files(root, drop):
    """A v3.0 data file whose second episode comes first, without some columns."""
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    episodes = table["episode_index"].to_numpy()
    order = np.argsort(np.where(episodes == 0, 1, np.where(episodes == 1, 0, episodes)), kind="stable")
    pq.write_table(table.take(order).drop_columns(list(drop)), path)


@pytest.mark.parametrize("starts", ["in the table", "counted"])
def test_without_episode_index_the_rows_own_numbers_say_whose_they_are(starts, tmp_path):
    def edit_episodes(episodes):
        for episode in episodes if starts == "in the table" else ():
            episode["dataset_from_index"] = 100 + 12 * episode["episode_index"]

    def edit_columns(there, episode):
        there["index"] = there["index"] + (100 if starts == "in the table" else 0)

    edits = {"edit_episodes": edit_episodes, "edit_columns": edit_columns}
    root = write_folder(tmp_path / "data", version="v3.0", lengths=(12, 12, 12), **edits)
    turn_files(root, ["episode_index"])
    data = LeRobotDataset(root, chunk_size=5)
    assert pictures_are_right(data) and [data[i]["episode_index"] for i in (0, 12, 24)] == [0, 1, 2]
    assert data.notes == ["episode_index is missing: the column 'index' says which rows are whose."]
    first = np.random.default_rng(0).normal(size=(12, 7)).cumsum(0).astype(np.float32)
    np.testing.assert_array_equal(data[3]["actions"], first[3:8])
    assert LeRobotDataset(root, chunk_size=5, episodes=[1]).episodes == [1]


@pytest.mark.parametrize(
    ("lengths", "drop", "problem"),
    [
        ((12, 12, 12), ("episode_index", "index"), "several episodes, of equal lengths: nobody can tell"),
        ((12, 10, 14), ("episode_index", "index", "frame_index"), "several episodes, without frame_index: nobody"),
        ((12, 10, 14), ("episode_index", "index"), "of episode . are not numbered"),
    ],
)
def test_an_order_of_episodes_that_nothing_tells_is_refused(lengths, drop, problem, tmp_path):
    root = write_folder(tmp_path / "data", version="v3.0", lengths=lengths)
    turn_files(root, drop)
    with pytest.raises(ValueError, match=problem):
        LeRobotDataset(root, chunk_size=5)


def test_row_numbers_that_are_not_those_of_the_table_are_refused(tmp_path):
    def edit_columns(there, episode):
        del there["episode_index"]
        there["index"] = there["index"] + 3

    root = write_folder(tmp_path / "data", version="v3.0", edit_columns=edit_columns)
    with pytest.raises(ValueError, match="the column 'index' are not those of the episode table"):
        LeRobotDataset(root, chunk_size=5)


def write_gr00t(root):
    """The structure of the demonstration data of Isaac-GR00T, in small."""

    def edit_columns(there, episode):
        del there["frame_index"]
        there["timestamp"] = there["timestamp"] + 0.05
        there["task_index"] = np.full(len(there["timestamp"]), episode)

    def edit_info(info):
        template("{episode_index:03d}")["edit_info"](info)
        info["features"]["observation.images.egoview"] = info["features"][CAMERA] | {"shape": [800, 1280, 3]}
        info |= {"total_videos": 2, "total_chunks": 0}

    write_folder(root, "v2.0", fps=20, dim=9, edit_columns=edit_columns, edit_info=edit_info)
    tasks = [{"task_index": i, "task": f"pick up object {i}"} for i in range(3)]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    (root / "meta/stats.json").write_text("{}")
    groups = {"arm": {"start": 0, "end": 6}, "hand": {"start": 6, "end": 9}}
    modality = {
        "state": groups,
        "action": groups | {"hand": {"start": 8, "end": 9, "original_key": "action"}},
        "video": {"ego": {"original_key": CAMERA}},
    }
    (root / "meta/modality.json").write_text(json.dumps(modality))
    return root


def test_the_structure_of_gr00t(tmp_path):
    root = write_gr00t(tmp_path / "gr00t")
    data = LeRobotDataset(root, chunk_size=4)
    assert pictures_are_right(data) and data.cameras == [CAMERA]
    assert [data[data.episode_range(e).start]["text"][-1] for e in range(3)] == ["0", "1", "2"]
    for note in ("egoview, but the folder", "frame_index is missing", "begin at 0.05 s", "not where data_path"):
        assert any(note in said for said in data.notes), data.notes
    with pytest.raises(
        FileNotFoundError, match=r"announces observation\.images\.egoview, but the folder holds no picture"
    ):
        LeRobotDataset(root, cameras=["egoview"])
    by_groups = LeRobotDataset(root, chunk_size=4, keys="gr00t")
    assert by_groups.action_key == ["action[0:6]", "action[8:9]"] and by_groups.state_key == ["observation.state"]
    assert by_groups.action_names == [*(f"arm.{i}" for i in range(6)), "hand"]
    assert by_groups.state_names[6:] == ["hand.0", "hand.1", "hand.2"]
    np.testing.assert_array_equal(by_groups[2]["actions"], data[2]["actions"][:, [0, 1, 2, 3, 4, 5, 8]])
    assert by_groups.statistics["actions"]["mean"].shape == (7,)


def test_rows_of_the_table_that_is_missing(tmp_path):
    """Without tasks.jsonl the episode table says what each episode is about."""
    root = write_folder(
        tmp_path / "data",
        edit_episodes=lambda episodes: [episode.update(tasks=[f"task {e % 2}"]) for e, episode in enumerate(episodes)],
    )
    (root / "meta/tasks.jsonl").unlink()
    data = LeRobotDataset(root, chunk_size=2)
    assert [data[data.episode_range(e).start]["text"] for e in range(3)] == ["task 0", "task 1", "task 0"]
    assert any("no table of tasks" in note for note in data.notes)


def test_a_camera_of_which_some_videos_are_missing_is_refused_with_all_of_them(tmp_path):
    root = write_folder(tmp_path / "data")
    for episode in (0, 2):
        (root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 video.* missing: .*episode_000000.mp4, .*episode_000002.mp4\."):
        LeRobotDataset(root)
    assert pictures_are_right(LeRobotDataset(root, episodes=[1]))


WRIST = "observation.images.wrist"


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_paths_of_videos_that_do_not_name_the_camera(version, tmp_path):
    """Two cameras never have one video: each has its own where LeRobot puts it, or is refused."""

    def edit(info):
        info["video_path"] = info["video_path"].replace("{video_key}", CAMERA)
        info["features"][WRIST] = info["features"][CAMERA]

    def edit_episodes(episodes):
        if version == "v3.0":
            for episode in episodes:
                episode.update({name.replace(CAMERA, WRIST): value for name, value in episode.items()})

    root = write_folder(tmp_path / "data", version, edit_info=edit, edit_episodes=edit_episodes)
    for video in list(root.glob(f"videos/**/{CAMERA}/**/*.mp4")):
        pictures = {"episode_000000": range(12), "episode_000001": range(9), "episode_000002": range(15)}
        numbers = [1000 + k for k in pictures.get(video.stem, range(36))]
        write_video(Path(str(video).replace(CAMERA, WRIST)), numbers, 10)
    data = LeRobotDataset(root)
    assert any("does not name the camera, and there are 2" in note for note in data.notes)
    assert [number_of(image) for image in data[0]["images"]] == [0, 1000]
    assert number_of(LeRobotDataset(root, cameras=["wrist"])[0]["images"][0]) == 1000
    for video in root.glob(f"videos/**/{WRIST}/**/*.mp4"):
        video.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no picture of it.* does not name the camera"):
        LeRobotDataset(root, cameras=["wrist"])


def write_in_two_files(root, **options):
    """Write v3.0 with episodes 0 and 1 in one data file and one video, and 2 and 3 in others; 12 frames each."""

    def edit(episodes):
        for number, episode in enumerate(episodes):
            start = 1.2 * (number % 2)
            places = {"chunk_index": 0, "file_index": number // 2, "from_timestamp": start, "to_timestamp": start + 1.2}
            episode |= {f"videos/{CAMERA}/{name}": value for name, value in places.items()}
            episode["data/file_index"] = number // 2

    write_folder(root, "v3.0", lengths=(12,) * 4, edit_episodes=edit, **options)
    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    for number in range(2):
        pq.write_table(table.slice(24 * number, 24), root / f"data/chunk-000/file-00{number}.parquet")
        pictures = [100 * episode + k for episode in (2 * number, 2 * number + 1) for k in range(12)]
        write_video(root / f"videos/{CAMERA}/chunk-000/file-00{number}.mp4", pictures, 10)
    return root


@pytest.mark.parametrize(
    ("version", "path"),
    [
        ("v2.1", "videos/chunk-000/{video_key}/episode_000000.mp4"),
        ("v2.1", "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{chunk_index:06d}.mp4"),
        ("v3.0", "videos/{video_key}/chunk-000/file-000.mp4"),
        ("v3.0", "videos/{video_key}/chunk-{chunk_index:03d}/file-{episode_chunk:03d}.mp4"),
    ],
)
def test_paths_of_videos_that_are_the_same_for_several(version, path, tmp_path):
    """No episode has the video of another one, though that be as long: not if it alone is selected, either."""
    write = write_in_two_files if version == "v3.0" else partial(write_folder, lengths=(12,) * 4)
    root = write(tmp_path / "data", edit_info=lambda info: info.update(video_path=path))
    for episodes in (None, [0], [2], [3, 1]):
        data = LeRobotDataset(root, episodes=episodes)
        assert pictures_are_right(data)
        assert any("gives different videos of a camera one path" in note for note in data.notes)
    for number, video in enumerate(sorted(root.glob("videos/**/*.mp4"))):
        if number:
            video.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no picture of it.* one path"):
        LeRobotDataset(root, episodes=[2])


def test_a_path_that_names_each_video_in_its_own_way_is_followed(tmp_path):
    path = "videos/chunk-{chunk_index:03d}/{video_key}/episode_{file_index:06d}.mp4"
    data = LeRobotDataset(write_folder(tmp_path / "data", edit_info=lambda info: info.update(video_path=path)))
    assert pictures_are_right(data) and not data.notes


@pytest.mark.parametrize("places", ["none", "between others", None])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_episode_without_frames_can_be_left_out(version, places, tmp_path):
    def add(episodes):
        columns = {name: value for name, value in episodes[1].items() if name.startswith(("data/", "videos/"))}
        if places == "between others":
            columns[f"videos/{CAMERA}/from_timestamp"] = columns.get(f"videos/{CAMERA}/to_timestamp")
        else:
            columns = dict.fromkeys(columns) if places == "none" else {}
        episodes.insert(2, {"episode_index": 3, "tasks": ["pick up the cup"], "length": 0, **columns})

    root = write_folder(
        tmp_path / "data", version, edit_episodes=add, edit_info=lambda info: info.update(total_episodes=4)
    )
    assert pictures_are_right(LeRobotDataset(root, episodes=[0, 1, 2]))
    with pytest.raises(ValueError, match=r"episode 3 has no frames. Leave it out with `episodes=\[...\]`"):
        LeRobotDataset(root)


@pytest.mark.parametrize("column", ["observation.state", "action", "timestamp"])
def test_a_column_that_some_files_lack(column, tmp_path):
    def drop(there, episode):
        if episode == 1:
            del there[column]

    root, where = write_folder(tmp_path / "data", edit_columns=drop), "missing in 1 of 3 data files, such as .*000001"
    if column == "timestamp":
        assert any(re.search(f"'timestamp' is {where}.*: it is not used", note) for note in LeRobotDataset(root).notes)
        return
    with pytest.raises(ValueError, match=f"'{column}' is {where}.*Export the dataset again"):
        LeRobotDataset(root)
    assert pictures_are_right(LeRobotDataset(root, episodes=[2, 0])), "other episodes have it"
    if column == "observation.state":
        assert LeRobotDataset(root, state_key="none").state_dim == 0
        with pytest.raises(ValueError, match=f"'{column}' is {where}"):
            LeRobotDataset(root, state_key=column)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda numbers: numbers + 0.5, "column 'task_index' counts, and holds numbers that are not whole"),
        (lambda numbers: [None, *numbers[1:].tolist()], "episode 0, frame 0, has no task: its task_index is empty"),
        (lambda numbers: [[0, 0], [], *[[0]] * (len(numbers) - 2)], "'task_index' holds lists .* in row 1 of all"),
        (lambda numbers: [[0, 0]] * len(numbers), "'task_index' holds lists .* in row 0 of all"),
    ],
)
def test_numbers_of_tasks_that_are_none(change, message, tmp_path):
    def edit(there, _):
        there["task_index"] = change(there["task_index"])

    with pytest.raises(ValueError, match=message):
        LeRobotDataset(write_folder(tmp_path / "data", edit_columns=edit))


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    root = write_folder(tmp_path / "data")
    file = root / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.append_column("action", table["action"]), file)
    with pytest.raises(ValueError, match=r"episode_000001\.parquet has the column 'action' more than once"):
        LeRobotDataset(root)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_two_instructions_of_one_task_are_refused(version, tmp_path):
    folder = write_folder(tmp_path / "data", version)
    if version == "v3.0":
        table = {"task_index": [0, 0], "task": ["open it", "close it"]}
        pq.write_table(pa.table(table), folder / "meta/tasks.parquet")
    else:
        lines = ['{"task_index": 0, "task": "open it"}', '{"task_index": 0, "task": "close it"}']
        (folder / "meta/tasks.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="gives the task 0 two instructions, 'open it' and 'close it'"):
        LeRobotDataset(folder, cameras=[])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_another_task_in_the_episode_table_is_said(version, tmp_path):
    def edit(episodes):
        episodes[1]["tasks"] = ["close it"]

    folder = write_folder(tmp_path / "data", version, edit_episodes=edit)
    data = LeRobotDataset(folder, cameras=[])
    assert data[12]["text"] == "pick up the cup"
    (note,) = data.notes
    assert "in 1 episodes (episode 1: 'close it', its rows 'pick up the cup')" in note
    assert not LeRobotDataset(folder, episodes=[0, 2], cameras=[]).notes


def test_rows_that_only_their_number_puts_in_order_are_refused(tmp_path):
    def shuffle(there, episode):
        order = np.random.default_rng(episode).permutation(len(there["index"]))
        for name in ("index", "action", "observation.state"):
            there[name] = np.array(there[name])[order].tolist()
        del there["frame_index"], there["timestamp"]

    with pytest.raises(ValueError, match="episode 0 are not in the order of their column 'index'"):
        LeRobotDataset(write_folder(tmp_path / "data", edit_columns=shuffle))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_key": ["action", "action"]}, "action_key has dimensions of 'action' twice: action and action"),
        ({"state_key": ["action[0:4]", "action[3:5]"]}, r"state_key has .* twice: action\[0:4\] and action\[3:5\]"),
        ({"action_key": "task_index"}, "the column 'task_index' counts rows"),
        ({"tolerance_s": float("inf")}, "tolerance_s is a finite number"),
        ({"cameras": "top"}, r"cameras is a list of names, such as \['top'\]"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(write_folder(tmp_path / "data"), **options)


def test_a_tolerance_without_videos_is_said(tmp_path):
    data = LeRobotDataset(write_folder(tmp_path / "data"), cameras=[], tolerance_s=0.1)
    assert "tolerance_s has no effect: no camera that is read is a video" in data.notes


def test_times_of_another_type_are_said(tmp_path):
    folder = write_folder(
        tmp_path / "data", edit_columns=lambda there, _: there.update(timestamp=there["timestamp"].astype("M8[us]"))
    )
    with pytest.raises(ValueError, match=r"column 'timestamp' holds timestamp\[us\]; expected are numbers, in seconds"):
        LeRobotDataset(folder)


def test_a_missing_folder_is_no_dataset_of_the_hub(tmp_path):
    with pytest.raises(ValueError, match="name of the dataset is empty"):
        LeRobotDataset("")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        LeRobotDataset(tmp_path / "none")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_camera_that_the_features_lack_is_named(version, tmp_path):
    folder = write_folder(tmp_path / "data", version, edit_info=lambda info: info["features"].pop(CAMERA))
    data = LeRobotDataset(folder)
    assert data.cameras == [] and any(f"pictures of {CAMERA}, which the features" in note for note in data.notes)


def test_data_files_of_other_episodes_may_be_missing(tmp_path):
    root = write_folder(tmp_path / "data")
    (root / "data/chunk-000/episode_000000.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 data file missing: .*episode_000000\.parquet"):
        LeRobotDataset(root)
    assert pictures_are_right(LeRobotDataset(root, episodes=[2, 1]))


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.int64()),
        pa.list_(pa.bool_()),
        pa.list_(pa.float64(), 7),
        pa.large_list(pa.float32()),
        pa.list_(pa.float16()),
        pa.list_(pa.list_(pa.float32(), 7)),
    ],
    ids=str,
)
def test_types_of_vectors(kind, tmp_path):
    values = (np.arange(36 * 7).reshape(36, 7) % 2).astype(bool)
    nested = pa.types.is_nested(kind.value_type)

    def edit(there, episode):
        rows = values[there["index"]]
        rows = rows.astype(np.float16) if kind.value_type == pa.float16() else rows
        rows = rows if kind.value_type == pa.bool_() or kind.value_type == pa.float16() else rows.astype(int)
        rows = [[row] for row in rows.tolist()] if nested else list(rows)
        there["action"] = pa.array(rows, kind)

    data = LeRobotDataset(write_folder(tmp_path / "data", edit_columns=edit), chunk_size=3, cameras=[])
    assert data.action_dim == 7 and data[4]["actions"].dtype == np.float32
    np.testing.assert_array_equal(data[4]["actions"], values[4:7])


def test_encoder_ticks_beyond_float32_are_said(tmp_path):
    def edit(there, episode):
        there["action"] = (np.arange(12)[:, None] * [1, 1] + [1 << 25, 5])[: len(there["index"])].tolist()

    data = LeRobotDataset(
        write_folder(tmp_path / "data", lengths=(12, 9), dim=2, edit_columns=edit), chunk_size=3, cameras=[]
    )
    (note,) = data.notes
    assert re.search("1 dimension changes so little in the actions.* float32 .* 'actions 0'.* steps of 4", note)


@pytest.mark.parametrize(("noise", "is_said"), [(1e-5, False), (1e-6, True)])
def test_what_float32_rounds_away_is_measured_by_what_changes(tmp_path, noise, is_said):
    """Steps of 2.4e-7 at 3: noise of 1e-5 has them by the dozens, of 1e-6 hardly any."""

    def edit(there, episode):
        values = 3 + np.random.default_rng(episode).normal(0, noise, (len(there["index"]), 2))
        there["action"] = values.astype(np.float32).tolist()

    data = LeRobotDataset(
        write_folder(tmp_path / "data", lengths=(200, 150), dim=2, edit_columns=edit), chunk_size=3, cameras=[]
    )
    assert any("2 dimensions change so little in the actions" in note for note in data.notes) == is_said, data.notes


def test_what_is_exact_in_float64_alone_is_said(tmp_path):
    def edit(there, episode):
        there["action"] = [[1e8 + 0.1 * k, float(k)] for k in range(len(there["index"]))]

    data = LeRobotDataset(write_folder(tmp_path / "data", dim=2, edit_columns=edit), chunk_size=3, cameras=[])
    (note,) = (note for note in data.notes if "float32 rounds away" in note)
    assert "1 dimension changes so little" in note and "100000000 to 100000001.4" in note
    assert data[0]["actions"].dtype == np.float32


def test_a_number_beyond_float32_is_refused(tmp_path):
    def edit(there, episode):
        there["action"] = [[1e300 if k == 3 else 0.0] for k in range(len(there["index"]))]

    with pytest.raises(ValueError, match="'action' holds NaN or infinity in 3 frames; the first is episode 0, frame 3"):
        LeRobotDataset(write_folder(tmp_path / "data", dim=1, edit_columns=edit), cameras=[])


def test_pictures_by_path(tmp_path):
    """Written as the older LeRobot did while recording: files beside the table, and their paths in it."""
    root = tmp_path / "data"

    def edit(there, episode):
        paths = [f"images/frame_{100 * episode + k}.png" for k in range(len(there["index"]))]
        there[CAMERA] = [{"bytes": None, "path": path} for path in paths]
        (root / "images").mkdir(parents=True, exist_ok=True)
        for k, path in enumerate(paths):
            Image.fromarray(picture(100 * episode + k)).save(root / path)

    write_folder(root, edit_columns=edit, edit_info=lambda info: info["features"][CAMERA].update(dtype="image"))
    assert pictures_are_right(LeRobotDataset(root, chunk_size=2))
    moved = shutil.move(root, tmp_path / "moved")
    assert pictures_are_right(LeRobotDataset(moved, chunk_size=2))
    file = moved / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(file)
    for bad, message in (
        (str(tmp_path / "secret.png"), "episode 0: .* outside of the dataset"),
        ("", "episode 0, frame 0: the data file holds no image here"),
        ("images/none.png", r"1 picture missing: images/none\.png\."),
    ):
        stored = [{"bytes": None, "path": bad}, *table[CAMERA].to_pylist()[1:]]
        array = pa.array(stored, table[CAMERA].type)
        pq.write_table(table.set_column(table.column_names.index(CAMERA), CAMERA, array), file)
        Image.fromarray(picture(0)).save(tmp_path / "secret.png")
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            LeRobotDataset(moved)
    (moved / "images/frame_3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 picture, each missing: images/none\.png, images/frame_3\.png"):
        LeRobotDataset(moved)
    assert len(LeRobotDataset(moved, episodes=[1, 2])) == 24, "those of other episodes do not matter"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)  # the second is what pandas 3 writes
def test_pictures_that_some_files_lack(kind, tmp_path):
    def add(there, episode):
        if episode != 1:
            there["wrist"] = pa.array([f"images/{number}.png" for number in range(len(there["timestamp"]))], kind)

    def edit(info):
        info["features"]["wrist"] = {"dtype": "image", "shape": [64, 64, 3], "names": None}

    root = write_folder(tmp_path / "data", edit_columns=add, edit_info=edit)
    (root / "images").mkdir()
    for number in range(15):
        Image.fromarray(picture(number)).save(root / f"images/{number}.png")
    with pytest.raises(FileNotFoundError, match=r"camera 'wrist' is missing in 1 of 3 data files, such as .*000001"):
        LeRobotDataset(root)
    assert LeRobotDataset(root, cameras=["top"]).cameras == [CAMERA]
    data = LeRobotDataset(root, episodes=[2, 0])
    assert pictures_are_right(data) and number_of(data[4]["images"][1]) == 4


def test_pictures_as_bytes_alone(tmp_path):
    def edit(there, episode):
        files = [io.BytesIO() for _ in there["index"]]
        for k, file in enumerate(files):
            Image.fromarray(picture(100 * episode + k)).save(file, "PNG")
        there[CAMERA] = [file.getvalue() for file in files]

    is_stored = {"edit_info": lambda info: info["features"][CAMERA].update(dtype="image")}
    assert pictures_are_right(LeRobotDataset(write_folder(tmp_path / "data", edit_columns=edit, **is_stored), 2))


def test_columns_of_another_type_are_said_with_their_type(tmp_path):
    def arrays(there, episode):
        there[CAMERA] = [np.zeros((2, 2, 3), np.uint8).tolist() for _ in there["index"]]

    is_stored = {"edit_info": lambda info: info["features"][CAMERA].update(dtype="image")}
    root = write_folder(tmp_path / "arrays", edit_columns=arrays, **is_stored)
    with pytest.raises(ValueError, match=rf"column of the camera '{CAMERA}' holds list<.*; expected are image files"):
        LeRobotDataset(root)
    assert len(LeRobotDataset(root, cameras=[])) == 36

    def words(there, episode):
        there["action"] = [str(row) for row in there["action"]]

    root = write_folder(tmp_path / "words", edit_columns=words)
    for options in ({}, {"action_key": "action"}):
        with pytest.raises(ValueError, match="column 'action' holds string; expected are numbers"):
            LeRobotDataset(root, **options)


@pytest.mark.parametrize("empty", [None, {"bytes": None, "path": None}], ids=str)
def test_a_row_without_a_picture_is_refused_at_opening(empty, tmp_path):
    content = io.BytesIO()
    Image.fromarray(picture(0)).save(content, "PNG")

    def edit(there, episode):
        there[CAMERA] = [{"bytes": content.getvalue(), "path": None}] * len(there["index"])
        if episode == 1:
            there[CAMERA] = [*there[CAMERA][:4], empty, *there[CAMERA][5:]]

    root = write_folder(
        tmp_path / "data",
        "v3.0",
        edit_columns=edit,
        edit_info=lambda info: info["features"][CAMERA].update(dtype="image"),
    )
    with pytest.raises(ValueError, match=f"camera '{CAMERA}', episode 1, frame 4: the data file holds no image here"):
        LeRobotDataset(root)
    assert len(LeRobotDataset(root, episodes=[0, 2])) == 27


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_turned_video_is_shown_as_a_player_shows_it(rotation, tmp_path):
    root = write_folder(tmp_path / "data", lengths=(5,))
    write_video(root / f"videos/chunk-000/{CAMERA}/episode_000000.mp4", range(5), 10, rotation=rotation)
    data = LeRobotDataset(root)
    # The flag turns to the left by so many degrees.
    for k in range(5):
        assert number_of(data[k]["images"][0]) == number_of(np.rot90(picture(k), rotation // 90))

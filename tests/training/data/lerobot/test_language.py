"""Sub-tasks, other wordings and questions of LeRobot datasets, in every way in which they are stored."""

import json
import shutil

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kivla.training.data.lerobot.dataset import LeRobotDataset
from kivla.training.data.lerobot.language import EVENTS_COLUMN, PERSISTENT_COLUMN
from kivla.training.data.lerobot.writer import LeRobotWriter

DATA = "data/chunk-000/file-000.parquet"
FPS, LENGTHS = 10, (5, 4)
TASK = "clear the table"
SAID = [["pick up the cup"] * 2 + ["carry it"] * 3, [None, "carry it", "carry it", "let go"]]


def write(folder, subtasks=None, **more):
    generator = np.random.default_rng(0)
    options = {"state_names": ["x"], "action_names": ["dx"], "robot_type": "point", "image_format": "image"}
    cameras = {"front": (8, 8), "wrist": (8, 8)}
    with LeRobotWriter(folder, FPS, cameras, subtasks=subtasks is not None, **options, **more) as writer:
        for number, length in enumerate(LENGTHS):
            images = {name: generator.integers(0, 256, (length, 8, 8, 3), np.uint8) for name in cameras}
            vectors = generator.normal(size=(2, length, 1)).astype(np.float32)
            writer.add_episode(images, *vectors, TASK, None if subtasks is None else subtasks[number])
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain") / "dataset")


@pytest.fixture
def copy(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "copy")


def add_column(root, name, array):
    table = pq.read_table(root / DATA)
    pq.write_table(table.append_column(name, array), root / DATA, row_group_size=3)  # an episode in several groups


def responses(data):
    return [data[item].get("response") for item in range(len(data))]


def row(content, style="subtask", timestamp=0.0, role="assistant", camera=None):
    return {"role": role, "content": content, "style": style, "timestamp": timestamp, "camera": camera}


def event(content, role, camera="observation.images.wrist", style="vqa"):
    return {"role": role, "content": content, "style": style, "camera": camera}


ALL = [text for episode in SAID for text in episode]


def test_written_subtasks_are_read_as_responses(tmp_path):
    folder = write(tmp_path / "dataset", SAID)
    assert responses(LeRobotDataset(folder, 2, subtask_key=PERSISTENT_COLUMN)) == ALL
    data = LeRobotDataset(folder, 2)
    assert responses(data) == [None] * 9
    assert any("subtask_key=language_persistent" in note for note in data.notes), "what is not used is said"
    # A selection in another order, and the digest by which a run knows its data
    chosen = LeRobotDataset(folder, 2, episodes=[1, 0], subtask_key=PERSISTENT_COLUMN)
    assert responses(chosen) == SAID[1] + SAID[0]
    assert data.content_digest != LeRobotDataset(folder, 2, subtask_key=PERSISTENT_COLUMN).content_digest


def test_subtasks_of_several_files(tmp_path):
    folder = write(tmp_path / "dataset", SAID, data_file_size_in_mb=1e-6)
    first, second = sorted((folder / "data").glob("*/*"))
    for path, texts in ((first, SAID[0]), (second, SAID[1])):
        pq.write_table(pq.read_table(path).append_column("subtask", pa.array(texts, pa.string())), path)
    for key in (PERSISTENT_COLUMN, "subtask"):
        assert responses(LeRobotDataset(folder, 2, subtask_key=key)) == ALL
        assert responses(LeRobotDataset(folder, 2, episodes=[1], subtask_key=key)) == SAID[1]


def test_the_written_column_is_lerobots(tmp_path):
    folder = write(tmp_path / "dataset", SAID)
    assert json.loads((folder / "meta/info.json").read_text())["features"][PERSISTENT_COLUMN] == {
        "dtype": "language",
        "shape": [1],
        "names": None,
    }
    rows = datasets.Dataset.from_parquet(str(folder / DATA))
    kind = rows.features[PERSISTENT_COLUMN].feature
    assert list(kind) == ["role", "content", "style", "timestamp", "camera", "tool_calls"]
    assert kind["timestamp"].dtype == "float32"
    first, second = [rows[start][PERSISTENT_COLUMN] for start in (0, 5)]
    assert [(said["content"], round(said["timestamp"], 5)) for said in first] == [
        ("pick up the cup", 0.0),
        ("carry it", 0.2),
    ]
    assert [said["content"] for said in second] == ["carry it", "let go"]
    assert all(said["style"] == "subtask" and said["camera"] is None for said in first + second)
    assert all(rows[frame][PERSISTENT_COLUMN] == first for frame in range(5)), "the same on every frame"
    assert not any(PERSISTENT_COLUMN in name for name in pq.read_schema(next(folder.glob("meta/episodes/*/*"))).names)
    assert PERSISTENT_COLUMN not in json.loads((folder / "meta/stats.json").read_text())


def test_a_writer_refuses_subtasks_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="has 2 sub-tasks for 5 frames"):
        write(tmp_path / "short", [["a", "b"], []])
    with pytest.raises(ValueError, match="needs the sub-task of each frame"):
        write(tmp_path / "none", [None, None])


@pytest.mark.parametrize("seconds", [0.0, 0.00004, 0.03, 0.0999])
def test_the_latest_row_that_is_not_after_the_frame_is_active(copy, seconds):
    """Rows in any order, between frames, of other styles, and one that ends a sub-task."""
    rows = [row("later", timestamp=0.2 + seconds), row("first"), row("a plan", "plan", 0.1), row(None, timestamp=0.4)]
    add_column(copy, PERSISTENT_COLUMN, pa.array([rows] * 9))
    later = 2 if seconds < 1e-4 else 3
    expected = [["first"] * later + ["later"] * (4 - later) + [None], ["first"] * later + ["later"] * (4 - later)]
    assert responses(LeRobotDataset(copy, 2, subtask_key=PERSISTENT_COLUMN)) == expected[0] + expected[1]


def texts_in_a_column(root):
    add_column(root, "subtask", pa.array([text or "" for text in ALL]))
    return "subtask"


def numbers_and_a_parquet_table(root):
    names = sorted({text for text in ALL if text})
    add_column(root, "subtask_index", pa.array([names.index(text) if text else -1 for text in ALL]))
    pd.DataFrame({"subtask_index": range(len(names))}, index=names).to_parquet(root / "meta/subtasks.parquet")
    return "subtask_index"


def numbers_in_lists_and_json_lines(root):
    names = sorted({text for text in ALL if text})
    column = [[names.index(text)] if text else [-1] for text in ALL]
    add_column(root, "skill_id", pa.array(column, pa.list_(pa.int32(), 1)))
    lines = [json.dumps({"skill_id": i, "skill": name}) for i, name in enumerate(names)]
    (root / "meta/skills.jsonl").write_text("\n".join(lines) + "\n")
    return "skill_id"


def lists_of_which_some_are_empty(root):
    names = sorted({text for text in ALL if text})
    column = [[names.index(text)] if text else [None, []][number % 2] for number, text in enumerate(ALL)]
    add_column(root, "subtask_index", pa.array(column, pa.list_(pa.int64())))
    pd.DataFrame({"subtask_index": range(len(names))}, index=names).to_parquet(root / "meta/subtasks.parquet")
    return "subtask_index"


def numbers_as_floats(root):
    """As pandas has numbers of which some are missing."""
    key = numbers_and_a_parquet_table(root)
    table = pq.read_table(root / DATA)
    numbers = table[key].to_numpy().astype(float)
    column = pa.array(np.where(numbers < 0, np.nan, numbers))
    pq.write_table(table.set_column(table.column_names.index(key), key, column), root / DATA)
    return key


def groots_annotation(root):
    """GR00T's columns are numbers of the table of tasks."""
    names = sorted({text for text in ALL if text})
    key = "annotation.human.action.task_description"
    add_column(root, key, pa.array([names.index(text) + 1 if text else -1 for text in ALL]))
    pd.DataFrame({"task_index": range(len(names) + 1)}, index=[TASK, *names]).to_parquet(root / "meta/tasks.parquet")
    return key


@pytest.mark.parametrize(
    "store",
    [
        texts_in_a_column,
        numbers_and_a_parquet_table,
        numbers_in_lists_and_json_lines,
        lists_of_which_some_are_empty,
        numbers_as_floats,
        groots_annotation,
    ],
)
def test_older_ways_to_store_subtasks(copy, store):
    key = store(copy)
    data = LeRobotDataset(copy, 2, subtask_key=key)
    assert responses(data) == ALL
    last = LeRobotDataset(copy, 2, episodes=[1], subtask_key=key)
    assert responses(last) == SAID[1], "parts of the file that are not selected are passed over, and counted"
    assert any(f"{key} has 3 different sub-tasks" in note for note in data.notes)
    assert data.size_of(0) == (2, len(TASK) + len("pick up the cup"))


def test_other_wordings_are_drawn_by_frame_and_always_the_same(copy):
    wordings = ["tidy up", "put everything away"]
    rows = [row(text, "task_aug", role="user") for text in wordings]
    add_column(copy, PERSISTENT_COLUMN, pa.array([rows] * 5 + [None] * 4, pa.array([rows]).type))
    texts = [LeRobotDataset(copy, 2)[item]["text"] for item in range(9)]
    assert set(texts[:5]) <= {TASK, *wordings} and len(set(texts[:5])) > 1
    assert texts[5:] == [TASK] * 4, "the second episode has none"
    again = LeRobotDataset(copy, 2, episodes=[1, 0])
    assert [again[item]["text"] for item in range(9)] == texts[5:] + texts[:5]
    assert again.tasks == {0: TASK}


def test_questions_about_frames_are_vlm_data(copy):
    said = [None] * 9
    said[1] = [event("Is it full?", "user"), event("yes", "assistant"), event("hm", "user", None, "interjection")]
    said[7] = [
        event("Where?", "user", "observation.images.front"),
        event("left", "assistant", "observation.images.front"),
        event("And here?", "user"),
        event("right", "assistant"),
    ]
    add_column(copy, EVENTS_COLUMN, pa.array(said))
    data = LeRobotDataset(copy, 2)
    questions = data.questions
    assert [(q["text"], q["response"]) for q in questions] == [
        ("Is it full?", "yes"),
        ("Where?", "left"),
        ("And here?", "right"),
    ]
    for number, (item, camera) in enumerate([(1, 1), (7, 0), (7, 1)]):
        (image,) = questions[number]["images"]
        np.testing.assert_array_equal(image, data[item]["images"][camera])
    assert questions.size_of(0) == (1, len("Is it full?yes"))
    assert len(LeRobotDataset(copy, 2, cameras=["front"]).questions) == 1, "those about a camera that is not read"
    assert len(LeRobotDataset(copy, 2, episodes=[0]).questions) == 1
    assert any("3 questions about frames" in note for note in data.notes)


def test_empty_rows_say_nothing(copy):
    add_column(copy, PERSISTENT_COLUMN, pa.array([[None, row("reach")]] * 9))
    add_column(copy, EVENTS_COLUMN, pa.array([[None, event("Is it full?", "user"), event("yes", "assistant")]] * 9))
    data = LeRobotDataset(copy, 2, subtask_key=PERSISTENT_COLUMN)
    assert responses(data) == ["reach"] * 9 and len(data.questions) == 9


def numbers_without_a_table(root):
    add_column(root, "subtask_index", pa.array([0] * 9))


def unknown_numbers(root):
    numbers_and_a_parquet_table(root)
    table = pq.read_table(root / DATA)
    table = table.set_column(table.schema.get_field_index("subtask_index"), "subtask_index", pa.array([7] * 9))
    pq.write_table(table, root / DATA)


def two_numbers_in_a_row(root):
    numbers_and_a_parquet_table(root)
    table = pq.read_table(root / DATA).drop_columns("subtask_index")
    pq.write_table(table.append_column("subtask_index", pa.array([[0, 1], []] + [[1]] * 7)), root / DATA)


def two_meanings_of_a_number(root):
    numbers_and_a_parquet_table(root)
    table = pd.DataFrame({"subtask_index": [0, 1, 2, 0]}, index=["a", "b", "c", "d"])
    table.to_parquet(root / "meta/subtasks.parquet")


def halves(root):
    numbers_and_a_parquet_table(root)
    table = pq.read_table(root / DATA).drop_columns("subtask_index")
    pq.write_table(table.append_column("subtask_index", pa.array([0, 0.5] + [1] * 7)), root / DATA)


def rows_that_come_one_by_one(root):
    said = [row("reach"), row("grasp", timestamp=0.4)]
    add_column(root, PERSISTENT_COLUMN, pa.array([said[: 1 + (number > 3)] for number in range(9)]))


def persistent(*rows):
    return lambda root: add_column(root, PERSISTENT_COLUMN, pa.array([list(rows)] * 9))


@pytest.mark.parametrize(
    ("damage", "key", "message"),
    [
        (lambda root: None, "phase", "there is no column 'phase' with sub-tasks, only"),
        (lambda root: None, "action", "'action' has numbers, and there is no table of them"),
        (lambda root: add_column(root, "subtask", pa.array([["a"]] * 9)), "subtask", "'subtask' is of type list"),
        (numbers_without_a_table, "subtask_index", "none of meta/subtasks.parquet, meta/subtasks.jsonl"),
        (unknown_numbers, "subtask_index", r"has the numbers \[7\], which its table in meta/ does not know"),
        (two_numbers_in_a_row, "subtask_index", "has 2 numbers in a row"),
        (halves, "subtask_index", "has numbers that are not whole"),
        (rows_that_come_one_by_one, PERSISTENT_COLUMN, "sub-tasks are reach: they are others on its last frame"),
        (two_meanings_of_a_number, "subtask_index", "gives the number 0 two meanings, 'a' and 'd'"),
        (persistent(row("a"), row("b", timestamp=None)), PERSISTENT_COLUMN, "sub-tasks are a, b: one has no time"),
        (persistent(row("a"), row("b", timestamp=np.nan)), PERSISTENT_COLUMN, "sub-tasks are a, b: one has no time"),
        (persistent(row(7)), PERSISTENT_COLUMN, "as LeRobot has"),
        (lambda root: add_column(root, "subtask", pa.array([""] * 9)), "subtask", "names no sub-task"),
        (lambda root: add_column(root, PERSISTENT_COLUMN, pa.array(["a"] * 9)), PERSISTENT_COLUMN, "as LeRobot has"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(copy, damage, key, message):
    damage(copy)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(copy, 2, subtask_key=key)


@pytest.mark.parametrize("values", [["a"] * 9, [[1]] * 9, [[]] * 9, [None] * 9])
def test_columns_that_only_have_the_name_cannot_veto(copy, values):
    add_column(copy, PERSISTENT_COLUMN, pa.array(values))
    add_column(copy, EVENTS_COLUMN, pa.array(values))
    data = LeRobotDataset(copy, 2)
    assert data[0]["text"] == TASK and len(data.questions) == 0
    assert any("is not read" in note for note in data.notes) == (values[0] not in ([], None))

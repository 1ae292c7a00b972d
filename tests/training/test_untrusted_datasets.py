"""What a stranger's dataset may not do: each is refused with the name of the file."""

import json
import shutil

import pytest

from kivla.training.lerobot_dataset import LeRobotDataset
from tests.training.policies import DATASET


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(DATASET, tmp_path / "copy")


@pytest.mark.parametrize(
    "template",
    [
        "/etc/passwd",
        "../../{chunk_index}/{file_index}.parquet",
        "data/../../{chunk_index}.parquet",
        "{chunk_index.__class__}/{file_index}.parquet",
        "{chunk_index!r}/{file_index}.parquet",
        "{chunk_index:999999999}/{file_index}.parquet",
        "{0}/{file_index}.parquet",
        "{chunk_index[0]}.parquet",
        "data/{chunk_index}\0.parquet",
        "data/" + "x" * 5000 + "{chunk_index}.parquet",
        "data/{chunk_index",
        17,
    ],
)
def test_path_templates_stay_inside_and_small(template, copy):
    path = copy / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_path": template}))
    with pytest.raises(ValueError, match="data_path"):
        LeRobotDataset(copy)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"fps": ' + "9" * 10_000 + "}", "[]", '"text"', "null", "{", "\xff"], ids=range(7)
)
def test_metadata_that_is_no_map(text, copy):
    (copy / "meta/info.json").write_text(text)
    with pytest.raises(ValueError, match=r"info\.json"):
        LeRobotDataset(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"fps": "10"},
        {"fps": float("nan")},
        {"fps": -1},
        {"features": []},
        {"features": {"action": {"dtype": "float32", "shape": [10**9]}}},
        {"features": {"action": {"dtype": "float32", "shape": "x"}}},
        {"total_frames": "many"},
        {"total_episodes": None},
    ],
    ids=str,
)
def test_metadata_of_wrong_types_and_sizes(change, copy):
    path = copy / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="copy"):
        LeRobotDataset(copy)

"""What a stranger's dataset may not do: each is refused with the name of the file."""

import json
import multiprocessing
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kivla.training.data.lerobot.dataset import LeRobotDataset
from tests.helpers.policies import DATASET


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
        {"features": {"action": "float32"}},
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


def test_a_small_table_that_unpacks_to_a_large_one(copy, monkeypatch):
    """A dictionary of one long text: 100 kB on disk, 100 MB in memory."""
    monkeypatch.setattr("kivla.training.data.lerobot.metadata._MAX_TABLE_BYTES", 50_000_000)
    file = copy / "meta" / "tasks.parquet"
    pq.write_table(pa.table({"task_index": np.arange(10_000), "task": ["x" * 10_000] * 10_000}), file)
    assert file.stat().st_size < 200_000
    with pytest.raises(ValueError, match=r"tasks\.parquet unpacks to more than 50000000 bytes or 100000000 rows"):
        LeRobotDataset(copy, chunk_size=4, cameras=[])


def test_a_histogram_of_another_length(copy):
    """One damaged byte in a parquet footer: pyarrow ends the process if it is asked about a column's size."""
    file = copy / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    damaged = bytearray(file.read_bytes())
    damaged[17_264] = 0x22
    file.write_bytes(damaged)
    process = multiprocessing.get_context("fork").Process(target=_open_or_refuse, args=(copy,))
    process.start()
    process.join()
    assert process.exitcode == 0, "opening the dataset ended the process"


def _open_or_refuse(folder):
    try:
        LeRobotDataset(folder, chunk_size=4, cameras=[])
    except ValueError as error:
        assert "file-000.parquet" in str(error)

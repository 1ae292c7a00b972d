import os
import pickle

import datasets
import pytest
import torch
from PIL import Image

from kivla.training.data.vlm.streaming import StreamedRows

NUM_ROWS = 7
FEATURES = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
CARD = """---
dataset_info:
  splits:
  - name: train
    num_bytes: 1000
    num_examples: 7
---
"""


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    images = [Image.new("RGB", (4, 4), (10 * i, 0, 0)) for i in range(NUM_ROWS)]
    captions = [f"picture {i}" for i in range(NUM_ROWS)]
    return datasets.Dataset.from_dict({"image": images, "caption": captions}, FEATURES)


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    """Three parquet files: loader workers of a stream would share them out."""
    folder = tmp_path_factory.mktemp("parquet")
    for i in range(3):
        rows.shard(3, i, contiguous=True).to_parquet(folder / f"train-{i}.parquet")
    return folder


@pytest.fixture
def stream(folder) -> datasets.IterableDataset:
    return datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)


@pytest.fixture
def counted():
    """A stream of numbers, and the list of those that were read from it."""
    read = []

    def numbers():
        for i in range(NUM_ROWS):
            read.append(i)
            yield {"number": i}

    return datasets.IterableDataset.from_generator(
        numbers, datasets.Features({"number": datasets.Value("int64")})
    ), read


@pytest.mark.parametrize("indices", [range(NUM_ROWS), [0, 0, 2, 2, 6], [4, 6], [5, 1, 3, 0], [-1, -NUM_ROWS]])
def test_rows_are_those_of_the_map_style_dataset(stream, rows, indices):
    streamed = StreamedRows(stream, NUM_ROWS)
    assert len(streamed) == NUM_ROWS
    assert streamed.column_names == rows.column_names
    assert streamed.features == rows.features
    for index in indices:
        assert streamed[index] == rows[index], index


def test_growing_indices_read_the_stream_once(counted):
    stream, read = counted
    streamed = StreamedRows(stream, NUM_ROWS)
    assert [streamed[i]["number"] for i in (0, 2, 2, 5)] == [0, 2, 2, 5]
    assert read == [0, 1, 2, 3, 4, 5]


def test_smaller_index_starts_the_stream_anew(counted):
    stream, read = counted
    streamed = StreamedRows(stream, NUM_ROWS)
    assert [streamed[i]["number"] for i in (3, 1, 2)] == [3, 1, 2]
    assert read == [0, 1, 2, 3, 0, 1, 2]


def test_images_of_rows_passed_over_are_not_decoded(rows, tmp_path):
    table = rows.cast_column("image", datasets.Image(decode=False))
    table = table.map(lambda row, i: {"image": {"bytes": b"damaged"}} if i in (1, 3) else row, with_indices=True)
    table.cast(FEATURES).to_parquet(tmp_path / "data.parquet")
    stream = datasets.load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train", streaming=True)
    streamed = StreamedRows(stream, NUM_ROWS)
    assert [streamed[i] for i in (2, 4)] == [rows[i] for i in (2, 4)]
    with pytest.raises(OSError, match="cannot identify image file"):
        streamed[1]


def test_shuffled_stream_keeps_its_order_when_started_anew(rows):
    streamed = StreamedRows(rows.to_iterable_dataset(num_shards=3).shuffle(seed=0, buffer_size=4), NUM_ROWS)
    captions = [streamed[i]["caption"] for i in range(NUM_ROWS)]
    assert sorted(captions) == [f"picture {i}" for i in range(NUM_ROWS)] != captions
    assert [streamed[i]["caption"] for i in range(3, NUM_ROWS)] == captions[3:]


def test_pickled_rows_are_the_same(stream, rows):
    streamed = StreamedRows(stream, NUM_ROWS)
    assert streamed[2] == rows[2]
    copy = pickle.loads(pickle.dumps(streamed))
    assert copy[1] == rows[1]
    assert streamed[3] == rows[3]


def test_loader_workers_give_the_rows_in_order(stream, rows):
    streamed = StreamedRows(stream, NUM_ROWS)
    loader = torch.utils.data.DataLoader(streamed, batch_size=2, num_workers=2, collate_fn=list)
    assert [row for batch in loader for row in batch] == list(rows)


def test_forked_workers_leave_the_open_file_of_their_parent_alone(tmp_path):
    (tmp_path / "numbers").write_bytes(bytes(range(NUM_ROWS)))
    closed = tmp_path / "closed"

    def numbers():
        opener = os.getpid()
        with open(tmp_path / "numbers", "rb", buffering=0) as file:
            try:
                while byte := file.read(1):
                    yield {"number": byte[0]}
            finally:
                if os.getpid() != opener:
                    closed.write_text("by a worker")

    streamed = StreamedRows(datasets.IterableDataset.from_generator(numbers), NUM_ROWS)
    assert streamed[0] == {"number": 0}  # the file is open now
    loader = torch.utils.data.DataLoader(
        streamed, batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context="fork"
    )
    assert [row["number"] for batch in loader for row in batch] == list(range(NUM_ROWS))
    assert streamed[1] == {"number": 1}
    assert not closed.exists()


def test_stream_with_unknown_features_reads_its_first_row_for_the_columns(stream):
    streamed = StreamedRows(stream.select_columns("caption").map(lambda row: {"length": len(row["caption"])}), NUM_ROWS)
    assert streamed.features is None
    assert streamed.column_names == ["caption", "length"]
    assert streamed[3] == {"caption": "picture 3", "length": 9}


def test_number_of_rows_comes_from_the_dataset(folder, rows, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "README.md").write_text(CARD)
    streamed = StreamedRows(datasets.load_dataset(str(tmp_path), split="train", streaming=True))
    assert len(streamed) == NUM_ROWS
    assert list(streamed) == list(rows)


def test_unknown_number_of_rows_is_refused(stream):
    with pytest.raises(ValueError, match=r"no count for the split 'train'. Give num_rows"):
        StreamedRows(stream)
    with pytest.raises(ValueError, match="got -1"):
        StreamedRows(stream, -1)


def test_stream_without_rows_and_columns_is_refused():
    empty = datasets.IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(ValueError, match="no rows"):
        StreamedRows(empty, 1)


def test_end_of_the_stream_is_told(stream, rows):
    streamed = StreamedRows(stream, NUM_ROWS + 3)
    assert streamed[NUM_ROWS - 1] == rows[NUM_ROWS - 1]
    for index in (NUM_ROWS, NUM_ROWS + 2):
        with pytest.raises(IndexError, match=f"Row {index}: the stream ended before it, so num_rows = 10 is wrong"):
            streamed[index]
    assert streamed[5] == rows[5]
    with pytest.raises(IndexError, match="Row 10 is out of range for a stream of 10 rows"):
        streamed[10]


def test_reading_goes_on_after_a_failure():
    failures = [OSError("no connection"), OSError("no connection")]

    def numbers():
        for i in range(NUM_ROWS):
            if i == 3 and failures:
                raise failures.pop()
            yield {"number": i}

    streamed = StreamedRows(datasets.IterableDataset.from_generator(numbers), NUM_ROWS)
    assert streamed[1] == {"number": 1}
    for index in (5, 3):
        with pytest.raises(OSError, match="no connection"):
            streamed[index]
    assert [streamed[i]["number"] for i in (2, 3, 4)] == [2, 3, 4]


def test_num_rows_can_be_fewer(stream, rows):
    assert list(StreamedRows(stream, 3)) == list(rows.select(range(3)))

"""Plain text is found in any set of `datasets`, JSON or Parquet, and what is no text is refused by name."""

import json

import datasets
import pytest

from kivla.training.data.vlm.dataset import VLMDataset
from kivla.training.data.vlm.text_rows import load_texts

TEXTS = ["The moon turns around the earth.", "", "Tea is a drink made of leaves.\n\nIt is served hot."]


def _write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "folder", "parquet", "saved", "saved splits"])
def test_every_kind_of_set(tmp_path, kind):
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    path = tmp_path / f"texts.{kind}"
    if kind == "jsonl":
        rows[1]["id"] = "a column of several types beside the texts"
        _write(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "folder":
        path.mkdir()
        _write(path / "train.jsonl", rows), _write(path / "test.jsonl", rows[:1])
    elif kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(path)
    texts = load_texts(path)
    assert texts.column_names == ["text"] and texts["text"][:] == TEXTS


def test_the_column(tmp_path):
    rows = [{"title": "Tea", "body": text, "length": 3} for text in TEXTS]
    file = _write(tmp_path / "a.jsonl", rows)
    assert load_texts(file, "body")["text"][:] == TEXTS
    with pytest.raises(ValueError, match=r"title, body, length; say which column has the texts \(of strings: title, b"):
        load_texts(file)
    with pytest.raises(ValueError, match="no column 'length' of texts"):
        load_texts(file, "length")
    one = _write(tmp_path / "b.jsonl", [{"body": text, "length": 3} for text in TEXTS])
    assert load_texts(one)["text"][:] == TEXTS, "the only column of strings"


def test_splits(tmp_path):
    for name, count in (("train", 3), ("test", 1)):
        _write(tmp_path / f"{name}.jsonl", [{"text": text} for text in TEXTS[:count]])
    assert load_texts(tmp_path, split="test")["text"][:] == TEXTS[:1]
    with pytest.raises(ValueError, match="has the splits test, train"):
        load_texts(tmp_path, split="validation")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", '{"text": "x"}\n{"text": ', "a.jsonl is no JSON, line 2"),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', "row 1 has no text as 'text', but 3"),
        ("a.jsonl", '{"text": "x"}\n["y"]\n', "row 1 is .'y'.; expected is a map"),
        ("a.txt", "some words", "neither JSON .*nor Parquet"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_texts(tmp_path / name)


@pytest.mark.parametrize("load", [load_texts, VLMDataset.load])
@pytest.mark.parametrize(
    ("name", "message"),
    [("a.jsonl", "There is no file .*a.jsonl"), ("a.parquet", "There is no file .*a.parquet"), ("a", "a is no file")],
)
def test_what_is_not_there(tmp_path, name, message, load):
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name)


def test_a_file_has_no_configurations(tmp_path):
    with pytest.raises(ValueError, match="leave out config='en'"):
        load_texts(_write(tmp_path / "a.jsonl", [{"text": "x"}]), config="en")

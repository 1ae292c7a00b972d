"""VLM data as LLaVA, LLaMA-Factory and ShareGPT have it: JSON or JSON lines beside a folder of pictures."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import datasets

from .layouts import COLUMNS, named_images, roles_and_contents, text_with_placeholders

JSON_SUFFIXES = (".json", ".jsonl")
# JSON files that tools write beside the data; none of them holds rows
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_MANY = 1 << 40  # rows: to find out the names of splits, not yet their sizes
# What `datasets` reads itself: tables, and pictures with their metadata
_TABLES = ("*.parquet", "*.arrow", "*.csv", "metadata.jsonl", "data/*.parquet")


def json_files(path: Path) -> dict[str, Path]:
    """Find the JSON files of a dataset by the splits that they are: a file, or a folder of `train.json`, `test.json`.

    A single file is "train". Empty if this is no such dataset.
    """
    if path.is_file() and path.suffix in JSON_SUFFIXES:
        return {"train": path}
    if not path.is_dir() or any(next(path.glob(pattern), None) for pattern in _TABLES):
        return {}
    files = [file for file in sorted(path.iterdir()) if file.suffix in JSON_SUFFIXES and file.name not in _NOT_ROWS]
    return {"train": files[0]} if len(files) == 1 else {file.stem: file for file in files}


def load_json(path: Path, split: str, read: Callable[[Path], datasets.Dataset]) -> datasets.Dataset:
    """Read a split of `json_files(path)`; `train[:90%]` and the like are understood.

    Args:
        read: makes rows of a file, as `rows_of` does.

    Raises:
        ValueError: there is no such split, or a file is damaged; the message names the place.
    """
    files, wanted = json_files(path), datasets.ReadInstruction.from_spec(split)
    try:
        names = {part.splitname for part in wanted.to_absolute(dict.fromkeys(files, _MANY))}
    except ValueError as error:
        raise ValueError(f"{path} has the splits {', '.join(files)}: {error}") from error
    rows = {name: read(files[name]) for name in names}
    parts = wanted.to_absolute({name: len(rows[name]) for name in names})
    return datasets.concatenate_datasets([rows[part.splitname].select(range(part.from_, part.to)) for part in parts])


def rows_of(file: Path, columns: Mapping[str, str] | None = None) -> datasets.Dataset:
    """Read a file into columns of one type each, whatever the rows have: pictures are lists of paths, content is text.

    Only columns that a layout is made of are kept, and LLaMA-Factory's `system` as the first message.

    Args:
        columns: part of a layout → its column, where it has another name.

    Raises:
        ValueError: the file is damaged, or a row is no map, or has videos or sounds.
    """
    columns = columns or {}
    names = {part: (columns[part],) if part in columns else known for part, known in COLUMNS.items()}
    rows = []
    for number, row in enumerate(parsed(file)):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{file}: row {number} is {row!r:.80}; expected is a map, e.g. of image and conversations."
            )
        if others := [name for name in ("videos", "video", "audios", "audio") if row.get(name)]:
            raise ValueError(f"{file}: row {number} has {others[0]}; only pictures are read.")
        try:
            rows.append(_uniform(row, names, number))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    if not rows:
        raise ValueError(f"{file} has no rows.")
    try:
        return datasets.Dataset.from_dict(
            {name: [row.get(name) for row in rows] for name in dict.fromkeys(chain(*rows))}
        )
    except (TypeError, ValueError, OverflowError) as error:  # of pyarrow: a column of several types, huge numbers
        raise ValueError(f"{file}: a column cannot be read as one type: {error}") from error


def _uniform(row: Mapping, names: Mapping[str, Sequence[str]], number: int) -> dict:
    """The columns of a row that a layout may be made of; pictures and messages under the first of their names."""
    uniform = {name: row[name] for part in names for name in names[part] if name in row}
    conversations = [uniform.pop(name) for name in names["messages"] if name in uniform]
    messages = conversations[0] if conversations and isinstance(conversations[0], list) else []
    images = [uniform.pop(name) for name in names["images"] if name in uniform]
    images = next((value for value in images if value), [])
    images = [images] if isinstance(images, str) else images
    if named := named_images(messages, number):
        if images and images != named:
            raise ValueError(f"Row {number} has the images {images!r:.80}, and others in its messages: {named!r:.80}.")
        images = named
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ValueError(f"Row {number} has the image {images!r:.80}; expected is a path, or a list of paths.")
    uniform[names["images"][0]] = images
    if conversations:
        pairs = [pair for message in messages for pair in roles_and_contents(message, number)]
        if system := uniform.pop("system", None):
            pairs.insert(0, ("system", system))
        uniform[names["messages"][0]] = [
            {"role": role, "content": text_with_placeholders(content, number)} for role, content in pairs
        ]
    return uniform


def parsed(file: Path) -> Iterator:
    """The rows of a list, or of JSON lines, whatever the file is called."""
    number = 0
    with file.open(encoding="utf-8-sig") as stream:
        try:
            is_list = next((line for line in stream if line.strip()), "").lstrip().startswith("[")
            stream.seek(0)
            if is_list:
                yield from json.load(stream)
                return
            for number, line in enumerate(stream, 1):  # noqa: B007 (for the message)
                if line.strip():
                    yield json.loads(line)
        except (ValueError, RecursionError) as error:  # of JSON, or of text that is no UTF-8
            raise ValueError(f"{file} is no JSON{f', line {number}' if number else ''}: {error}") from error


__all__ = ["json_files", "load_json", "parsed", "rows_of"]

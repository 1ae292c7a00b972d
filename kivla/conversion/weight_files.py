"""Weights of a checkpoint on disk, read and written one tensor at a time.

A checkpoint of any size needs the memory of its largest tensor, and file pages that the system takes back when it needs
them. (The libraries' own `load_file` and `save_file` hold all tensors at once.)
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

WEIGHTS = "model.safetensors"
# How the libraries name weights: in one file, or in shards that an index lists
_FILES = (WEIGHTS, "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PICKLES = (".bin", ".pt", ".pth")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted without a loss or a guess; the message says why and what to do."""


@dataclass
class Entry:
    """A weight to be written: `read` gives the tensor when its turn has come."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


class Weights:
    """Weights of a checkpoint, in any number of files; tensors are read one by one.

    Args:
        path: a file, or a folder with weights under the libraries' names, in one file or in shards with their index.
        allow_pickle: whether pickles (.bin, .pt, .pth) may be read, with `weights_only=True`.

    Attributes:
        shapes, dtypes: of every tensor, by name.

    Raises:
        CheckpointError: no weights, a missing shard, a damaged file, a dtype that is no floating point, a pickle that
            was not asked for.
    """

    def __init__(self, path: Path, allow_pickle: bool = False):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._read: dict[str, Callable[[slice], torch.Tensor]] = {}
        files, indexed = _weight_files(path)
        if unsafe := [file.name for file in files if file.suffix in _PICKLES and not allow_pickle]:
            raise CheckpointError(
                f"{', '.join(unsafe[:5])}: pickles can run code when they are read. If you trust where they come from, "
                "read them with --allow_pickle (weights only), or better, save them as safetensors."
            )
        for file in files:
            if file.suffix in _PICKLES:
                self._add_pickle(file)
            else:
                self._add_safetensors(file)
        if indexed is not None and indexed != set(self.shapes):
            raise CheckpointError(
                f"The index of {path} lists {len(indexed)} keys, its files have {len(self.shapes)}; of one side only: "
                f"{', '.join(sorted(indexed ^ set(self.shapes))[:5])}. Download the checkpoint again."
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._read[name](slice(None))

    def same(self, a: str, b: str, rows: int = 8192) -> bool:
        """Whether two matrices hold the same numbers, read some rows at a time."""
        if self.shapes[a] != self.shapes[b]:
            return False
        widest = torch.promote_types(self.dtypes[a], self.dtypes[b])
        parts = (slice(i, i + rows) for i in range(0, self.shapes[a][0], rows))
        return all(torch.equal(self._read[a](part).to(widest), self._read[b](part).to(widest)) for part in parts)

    def entry(self, name: str, new_name: str) -> Entry:
        """The weight `name`, to be written as `new_name`."""
        return Entry(new_name, self.shapes[name], self.dtypes[name], lambda: self[name])

    def _add(self, name: str, shape, dtype: torch.dtype | None, file: Path, read: Callable):
        if dtype not in _DTYPE_NAMES:
            raise CheckpointError(
                f"{name} in {file.name} is of a type other than {', '.join(_DTYPES)}: quantised checkpoints cannot be "
                "converted. Give the one that it was made from."
            )
        if name in self.shapes:
            raise CheckpointError(f"{name} is in two files of the checkpoint. Remove what does not belong to it.")
        self.shapes[name], self.dtypes[name], self._read[name] = tuple(shape), dtype, read

    def _add_safetensors(self, file: Path):
        try:
            opened = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged or incomplete ({error}). Download it again.") from error
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            part = opened.get_slice(name)
            dtype = _DTYPES.get(part.get_dtype())
            self._add(name, part.get_shape(), dtype, file, lambda rows, part=part: part[rows])

    def _add_pickle(self, file: Path):
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises of every kind here
            raise CheckpointError(f"{file} cannot be read as weights ({type(error).__name__}: {error}).") from error
        if not isinstance(tensors, dict) or not all(torch.is_tensor(tensor) for tensor in tensors.values()):
            raise CheckpointError(f"{file} is not a dictionary of tensors (a `state_dict`). Save that alone.")
        for name, tensor in tensors.items():
            self._add(name, tensor.shape, tensor.dtype, file, lambda rows, tensor=tensor: tensor[rows])


def locate(source: str, allow_pickle: bool = False) -> Path:
    """The folder or file of a checkpoint, downloaded if `source` is a name on the Hub.

    Raises:
        CheckpointError: neither a path that exists nor the form of a name on the Hub.
    """
    path = Path(source)
    if path.exists():
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(f"{source} does not exist. Give a folder, a file, or a name on the Hub (owner/name).")
    patterns = ["*.json", "*.safetensors", *(f"*{end}" for end in _PICKLES if allow_pickle)]
    return Path(snapshot_download(source, allow_patterns=patterns))


def write_weights(file: Path, entries: Sequence[Entry], dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file.

    Args:
        dtype: cast every weight to it; None keeps each as it is.

    Raises:
        CheckpointError: a weight that is NaN or infinite, perhaps because `dtype` cannot hold it.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for entry in entries:
        kind = dtype or entry.dtype
        end = offset + math.prod(entry.shape) * kind.itemsize
        header[entry.name] = {
            "dtype": _DTYPE_NAMES[kind],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data
    with open(file, "wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for entry in entries:
            stream.write(_bytes(entry, dtype or entry.dtype))  # no name here: it would outlive the next one's reading


def _bytes(entry: Entry, dtype: torch.dtype) -> memoryview:
    tensor = entry.read()
    cast = tensor.to(dtype)
    if not _is_finite(cast):
        cause = f"{dtype} cannot hold it; use another" if _is_finite(tensor) else "the checkpoint is damaged"
        raise CheckpointError(f"{entry.name} would have values that are NaN or infinite: {cause}.")
    return memoryview(cast.contiguous().reshape(-1).view(torch.uint8).numpy())


def _is_finite(tensor: torch.Tensor) -> bool:
    return all(extreme.isfinite() for extreme in tensor.aminmax())  # NaN is both; no mask in the tensor's size


def _weight_files(path: Path) -> tuple[list[Path], set[str] | None]:
    """The files of a checkpoint, and the keys that its index lists (None without an index)."""
    if path.is_file():
        return [path], None
    for index, single in zip(_INDEXES, _FILES, strict=True):
        if (path / index).is_file():
            weight_map = read_json(path / index)["weight_map"]
            files = [path / file for file in sorted(set(weight_map.values()))]
            if missing := [file.name for file in files if not file.is_file()]:
                raise CheckpointError(
                    f"{path} lacks {len(missing)} of {len(files)} files that {index} lists: {missing}."
                )
            return files, set(weight_map)
        if (path / single).is_file():
            return [path / single], None
    raise CheckpointError(
        f"{path} has no weights: none of {', '.join((*_FILES, *_INDEXES))}. If they have another name, give the file."
    )


def read_json(file: Path) -> dict:
    """What a JSON file holds; nothing if there is no such file.

    Raises:
        CheckpointError: it is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is damaged: {error}.") from error


def write_json(file: Path, values: dict) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

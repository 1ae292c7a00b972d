"""Arrays in msgpack, as openpi's clients send and expect them (the format of `openpi_client.msgpack_numpy`).

An array is a map `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [...]}`, a NumPy scalar a map
`{b"__npgeneric__": True, b"data": value, b"dtype": "<f4"}`. What comes in was written by a stranger: nothing is taken
on trust, and nothing larger than the message itself is ever allocated.
"""

import math
import re

import msgpack
import numpy as np

# Numbers, truth values and strings. Not: V (records), O (objects), c (complex), M and m (dates), nor anything of no
# bytes, of which an empty message could hold any number.
_DTYPE = re.compile(r"[<>|=][biufSU][1-9]\d{0,8}")
_ARRAY_KEYS = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR_KEYS = {b"__npgeneric__", b"data", b"dtype"}
# msgpack makes room for a list as long as its header says, before it reads on: nested headers could ask for any amount.
_LIMITS = {"max_array_len": 4096, "max_map_len": 1024, "max_ext_len": 0}
# An empty map is one byte of a message and sixty-four of memory: maps and lists of a whole message, together.
_MAX_CONTAINERS = 512


def packb(values) -> bytes:
    """Encode dicts, lists, strings, numbers and arrays.

    Raises:
        ValueError: an array of objects, records or complex numbers.
        TypeError: something else that msgpack does not know.
    """
    return msgpack.packb(values, default=_encode)


def unpackb(message: bytes):
    """Decode; arrays are read-only views of the message.

    Raises:
        ValueError: no msgpack, an incomplete message, one with too many maps and lists, or an array whose type, shape
            and data do not belong together.
    """
    count = _ContainerCount()
    hooks = {"object_hook": lambda values: _decode(count(values)), "list_hook": count}
    try:
        return msgpack.unpackb(message, **hooks, **_LIMITS)
    except ValueError as error:
        raise ValueError(f"The message is not msgpack as openpi's clients write it: {error}") from error


class _ContainerCount:
    """Hands maps and lists on as they are, up to `_MAX_CONTAINERS` of them."""

    def __init__(self):
        self._count = 0

    def __call__(self, values):
        self._count += 1
        if self._count > _MAX_CONTAINERS:
            raise ValueError(f"it has more than {_MAX_CONTAINERS} maps and lists.")
        return values


def _encode(value):
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"msgpack cannot hold a {type(value).__name__}.")
    if value.dtype.kind in "VOc":
        raise ValueError(f"Arrays of type {value.dtype} cannot be sent: use numbers, truth values or strings.")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _decode(values: dict):
    if b"__ndarray__" in values:
        return _array(values)
    if b"__npgeneric__" in values:
        return _scalar(values)
    return values


def _array(values: dict) -> np.ndarray:
    dtype, shape, data = _dtype(values, _ARRAY_KEYS), values[b"shape"], values[b"data"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"the shape of an array must be a list of whole numbers, got {shape!r}.")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        size = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise ValueError(
            f"an array of shape {shape} and type {dtype} takes {math.prod(shape) * dtype.itemsize} bytes, got {size}."
        )
    try:
        return np.ndarray(shape, dtype, buffer=data)
    except (ValueError, OverflowError) as error:  # dimensions beyond those that NumPy has
        raise ValueError(f"an array of shape {shape} is impossible: {error}.") from error


def _scalar(values: dict) -> np.generic:
    dtype, data = _dtype(values, _SCALAR_KEYS), values[b"data"]
    if not isinstance(data, bool | int | float | str | bytes):
        raise ValueError(f"a NumPy scalar must hold one value, got {type(data).__name__}.")
    try:
        return dtype.type(data)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{data!r} is not a value of type {dtype}: {error}.") from error


def _dtype(values: dict, keys: set[bytes]) -> np.dtype:
    name = values.get(b"dtype")
    if set(values) != keys:
        raise ValueError(f"an array has the entries {sorted(map(str, values))}; expected are {sorted(map(str, keys))}.")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ValueError(f"arrays of type {name!r} are refused: send numbers, truth values or strings.")
    try:
        return np.dtype(name)
    except TypeError as error:
        raise ValueError(f"there is no type {name!r}.") from error


__all__ = ["packb", "unpackb"]

"""Arrays in msgpack: the same bytes as openpi's clients write, and no way to hurt the server with others."""

import tracemalloc

import msgpack
import numpy as np
import pytest

from kivla.serving.msgpack_numpy import packb, unpackb


def test_arrays_there_and_back():
    values = {
        "f": np.arange(6, dtype=">f4").reshape(2, 3),
        "u": np.zeros((0, 3), np.uint8),
        "b": np.array(True),
        "s": np.array(["ab", "c"]),
        "scalar": np.float32(0.1),
        "other": [1, "two", None, 3.5],
    }
    back = unpackb(packb(values))
    assert back["other"] == values.pop("other") and type(back["scalar"]) is np.float32
    for name, value in values.items():
        np.testing.assert_array_equal(back[name], value, strict=True)


# What `openpi_client.msgpack_numpy.packb` of openpi-client 0.1.2 makes of these values.
OPENPI = {
    "float32": (
        np.arange(6, dtype=np.float32).reshape(2, 3),
        b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x18\x00\x00\x00\x00\x00\x00\x80?\x00\x00\x00@\x00\x00@@\x00\x00\x80@"
        b"\x00\x00\xa0@\xc4\x05dtype\xa3<f4\xc4\x05shape\x92\x02\x03",
    ),
    "by columns": (
        np.asfortranarray([[1, 2], [3, 4]], dtype=np.int16),
        b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x08\x01\x00\x02\x00\x03\x00\x04\x00\xc4\x05dtype\xa3<i2\xc4\x05shape"
        b"\x92\x02\x02",
    ),
    "no dimensions": (
        np.array(True),
        b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x01\x01\xc4\x05dtype\xa3|b1\xc4\x05shape\x90",
    ),
    "strings": (
        np.array(["ab", "c"]),
        b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x10a\x00\x00\x00b\x00\x00\x00c\x00\x00\x00\x00\x00\x00\x00\xc4\x05dtype"
        b"\xa3<U2\xc4\x05shape\x91\x02",
    ),
    "scalar": (
        np.float32(0.5),
        b"\x83\xc4\r__npgeneric__\xc3\xc4\x04data\xcb?\xe0\x00\x00\x00\x00\x00\x00\xc4\x05dtype\xa3<f4",
    ),
    "negative scalar": (
        np.int64(-3),
        b"\x83\xc4\r__npgeneric__\xc3\xc4\x04data\xfd\xc4\x05dtype\xa3<i8",
    ),
    "observation": (
        {"prompt": "go", "images": {"cam_high": np.zeros((3, 1, 1), np.uint8)}},
        b"\x82\xa6prompt\xa2go\xa6images\x81\xa8cam_high\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x03\x00\x00\x00\xc4\x05dtype"
        b"\xa3|u1\xc4\x05shape\x93\x03\x01\x01",
    ),
}


@pytest.mark.parametrize("name", OPENPI)
def test_the_bytes_are_those_of_openpi(name):
    values, theirs = OPENPI[name]
    assert packb(values) == theirs
    back = unpackb(theirs)
    if isinstance(values, dict):
        values, back = values["images"]["cam_high"], back["images"]["cam_high"]
    np.testing.assert_array_equal(back, values, strict=True)
    assert type(back) is type(values)


def test_arrays_are_views_of_the_message():
    array = unpackb(packb({"a": np.zeros(3)}))["a"]
    assert not array.flags.writeable and not array.flags.owndata


ARRAY = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"shape": [3]}, "takes 12 bytes, got 8 bytes"),
        ({b"shape": [-2]}, "list of whole numbers"),
        ({b"shape": 2}, "list of whole numbers"),
        ({b"shape": [2**40, 2**40]}, "takes .* bytes, got 8 bytes"),
        ({b"shape": [0, 2**62], b"data": b""}, "is impossible"),
        ({b"data": "text"}, "got str"),
        ({b"dtype": "|O"}, "type '|O' are refused"),
        ({b"dtype": "<c8", b"shape": [1]}, "type '<c8' are refused"),
        ({b"dtype": "|V8", b"shape": [1]}, "type '|V8' are refused"),
        ({b"dtype": "f4,f4"}, "type 'f4,f4' are refused"),
        ({b"dtype": "<f3"}, "no type '<f3'"),
        ({b"dtype": "|S0", b"shape": [2**40], b"data": b""}, "type '|S0' are refused"),
        ({b"dtype": "<M8[s]", b"shape": [1]}, "type '<M8[s]' are refused"),
        ({b"dtype": 7}, "type 7 are refused"),
        ({b"more": 1}, "has the entries"),
    ],
)
def test_arrays_that_contradict_themselves(change, message):
    with pytest.raises(ValueError, match=message.translate(str.maketrans({"|": r"\|", "[": r"\["}))):
        unpackb(msgpack.packb({"a": {**ARRAY, **change}}))


def test_scalars_that_contradict_themselves():
    for data, dtype in ((300, "|u1"), ("a", "<f4"), ([1, 2], "<f4")):
        with pytest.raises(ValueError, match=r"scalar must hold one value|is not a value of type"):
            unpackb(msgpack.packb({b"__npgeneric__": True, b"data": data, b"dtype": dtype}))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"not msgpack",
        packb({"a": np.zeros(9)})[:-5],
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\xd4\x05a",
    ],
    ids=["empty", "reserved", "text", "truncated", "list of 2^32", "5000 deep", "extension"],
)
def test_garbage_is_a_value_error(message):
    with pytest.raises(ValueError, match="not msgpack as openpi's clients write it"):
        unpackb(message)
    if message[:1] == b"\xdd":
        with pytest.raises(ValueError, match="exceeds max_array_len"):
            unpackb(b"\xdd\x00\x10\x00\x00" + bytes(2**20))  # long enough, and still no room is made for it


@pytest.mark.parametrize("element", [b"\x80", b"\x90", b"\x81\xa1a\x01"], ids=["maps", "lists", "entries"])
def test_small_messages_never_become_large(element):
    """An empty map is one byte of a message and sixty-four of memory."""
    inner = b"\xdc\x0f\xa0" + element * 4000
    message = b"\xdc\x0f\xa0" + inner * 1000  # 4 million
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 512 maps and lists"):
        unpackb(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6, f"{peak / 1e6:.0f} MB"


def test_objects_are_never_sent():
    for value in (np.array([object()]), np.complex64(1)):
        with pytest.raises(ValueError, match="cannot be sent"):
            packb({"a": value})
    with pytest.raises(TypeError, match="cannot hold a set"):
        packb({"a": {1}})

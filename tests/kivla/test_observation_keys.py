"""The observations of openpi's robots become ours; what is wrong with one is said before a policy sees it."""

import time

import msgpack
import numpy as np
import pytest

from kivla.msgpack_numpy import packb, unpackb
from kivla.observation_keys import ObservationReader, camera_keys

IMAGE, OTHER = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
LIBERO = {
    "observation/image": IMAGE,
    "observation/wrist_image": OTHER,
    "observation/state": np.arange(8.0),
    "prompt": "open the drawer",
}


def test_libero_by_name():
    read = ObservationReader("libero", ["observation.images.wrist_image", "observation.images.image"])
    observation = read(LIBERO)
    assert observation["images"][0] is OTHER and observation["images"][1] is IMAGE
    assert observation["text"] == "open the drawer"
    np.testing.assert_array_equal(observation["state"], np.arange(8.0))
    assert set(observation) == {"images", "text", "state"}


def test_droid_state_is_joints_then_gripper():
    joints = np.arange(7, dtype=np.float32)
    request = {
        "observation/exterior_image_1_left": IMAGE,
        "observation/wrist_image_left": OTHER,
        "observation/joint_position": joints,
        "prompt": "pick",
    }
    read = ObservationReader("droid", ["observation.images.exterior_1_left", "observation.images.wrist_left"])
    for gripper in (np.float32(0.5), np.array([0.5], np.float32)):
        state = read({**request, "observation/gripper_position": gripper})["state"]
        assert state.tolist() == [0, 1, 2, 3, 4, 5, 6, 0.5] and state.dtype == np.float32
    with pytest.raises(ValueError, match=r"lacks \['observation/gripper_position'\]"):
        read(request)


def test_aloha_images_are_nested_and_may_come_without_prompt():
    request = {"state": np.zeros(14), "images": {"cam_high": IMAGE, "cam_right_wrist": OTHER}}
    read = ObservationReader("aloha", ["observation.images.cam_high"], default_text="uncap the pen")
    observation = read(request)
    assert len(observation["images"]) == 1 and observation["images"][0] is IMAGE
    assert observation["text"] == "uncap the pen"
    with pytest.raises(ValueError, match=r"lacks \['prompt'\]"):
        ObservationReader("aloha", ["cam_high"])(request)


def test_cameras_with_names_of_their_own_take_the_order_of_the_preset():
    assert camera_keys("libero", ["front", "hand"]) == ["observation/image", "observation/wrist_image"]
    assert camera_keys("libero", ["front"]) == ["observation/image"]
    assert len(camera_keys("aloha", None)) == 4
    with pytest.raises(ValueError, match="'libero' send only"):
        camera_keys("libero", ["a", "b", "c"])


def test_plain():
    read = ObservationReader("plain")
    for images in ({"front": IMAGE, "hand": None}, [IMAGE, OTHER]):
        observation = read({"images": images, "text": "go", "state": [1, 2.5]})
        assert observation["images"] == images and observation["state"].tolist() == [1, 2.5]
    assert "state" not in read({"images": [IMAGE], "text": "go"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/image": "/etc/passwd"}, "'?0'? must be an array, or None if missing, got str"),
        ({"observation/depth": IMAGE}, r"has unknown \['observation/depth'\]"),
        ({"prompt": 3}, "instruction must be a string, got int"),
        ({"observation/state": np.array(["a", "b"])}, "one vector of numbers, got shape .2,. of type <U1"),
        ({"observation/state": np.zeros((2, 4))}, r"one vector of numbers, got shape \(2, 4\)"),
        ({"observation/state": ["a"]}, "array or a list of numbers, got list"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    read = ObservationReader("libero", ["image", "wrist_image"])
    with pytest.raises(ValueError, match=message):
        read({**LIBERO, **change})


def test_missing_camera():
    request = {key: value for key, value in LIBERO.items() if key != "observation/wrist_image"}
    with pytest.raises(ValueError, match=r"lacks \['observation/wrist_image'\]; expected are"):
        ObservationReader("libero", ["image", "wrist_image"])(request)
    assert len(ObservationReader("libero", ["image"])(request)["images"]) == 1, "nobody needs the wrist camera"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "map with strings as keys, got list"),
        ({b"images": []}, "map with strings as keys"),
        ({"images": [IMAGE], "text": "go", "extra": 1}, r"has the keys \['extra', 'images', 'text'\]"),
        ({"text": "go"}, "expected are 'images', 'text'"),
        ({"images": ["http://example.org/a.png"], "text": "go"}, "must be an array"),
        ({"images": IMAGE, "text": "go"}, "list of arrays or a map by camera name, got ndarray"),
        ({"images": {b"front": IMAGE}, "text": "go"}, "list of arrays or a map by camera name"),
        ({"images": [IMAGE], "text": "go", "robot": 5}, "'robot' must be a string"),
    ],
)
def test_what_is_wrong_with_a_plain_one(request_, message):
    with pytest.raises(ValueError, match=message):
        ObservationReader("plain")(request_)


def test_age():
    read = ObservationReader("plain", max_age_ms=1000)
    request = {"images": [IMAGE], "text": "go"}
    assert "timestamp" not in read({**request, "timestamp": time.time()})
    read(request)
    with pytest.raises(ValueError, match=r"is 60\d{3} ms old, allowed are 1000"):
        read({**request, "timestamp": time.time() - 60})
    for timestamp in (1e3 * time.time(), float("nan"), np.float64("inf")):
        with pytest.raises(ValueError, match="allowed are 1000"):
            read({**request, "timestamp": timestamp})
    with pytest.raises(ValueError, match="Unix time in seconds, got str"):
        read({**request, "timestamp": "now"})
    ObservationReader("plain")({**request, "timestamp": 0.0})


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


def test_the_bytes_are_those_of_openpi():
    """Written out by hand from the format of openpi_client.msgpack_numpy 0.1.2."""
    by_hand = msgpack.packb(
        {"a": {b"__ndarray__": True, b"data": b"\x00\x00\x80?", b"dtype": "<f4", b"shape": (1,)}}, use_bin_type=True
    )
    assert packb({"a": np.ones(1, np.float32)}) == by_hand


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
        ({b"dtype": 7}, "type 7 are refused"),
        ({b"more": 1}, "has the entries"),
    ],
)
def test_arrays_that_contradict_themselves(change, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        unpackb(msgpack.packb({"a": {**ARRAY, **change}}))


def test_scalars_that_contradict_themselves():
    for data, dtype in ((300, "|u1"), ("a", "<f4"), ([1, 2], "<f4")):
        with pytest.raises(ValueError, match="scalar must hold one value|is not a value of type"):
            unpackb(msgpack.packb({b"__npgeneric__": True, b"data": data, b"dtype": dtype}))


@pytest.mark.parametrize(
    "message",
    [b"", b"\xc1", b"not msgpack", packb(LIBERO)[:-5], b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, b"\xd4\x05a"],
    ids=["empty", "reserved", "text", "truncated", "list of 2^32", "5000 deep", "extension"],
)
def test_garbage_is_a_value_error(message):
    with pytest.raises(ValueError, match="not msgpack as openpi's clients write it"):
        unpackb(message)
    if message[:1] == b"\xdd":
        with pytest.raises(ValueError, match="exceeds max_array_len"):
            unpackb(b"\xdd\x00\x10\x00\x00" + bytes(2**20))  # long enough, and still no room is made for it


def test_objects_are_never_sent():
    for value in (np.array([object()]), np.complex64(1)):
        with pytest.raises(ValueError, match="cannot be sent"):
            packb({"a": value})
    with pytest.raises(TypeError, match="cannot hold a set"):
        packb({"a": {1}})

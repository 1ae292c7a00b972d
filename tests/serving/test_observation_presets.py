"""The observations of openpi's robots become ours; what is wrong with one is said before a policy sees it."""

import time

import numpy as np
import pytest

from kivla.serving.observation_presets import ObservationReader, camera_keys

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
    request = {"state": np.zeros(14), "images": {"cam_high": IMAGE}}
    read = ObservationReader("aloha", ["observation.images.cam_high"], default_text="uncap the pen")
    observation = read(request)
    assert len(observation["images"]) == 1 and observation["images"][0] is IMAGE
    assert observation["text"] == "uncap the pen"
    with pytest.raises(ValueError, match=r"lacks \['prompt'\]"):
        ObservationReader("aloha", ["cam_high"])(request)


UNKNOWN = [
    ("libero", ["front", "hand"], "is 'front' and which 'hand'"),
    ("libero", ["wrist_image", "front"], "is 'front'"),
    ("libero", ["wrist", "top"], "is 'wrist' and which 'top'"),
    ("libero", ["image", "agentview_image"], "is 'image' and which 'agentview_image'"),
    ("libero", ["right_wrist_0_rgb"], "is 'right_wrist_0_rgb'"),
    ("aloha", ["cam_left_wrist", "cam_right_wrist", "top"], "is 'top'"),
    ("aloha", None, "is which"),
]


@pytest.mark.parametrize(("preset", "cameras", "unclear"), UNKNOWN)
def test_no_camera_is_taken_by_its_position(preset, cameras, unclear):
    with pytest.raises(ValueError, match=rf"send only.*{unclear}.*--cameras"):
        ObservationReader(preset, cameras)


def test_a_mapping_says_which_camera_is_which():
    wrist, base = "observation/wrist_image", "observation/image"
    cameras = ["wrist_image", "observation.images.front"]
    assert camera_keys("libero", cameras, {"front": base}) == [wrist, base], "the other is known"
    assert camera_keys("libero", None, {"hand": wrist, "front": base}) == [wrist, base], "a policy without names"
    assert camera_keys("libero", ["cam"], known_as={"cam": "left_wrist_0_rgb"}) == [wrist]
    with pytest.raises(ValueError, match=r"send no image 'observation/depth'; they send observation/image, obs.*--cam"):
        camera_keys("libero", cameras, {"front": "observation/depth"})
    with pytest.raises(ValueError, match="--cameras"):
        camera_keys("libero", cameras, {"front": wrist})


def test_a_slot_of_pi_without_a_camera_stays_empty():
    slots = ["observation.images.base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]
    assert camera_keys("libero", slots) == ["observation/image", "observation/wrist_image", None]
    images = ObservationReader("libero", slots)(LIBERO)["images"]
    assert images[0] is IMAGE and images[1] is OTHER and images[2] is None
    assert camera_keys("aloha", slots) == ["images/cam_high", "images/cam_left_wrist", "images/cam_right_wrist"]


def test_an_image_that_the_policy_does_not_know_is_refused_until_it_is_left_out():
    with pytest.raises(
        ValueError, match=r"unknown \['observation/image'\].*--cameras wrist_image=observation/wrist_im"
    ):
        ObservationReader("libero", ["wrist_image"])(LIBERO)
    read = ObservationReader("libero", ["wrist_image"], names={"wrist_image": "observation/wrist_image"})
    assert [image is OTHER for image in read(LIBERO)["images"]] == [True]


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


def test_age(monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)  # a busy machine may let any time pass between two lines
    read = ObservationReader("plain", max_age_ms=1000)
    request = {"images": [IMAGE], "text": "go"}
    assert "timestamp" not in read({**request, "timestamp": time.time()})
    for late, shown in ((60, "60000"), (-60, "-60000")):  # a clock that runs ahead is as bad
        with pytest.raises(ValueError, match=rf"is {shown} ms old, allowed are 1000"):
            read({**request, "timestamp": time.time() - late})
    for timestamp in (1e3 * time.time(), float("nan"), np.float64("inf"), -np.float32("inf"), 0, 2**63):
        with pytest.raises(ValueError, match="allowed are 1000"):
            read({**request, "timestamp": timestamp})
    for timestamp, given in (("now", "str"), (None, "none"), (True, "bool"), ([time.time()], "list")):
        with pytest.raises(ValueError, match=f"in seconds, got {given}: this server refuses observations older"):
            read({**request, "timestamp": timestamp})
    with pytest.raises(ValueError, match="got none"):
        read(request)
    for timestamp in (0.0, float("nan"), "now"):
        ObservationReader("plain")({**request, "timestamp": timestamp})
    for age in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="must be positive"):
            ObservationReader("plain", max_age_ms=age)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [None] * 17}, "There are 17 images; at most 16"),
        ({"images": [np.zeros((1, 5000, 3), np.uint8)]}, "at most 4096 pixels a side"),
        ({"text": "go " * 2000}, "'text' has 6000 characters; at most 4096"),
        ({"robot": "x" * 5000}, "'robot' has 5000 characters"),
        ({"response": "x" * 5000}, "'response' has 5000 characters"),
        ({"state": np.zeros(1025)}, "'state' has 1025 values; at most 1024"),
    ],
)
def test_what_is_far_too_large_is_refused_before_the_policy_sees_it(change, message):
    with pytest.raises(ValueError, match=message):
        ObservationReader("plain")({"images": [IMAGE], "text": "go", **change})


@pytest.mark.parametrize("preset", ["plain", "libero"])
def test_what_is_left_of_a_chunk_comes_along(preset):
    """Under the same two names for every kind of robot."""
    left = np.ones((5, 7), np.float32)
    request = {"images": {"base": IMAGE}, "text": "go"} if preset == "plain" else LIBERO
    read = ObservationReader(preset, ["image", "wrist_image"] if preset == "libero" else None)
    observation = read({**request, "previous_actions": left, "delay": np.int64(3)})
    assert observation["previous_actions"] is left and observation["delay"] == 3
    assert read(request).keys() == observation.keys() - {"previous_actions", "delay"}
    for wrong, text in (
        ({"previous_actions": left}, "go together: there is only 'previous_actions'"),
        ({"delay": 3}, "go together: there is only 'delay'"),
        (
            {"previous_actions": left[0], "delay": 3},
            r"must be an array of numbers \(n, action_dim\), got float32 \(7,\)",
        ),
        ({"previous_actions": [[1.0]], "delay": 3}, "got list"),
        ({"previous_actions": left.astype(str), "delay": 3}, "got <U"),
        ({"previous_actions": np.zeros((5000, 7)), "delay": 3}, "no chunk is so large"),
        ({"previous_actions": left, "delay": -1}, "whole number of control steps, not negative, got -1"),
        ({"previous_actions": left, "delay": 2.0}, "got 2.0"),
        ({"previous_actions": left, "delay": True}, "got True"),
    ):
        with pytest.raises(ValueError, match=text):
            read({**request, **wrong})

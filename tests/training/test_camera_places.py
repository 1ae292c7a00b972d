"""Cameras of new data go into the places of a base policy by name, by known aliases, or as told."""

import pytest

from kivla.processing.camera_names import PI_SLOTS
from kivla.training.camera_places import are_same, fill_places, new_names

BASE, LEFT, RIGHT = PI_SLOTS


def fill(cameras, mapping=None, places=tuple(PI_SLOTS), known_as=None):
    notes = []
    return fill_places("pi05", places, known_as or {}, cameras, mapping, notes), " ".join(notes)


@pytest.mark.parametrize(
    "places", [tuple(PI_SLOTS), tuple(f"observation.images.{slot}" for slot in PI_SLOTS), ("some.front",)]
)
def test_known_names_find_their_slots(places):
    known_as = {"some.front": BASE}
    libero, note = fill(["observation.images.wrist_image", "observation.images.image"], None, places, known_as)
    assert list(libero.items()) == [("observation.images.image", BASE), ("observation.images.wrist_image", LEFT)]
    assert f"{RIGHT} stays empty: its tokens are left out" in note
    aloha, note = fill(["cam_right_wrist", "cam_left_wrist", "cam_high"], None, places, known_as)
    assert list(aloha.items()) == [("cam_high", BASE), ("cam_left_wrist", LEFT), ("cam_right_wrist", RIGHT)]
    assert "empty" not in note


def test_a_single_camera_is_the_base_view_unless_it_is_known_as_another():
    assert fill(["corner"])[0] == {"corner": BASE}
    assert fill(["wrist_image"])[0] == {"wrist_image": LEFT}


def test_slots_are_told():
    told = {BASE: "front", LEFT: "wrist"}
    filled, _ = fill(["observation.images.wrist", "observation.images.front"], told)
    assert list(filled.items()) == [("observation.images.front", BASE), ("observation.images.wrist", LEFT)]
    filled, note = fill(["front", "cam_right_wrist"], {BASE: "front", LEFT: None, "cam_right_wrist": "cam_right_wrist"})
    assert filled == {"front": BASE, "cam_right_wrist": RIGHT} and f"{LEFT} stays empty" in note


@pytest.mark.parametrize(
    ("cameras", "mapping", "message"),
    [
        (["front", "wrist"], None, r"not clear where \['front', 'wrist'\] .*--cameras base_0_rgb=CAMERA left_wr"),
        (["image", "cam_high"], None, r"not clear where \['image', 'cam_high'\]"),
        (["cam_high", "cam_low", "cam_left_wrist"], None, r"not clear where \['cam_low'\].*right_wrist_0_rgb=CAMERA"),
        (["front", "wrist"], {BASE: "front"}, r"not clear where \['wrist'\]"),
        (["front", "wrist"], {"top": "front"}, "has no camera 'top'"),
        (["front", "wrist"], {BASE: "side"}, "have no camera 'side'"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_list(cameras, mapping, message):
    with pytest.raises(ValueError, match=message):
        fill(cameras, mapping)


def test_the_places_of_any_other_base():
    own = ("observation.images.top", "observation.images.wrist")
    assert fill(["wrist", "top"], None, own)[0] == ["top", "wrist"], "the base's order"
    assert fill(["left", "right"], None, own)[0] == ["left", "right"], "another robot"
    assert fill(["left", "right"], None, None)[0] == ["left", "right"], "a base without names"
    told, note = fill(["hand", "front"], {"wrist": "hand", "top": "front"}, own)
    assert list(told.items()) == [("front", own[0]), ("hand", own[1])] and "top is front" in note
    named, _ = fill(["a", "b"], {"head": "a", "hand": "b"}, own)
    assert named == {"head": "a", "hand": "b"}, "new names"


def test_a_new_policy_s_names():
    data = ["observation.images.cam_0", "observation.images.cam_1"]
    assert new_names(data, None) == data == new_names(data, {"cam_0": "cam_0", "cam_1": "cam_1"})
    assert new_names(data, {"front": "cam_0", "cam_1": "cam_1"}) == {"front": data[0], data[1]: data[1]}
    with pytest.raises(ValueError, match="without pictures"):
        new_names(data, {"front": "cam_0", "hand": None})
    assert are_same(data, ["cam_1", "cam_0"]) and not are_same(data, ["cam_1"]) and not are_same(data, ["a", "cam_0"])

"""Names in every form that datasets have had: one for each dimension, all different, or none."""

import pytest

from kivla.training.data.lerobot.dimension_names import dimension_names

JOINTS = [f"j{i}" for i in range(7)]
NUMBERED = [f"action_{i}" for i in range(7)]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (JOINTS, JOINTS),
        ([JOINTS], JOINTS),
        ([JOINTS[:3], JOINTS[3:]], JOINTS),
        ({"motors": JOINTS}, JOINTS),
        ({name: 6 - i for i, name in enumerate(JOINTS)}, JOINTS[::-1]),
        ({"left": JOINTS[:3], "right": JOINTS[3:]}, JOINTS),
        ({"a": ["x", "y", "z"], "b": ["x", "y", "z", "w"]}, ["a.x", "a.y", "a.z", "b.x", "b.y", "b.z", "b.w"]),
        (None, None),
        ([], None),
        ({}, None),
        ({"motors": None}, None),
        (5, None),
    ],
)
def test_names_that_are_there(stored, expected):
    assert dimension_names(stored, 7, "action") == (expected, None)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (["actions"], NUMBERED),
        ([*JOINTS, "more"], NUMBERED),
        ("motors", NUMBERED),
        (list(range(7)), NUMBERED),
        ([None] * 7, NUMBERED),
        ([*JOINTS[:6], " "], [*JOINTS[:6], "action_6"]),
        (["gripper"] * 7, [f"gripper_{i}" for i in range(7)]),
        (["a", "a_0", "a", *JOINTS[:4]], ["a_1", "a_0", "a_2", *JOINTS[:4]]),
    ],
)
def test_names_that_are_made(stored, expected):
    names, note = dimension_names(stored, 7, "action")
    assert names == expected and len(set(names)) == 7
    assert "action" in note and "numbered" in note


def test_a_stranger_may_nest_lists_without_end():
    nested = ["x"]
    for _ in range(5000):
        nested = [nested]
    assert dimension_names(nested, 1, "action") == (None, None)

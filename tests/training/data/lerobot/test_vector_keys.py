"""Which columns are the actions and the state: the usual ones, what is plainly meant, or what is asked for."""

import re

import numpy as np
import pyarrow as pa
import pytest

from kivla.training.data.lerobot.dataset import LeRobotDataset
from kivla.training.data.lerobot.vector_keys import choose_keys
from tests.helpers.lerobot_folder import pictures_are_right, write_folder


def chosen(columns, action_key=None, state_key=None, preset=None, modality=None):
    keys = choose_keys(columns, dict.fromkeys(columns), preset, modality, action_key, state_key)
    return [str(part) for part in keys.actions], [str(part) for part in keys.state]


@pytest.mark.parametrize(
    ("columns", "actions", "state"),
    [
        (["action", "action.arm", "observation.state"], ["action"], ["observation.state"]),
        (["state", "actions"], ["actions"], ["state"]),
        (["actions", "joint_position", "gripper_position"], ["actions"], []),
        (["action.arm", "action.gripper", "observation.state.arm"], ["action.arm", "action.gripper"], None),
        (["action.joint_position", "action.gripper_position"], None, []),
        (["action.joint_position", "observation.states.joint.position"], ["action.joint_position"], None),
    ],
)
def test_what_is_plainly_meant(columns, actions, state):
    found = chosen(columns)
    assert found[0] == (actions if actions is not None else [c for c in columns if c.startswith("action")])
    assert found[1] == (state if state is not None else [c for c in columns if "state" in c])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["torque", "joint_position"], "no column is called 'action'.*torque, joint_position.*--action_key"),
        (
            ["action.joint_position", "action.cartesian_position", "action.gripper"],
            r"not clear which columns are the action: action.joint_position, .* are a pose and joints.*--action_key",
        ),
        (["action.arm_position", "action.arm_velocity", "action.joint"], "are joints and velocities"),
        (["action", "observation.state.joint", "observation.state.eef"], "the state: .*--state_key.*or 'none'"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_there_is(columns, message):
    with pytest.raises(ValueError, match=message):
        chosen(columns)


def test_a_state_that_is_announced_and_absent_is_said():
    found = choose_keys(["action"], {"action": {}, "observation.state": {}}, None, None, None, None)
    assert found.state == () and "announces the state observation.state" in found.notes[0]
    assert choose_keys(["action"], {"action": {}}, None, None, None, None).notes == []


def test_what_is_asked_for():
    columns = ["action", "joint_position", "gripper_position", "odd[0:2]"]
    assert chosen(columns, "joint_position", ["joint_position", "gripper_position"]) == (
        ["joint_position"],
        ["joint_position", "gripper_position"],
    )
    assert chosen(columns, ["action[3:7]", "action[0:3]"], "none") == (["action[3:7]", "action[0:3]"], [])
    assert chosen(columns, "odd[0:2]", ["none"]) == (["odd[0:2]"], [])
    for key, message in (("acton", "no column 'acton'. The columns: action"), ("action[3:3]", "has no dimensions")):
        with pytest.raises(ValueError, match=message):
            chosen(columns, key)


def test_presets():
    assert chosen(["actions", "action", "state"], preset="openpi") == (["actions"], ["state"])
    assert chosen(["actions", "action", "state"], "action", preset="openpi") == (["action"], ["state"])
    groups = {"arm": {"start": 0, "end": 3}, "hand": {"start": 5, "end": 6, "original_key": "hand.command"}}
    modality = {"action": groups, "state": {}}
    columns = ["action", "hand.command", "observation.state"]
    assert chosen(columns, preset="gr00t", modality=modality) == (["action[0:3]", "hand.command[5:6]"], [])
    for bad in (None, {}, {"action": {"arm": {"start": 2, "end": 1}}}, {"action": [1]}):
        with pytest.raises(ValueError, match=r"modality\.json"):
            chosen(columns, preset="gr00t", modality=bad)
    with pytest.raises(ValueError, match="no keys 'pi0'; known are openpi, gr00t"):
        chosen(columns, preset="pi0")


def parts(columns, episode):
    arm = np.array(columns.pop("action"))
    columns["action.arm"] = arm.tolist()
    columns["action.gripper"] = arm[:, 0] * 2
    columns["action.wheels"] = pa.array((arm[:, :2] > 0).tolist(), pa.list_(pa.bool_()))


def test_groups_of_gr00t_that_overlap_are_said():
    groups = {"a": {"start": 0, "end": 3}, "b": {"start": 1, "end": 4}}
    chosen = choose_keys(["action"], {}, "gr00t", {"action": groups}, None, None)
    assert any("actions have dimensions twice, in action[0:3] and action[1:4]" in note for note in chosen.notes)
    apart = {"a": groups["a"], "b": {"start": 3, "end": 4}}
    assert not any(
        "twice" in note for note in choose_keys(["action"], {}, "gr00t", {"action": apart}, None, None).notes
    )


def test_parts_are_put_after_each_other(tmp_path):
    root = write_folder(
        tmp_path / "data",
        dim=3,
        edit_columns=parts,
        edit_info=lambda info: info["features"].update(
            {"action.gripper": {"dtype": "float32", "shape": [1]}, "action.arm": {"names": ["x", "y", "z"]}}
        ),
    )
    data = LeRobotDataset(root, chunk_size=4)
    assert data.action_key == ["action.gripper", "action.arm", "action.wheels"], "in the order of info.json"
    assert data.action_names == ["gripper", "x", "y", "z", "wheels_0", "wheels_1"]
    assert any(
        re.search(r"actions are made of the column.*gripper, action.arm and action.wheels", n) for n in data.notes
    )
    arm = np.random.default_rng(0).normal(size=(12, 3)).cumsum(0).astype(np.float32)
    expected = np.concatenate([arm[:, :1] * 2, arm, arm[:, :2] > 0], axis=1)
    np.testing.assert_array_equal(data[5]["actions"], expected[5:9])
    np.testing.assert_array_equal(next(iter(data.vectors("actions")))[:12], expected)
    assert data.statistics["actions"]["mean"].shape == (6,) and pictures_are_right(data)
    other = LeRobotDataset(root, chunk_size=4, action_key=["action.arm[1:3]", "action.gripper"], state_key="none")
    np.testing.assert_array_equal(other[5]["actions"], expected[5:9][:, [2, 3, 0]])
    assert other.action_names == ["y", "z", "gripper"] and other.state_dim == 0 and "state" not in other[0]
    assert other.content_digest != data.content_digest
    with pytest.raises(ValueError, match=r"action\.arm\[1:9\] asks for more than the 3 dimensions"):
        LeRobotDataset(root, action_key="action.arm[1:9]")


def test_openpis_columns(tmp_path):
    root = write_folder(tmp_path / "data", keys=("actions", "state", "wrist_image"))
    data = LeRobotDataset(root, chunk_size=4, keys="openpi")
    assert (data.action_key, data.state_key, data.cameras) == (["actions"], ["state"], ["wrist_image"])
    assert pictures_are_right(data) and data.notes == ["The dataset has no image, which openpi's keys have."]


def test_openpis_keys_that_are_not_here_are_refused_or_said(tmp_path):
    root = write_folder(tmp_path / "usual")
    with pytest.raises(ValueError, match=r"keys of openpi are actions, state, image, wrist_image, and none .* is here"):
        LeRobotDataset(root, chunk_size=4, keys="openpi", action_key="action")
    root = write_folder(tmp_path / "mixed", keys=("actions", "observation.state", "observation.images.front"))
    data = LeRobotDataset(root, chunk_size=4, keys="openpi")
    assert (data.action_key, data.state_key) == (["actions"], ["observation.state"])
    assert data.cameras == ["observation.images.front"]
    assert data.notes == [
        "None of the cameras of openpi is here: where none are chosen, all that are here are used.",
        "The state is made of the column(s) observation.state.",
    ]

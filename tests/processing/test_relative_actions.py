"""Relative actions: offsets from the state and back, wrapping angles, rotations, words for them, and ALOHA units."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation as Turn

from kivla.processing import KIVLAProcessor, compute_statistics
from kivla.processing.action_units import ActionUnits
from kivla.processing.pi_aloha import actions_from_pi, actions_to_pi, state_to_pi
from kivla.processing.relative_actions import RelativeActions, Rotation, nearest_turn, to_absolute, to_relative
from kivla.processing.relative_words import PRESETS, RobotDimensions, left_absolute, parse_relative_actions
from tests.helpers.vlm_processors import KINDS
from tests.processing.test_processing_kivla import image

RNG = np.random.default_rng(0)
H = 5
JOINTS = ["shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos", "gripper.pos"]
SO101 = RobotDimensions(6, 6, JOINTS, JOINTS)
FORMS = {
    "quaternion_xyzw": lambda turns: turns.as_quat(),
    "quaternion_wxyz": lambda turns: turns.as_quat()[:, [3, 0, 1, 2]],
    "axis_angle": lambda turns: turns.as_rotvec(),
    "rotation_6d_columns": lambda turns: turns.as_matrix()[:, :, :2].swapaxes(1, 2).reshape(-1, 6),
    "rotation_6d_rows": lambda turns: turns.as_matrix()[:, :2].reshape(-1, 6),
    "euler_xyz": lambda turns: turns.as_euler("xyz"),
    "euler_ZYX_degrees": lambda turns: turns.as_euler("ZYX", degrees=True),
}


# ------------------------------------------------------------------------------------------------------ there and back
def test_offsets_are_against_one_state():
    """By hand: all H actions against the same state, of the dimension that is told; the others as they are."""
    relative = RelativeActions((2, None, 0))
    actions, state = RNG.normal(size=(2, H, 3)), RNG.normal(size=(2, 4))
    expected = actions.copy()
    expected[..., 0] -= state[:, None, 2]
    expected[..., 2] -= state[:, None, 0]
    offsets = to_relative(actions, state, relative)
    np.testing.assert_allclose(offsets, expected, atol=1e-12)
    np.testing.assert_allclose(to_absolute(offsets, state, relative), actions, atol=1e-12)
    one = to_relative(actions[0], state[0], relative)
    np.testing.assert_array_equal(one, offsets[0], "a chunk alone is what it is in a batch")


@pytest.mark.parametrize(("low", "high"), [(-180.0, 180.0), (0.0, 2 * np.pi), (-np.pi, np.pi)])
def test_angles_that_wrap_take_the_shortest_way(low, high):
    relative = RelativeActions((0,), {0: (low, high)})
    period = high - low
    actions, state = RNG.uniform(low, high, (200, H, 1)), RNG.uniform(low, high, (200, 1))
    offsets = to_relative(actions, state, relative)
    assert np.abs(offsets).max() <= period / 2 + 1e-9
    ways = np.stack([actions - state[:, None] + turns * period for turns in (-1, 0, 1)])
    np.testing.assert_allclose(np.abs(offsets), np.abs(ways).min(0), atol=1e-9)
    back = to_absolute(offsets, state, relative)
    np.testing.assert_allclose(back, actions, atol=1e-9)
    many = to_absolute(offsets + 3 * period, state, relative)
    assert many.min() >= low and many.max() < high + 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_rotations_are_composed(form):
    """The offset is the turn from the state to the action, whatever the form; and turning by it gives the action."""
    size = FORMS[form](Turn.identity(1)).shape[1]
    columns = list(range(1, 1 + size))  # beside one plain dimension
    relative = RelativeActions(tuple(range(1 + size)), rotations=(Rotation(tuple(columns), form),))
    here, there = Turn.random(6, random_state=1), Turn.random(6 * H, random_state=2)
    state = np.concatenate([np.ones((6, 1)), FORMS[form](here)], axis=1)
    actions = np.concatenate([np.full((6 * H, 1), 3.0), FORMS[form](there)], axis=1).reshape(6, H, -1)
    offsets = to_relative(actions, state, relative)
    np.testing.assert_allclose(offsets[..., 0], 2.0)
    expected = Turn.from_quat(np.repeat(here.as_quat(), H, axis=0)).inv() * there
    found = FORMS[form](expected)
    if form.startswith("quaternion"):
        found *= np.sign(found[:, [3 if form.endswith("xyzw") else 0]])  # the shorter of the two ways
    np.testing.assert_allclose(offsets[..., columns].reshape(-1, size), found, atol=1e-7)

    back = to_absolute(offsets, state, relative)[..., columns].reshape(-1, size)
    given = actions[..., columns].reshape(-1, size)
    if form.startswith("quaternion"):  # of the two signs, the nearer to the state's
        given = given * np.sign((given * np.repeat(state[:, columns], H, axis=0)).sum(1, keepdims=True))
    np.testing.assert_allclose(back, given, atol=1e-7)


def test_what_a_network_predicts_becomes_a_rotation():
    """Predicted quaternions and 6D vectors have no length or angle to rely on."""
    for form, size in (("quaternion_wxyz", 4), ("rotation_6d_columns", 6)):
        relative = RelativeActions(tuple(range(size)), rotations=(Rotation(tuple(range(size)), form),))
        state = FORMS[form](Turn.random(1, random_state=3))[0]
        absolute = to_absolute(RNG.normal(size=(H, size)) * 3, state, relative)
        vectors = absolute.reshape(-1, 3) if size == 6 else absolute
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-9)
        with pytest.raises(ValueError, match=f"no rotation as {form}"):
            to_absolute(np.zeros((H, size)), state, relative)


def test_angles_are_written_as_the_turn_nearest_to_others():
    relative = RelativeActions((0, 1, None), {1: (-180.0, 180.0)})
    seen = np.array([[[0.0, 179.0, 900.0], [0.0, -179.0, 0.0], [0.0, np.nan, 0.0]]])
    said = np.array([[[400.0, -179.0, 0.0], [0.0, 178.0, 0.0], [0.0, 170.0, 0.0]]])
    expected = [[[400.0, 181.0, 0.0], [0.0, -182.0, 0.0], [0.0, 170.0, 0.0]]]
    np.testing.assert_array_equal(nearest_turn(said, seen, relative), expected)
    assert said[0, 0, 1] == -179.0, "what was given stays as it is"
    assert nearest_turn(said[0, 0], seen, relative)[0, 1, 1] == -179.0, "one action for all steps"
    assert nearest_turn(said, seen, None) is said


def test_what_is_no_description_is_refused():
    for arguments, message in (
        (((None, None),), "no dimension of the action is relative"),
        (((0, -1),), "count from 0"),
        (((0, None), {1: (0, 1)}), "dimension 1 wraps .* not relative"),
        (((0, 1), {1: (1, 1)}), "wraps from 1 to 1"),
        (((0, 1), {5: (0, 1)}), "dimension 5"),
        (((0, 1, 2), {0: (0, 1)}, (Rotation((0, 1, 2), "axis_angle"),)), "one rotation or wraps, once"),
    ):
        with pytest.raises(ValueError, match=message):
            RelativeActions(*arguments)
    for dimensions, form in (((0, 1), "axis_angle"), ((0, 1, 2), "euler_xxy"), ((0, 1, 2), "roll_pitch_yaw")):
        with pytest.raises(ValueError, match="a rotation"):
            Rotation(dimensions, form)
    relative = RelativeActions((0, 3))
    with pytest.raises(ValueError, match=r"relative to dimension 3 of the state, and the state has the shape \(3,\)"):
        to_relative(np.zeros((H, 2)), np.zeros(3), relative)
    with pytest.raises(ValueError, match="must be finite"):
        to_relative(np.zeros((H, 2)), [0, 0, 0, np.nan], relative)
    with pytest.raises(ValueError, match=r"chunks \(..., H, 2\), got shape \(2,\)"):
        to_relative(np.zeros(2), np.zeros(4), relative)


def test_saved_and_read_again():
    relative = RelativeActions(
        (0, 1, 2, 4, None), {0: (-180.0, 180.0)}, (Rotation((1, 2, 3), "euler_xyz"),), ("a", "b", "c", "d", "e")
    )
    again = RelativeActions.from_json(json.loads(json.dumps(relative.to_json())))
    assert again == relative and again.names == relative.names
    for broken in ({}, {"state_dimensions": 3}, {"state_dimensions": ["x"]}, {"state_dimensions": [0], "wraps": [1]}):
        with pytest.raises(ValueError):
            RelativeActions.from_json(broken)


# --------------------------------------------------------------------------------------------------------------- words
def dimensions(words, robot=SO101, **options):
    relative = parse_relative_actions(words.split(), robot, **options)
    return None if relative is None else relative.state_dimensions


def test_words():
    joints = (0, 1, 2, 3, 4, None)
    for words in ("so101", "all", "0-4", "shoulder_pan shoulder_lift elbow_flex.pos 3 wrist_roll"):
        assert dimensions(words) == joints, words
    assert dimensions("none") is None and dimensions("libero") is None
    arm = [f"joint_{i}" for i in range(6)]
    both = [*(f"left_{name}" for name in [*arm, "gripper"]), *(f"right_{name}" for name in [*arm, "gripper"])]
    aloha = RobotDimensions(14, 14, both, both)
    assert dimensions("aloha", aloha) == dimensions("all", aloha) == (*range(6), None, *range(7, 13), None)
    assert dimensions("droid", RobotDimensions(8, 8)) == (*range(7), None)
    # The state in another order, with velocities, or under other names
    shuffled = RobotDimensions(2, 4, ["a", "b"], ["b", "b.vel", "a", "a.vel"])
    assert dimensions("a b", shuffled) == (2, 0)
    assert dimensions("x=a y=b", RobotDimensions(2, 2, ["x", "y"], ["b", "a"])) == (1, 0)
    assert dimensions("0-1=2-3", RobotDimensions(2, 4)) == (2, 3)
    assert dimensions("0 1", RobotDimensions(2, 2, ["action_0", "action_1"], ["x", "y"])) == (0, 1), "numbers, no names"


def test_words_for_angles_and_rotations():
    relative = parse_relative_actions(["so101"], SO101, wraps=["wrist_roll=-180:180"])
    assert relative.wraps == {4: (-180.0, 180.0)}
    names = ["ee.x", "ee.y", "ee.z", "ee.wx", "ee.wy", "ee.wz", "gripper"]
    pose = RobotDimensions(7, 7, names, names)
    relative = parse_relative_actions(["all"], pose)
    assert relative.dimensions == [0, 1, 2] and left_absolute(relative) == ["ee.wx", "ee.wy", "ee.wz"]
    relative = parse_relative_actions(["all"], pose, rotations=["ee.wx,ee.wy,ee.wz=axis_angle"])
    assert relative.dimensions == [0, 1, 2, 3, 4, 5] and left_absolute(relative) == []
    assert relative.rotations == (Rotation((3, 4, 5), "axis_angle"),)
    assert parse_relative_actions(["0-2"], pose, rotations=["3-5=euler_xyz"]).rotated == [3, 4, 5]


def test_words_that_do_not_fit_are_named():
    other = ["a", "b", "c", "d", "e", "f"]
    for words, robot, message in (
        ("elbow", SO101, "'elbow' is no dimension of the action, which has 6.*shoulder_pan"),
        ("0-6", SO101, "'0-6' is no dimension"),
        ("so101 0", SO101, "give one preset, all, none, or dimensions"),
        ("none 0", SO101, "give one preset"),
        ("aloha", SO101, "preset aloha is for actions of 14 dimensions, and these have 6"),
        ("so101", RobotDimensions(6, 6, JOINTS[::-1], JOINTS[::-1]), "gripper.pos relative, which is a gripper"),
        ("all", RobotDimensions(6, 6), "the actions have no names"),
        ("0-4", RobotDimensions(6, 7), "dimension 0 has no dimension of the same name.*has 7.*0=..."),
        ("so101", RobotDimensions(6, 6, JOINTS, other), r"dimension 0 \(shoulder_pan.pos\).*shoulder_pan.pos=\.\.\."),
        ("0-1=2", RobotDimensions(6, 6), "maps 2 dimensions of the action to 1 of the state"),
    ):
        with pytest.raises(ValueError, match=message):
            dimensions(words, robot)
    with pytest.raises(ValueError, match="NAME=LOW:HIGH"):
        dimensions("so101", wraps=["wrist_roll=180"])
    with pytest.raises(ValueError, match="none can wrap"):
        dimensions("none", wraps=["wrist_roll=-180:180"])
    assert set(PRESETS) == {"aloha", "droid", "so101"}


# ----------------------------------------------------------------------------------------------------------- processor
STATE = np.array([10.0, 20.0, 30.0, -40.0, 170.0, 0.5])
RELATIVE = parse_relative_actions(["so101"], SO101, wraps=["wrist_roll=-180:180"])


def chunks(count=40):
    """Absolute actions of an arm within 20 units of its state, whose last joint crosses the end of its range."""
    actions = STATE + RNG.uniform(-20, 20, (count, H, 6))
    actions[..., 4] = -180 + np.mod(actions[..., 4] + 180, 360)
    actions[..., 5] = RNG.uniform(0, 1, (count, H))
    return actions.astype(np.float32)


def statistics(actions):
    offsets = to_relative(actions, STATE, RELATIVE)
    return {
        "state": compute_statistics(STATE + RNG.normal(size=(50, 6))),
        "actions": compute_statistics(actions.reshape(-1, 6)),
        "relative_actions": compute_statistics(offsets.reshape(-1, 6)),
    }


def make(state_encoding="text", **options):
    sizes = {"chunk_size": H, "max_action_dim": 8, "max_state_dim": 8}
    return KIVLAProcessor(
        KINDS["paligemma"].processor(),
        state_encoding=state_encoding,
        **{"relative_actions": RELATIVE, **sizes, **options},
    )


@pytest.mark.parametrize("state_encoding", ["text", "continuous", "none"])
def test_a_processor_gives_absolute_actions_back(tmp_path, state_encoding):
    actions = chunks()
    make(state_encoding, statistics=statistics(actions)).save_pretrained(tmp_path)
    processor = KIVLAProcessor.from_pretrained(tmp_path)
    assert processor.robot().units.relative == RELATIVE and processor.robot().needs_state
    batch = processor(images=[[image(1)]] * 2, text=["go"] * 2, state=[STATE] * 2, actions=actions[:2])
    normalized = batch["actions"]
    expected = processor.robot().actions.normalize(to_relative(actions[:2], STATE, RELATIVE))
    np.testing.assert_allclose(normalized[..., :6], expected, atol=1e-6)
    back = processor.unnormalize_actions(normalized, state=np.stack([STATE] * 2))
    assert torch.is_tensor(back) and back.dtype == torch.float32
    np.testing.assert_allclose(back.numpy(), actions[:2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(processor.normalize_actions(actions[:2], state=STATE), normalized[..., :6], atol=1e-6)


def test_what_is_left_of_a_chunk_is_made_relative_to_the_new_state():
    actions = chunks()
    processor = make(statistics=statistics(actions))
    new = STATE + np.array([1, 2, 3, 4, 5, 0.1])
    left = processor.normalize_actions(actions[0][2:], state=new)
    assert left.shape == (H - 2, 6) and left.dtype == np.float32
    np.testing.assert_allclose(
        processor.unnormalize_actions(left, clip_actions=False, state=new), actions[0][2:], rtol=1e-5, atol=1e-5
    )


def test_clipping_is_absolute():
    """After the state has been added, and not before; and a quaternion is never clipped into another one."""
    actions = chunks()
    processor = make(statistics=statistics(actions))
    far = processor.normalize_actions(actions[:1] * 0 + 500, state=STATE)
    given, clipped = processor.unnormalize_and_clip(far, state=STATE)
    np.testing.assert_allclose(given[0, 0, :4], actions.reshape(-1, 6).max(0)[:4], rtol=1e-6)
    assert clipped["values"] > 0
    turned = RelativeActions((0, 1, 2, 3), rotations=(Rotation((0, 1, 2, 3), "quaternion_xyzw"),))
    quaternion = np.array([0.0, 0.0, 0.0, 1.0])
    around = compute_statistics(quaternion + RNG.normal(size=(50, 4)) * 1e-3)
    units = ActionUnits({"actions": around, "relative_actions": around}, "quantile", None, turned, False)
    half = np.array([[1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(units.clip(half)[0], half)


def test_without_a_state_it_refuses():
    actions = chunks()
    processor = make("none", statistics=statistics(actions))
    for refused in (
        lambda: processor(images=[[image(1)]], text=["go"], actions=actions[:1]),
        lambda: processor(images=[[image(1)]], text=["go"]),
        lambda: processor.unnormalize_actions(np.zeros((H, 8))),
        lambda: processor.normalize_actions(actions[0]),
    ):
        with pytest.raises(ValueError, match="no `state`, and this policy's actions are relative"):
            refused()
    with pytest.raises(ValueError, match=r"shape \(5,\), and its statistics are of 6 dimensions"):
        processor.unnormalize_actions(np.zeros((H, 8)), state=STATE[:5])
    answer = processor(images=[[image(1)]], text=["What is it?"], response=["a cup"])
    assert "actions" not in answer, "questions need no state"


def test_statistics_of_absolute_actions_are_not_taken_for_relative_ones():
    of = statistics(chunks())
    del of["relative_actions"]
    with pytest.raises(ValueError, match=r'normalised by statistics\["relative_actions"\].*robot_statistics'):
        make(statistics=of)
    with pytest.raises(ValueError, match="action_dim = 5, but"):
        make(statistics=statistics(chunks()), action_dim=5)


def test_without_normalisation_offsets_are_what_is_learned():
    actions = chunks()
    processor = make(statistics=None, normalization="none")
    batch = processor(images=[[image(1)]], text=["go"], state=[STATE / 200], actions=actions[:1])
    offsets = to_relative(actions[:1], STATE / 200, RELATIVE)
    np.testing.assert_allclose(batch["actions"][..., :6], offsets, rtol=1e-5, atol=1e-5)
    back = processor.unnormalize_actions(batch["actions"].numpy(), state=STATE / 200)
    np.testing.assert_allclose(back, actions[:1], rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="relative_actions are RelativeActions, a dict of their arguments, or a word"):
        make(statistics=None, normalization="none", relative_actions=[0, 1])


def test_a_policy_of_which_nobody_knows_does_not_act(tmp_path):
    of = statistics(chunks())
    processor = make(statistics=of, relative_actions="unknown")
    processor.save_pretrained(tmp_path)
    for refused in (
        lambda: processor.unnormalize_actions(np.zeros((H, 8)), state=STATE),
        lambda: processor(images=[[image(1)]], text=["go"], state=[STATE]),
        lambda: KIVLAProcessor.from_pretrained(tmp_path).normalize_actions(chunks()[0], state=STATE),
    ):
        with pytest.raises(ValueError, match=r"not known whether .* relative .*--relative_actions none"):
            refused()
    told = KIVLAProcessor.from_pretrained(tmp_path, relative_actions="none")
    assert not told.robot().needs_state or told.state_encoding == "text"
    told.unnormalize_actions(np.zeros((H, 8)))
    assert "relative_actions" not in told.to_dict()
    relative = KIVLAProcessor.from_pretrained(tmp_path, relative_actions="so101")
    assert relative.robot().units.relative.dimensions == [0, 1, 2, 3, 4]
    new = KIVLAProcessor.from_pretrained(tmp_path, statistics={name: of[name] for name in ("state", "actions")})
    assert new.robot().units.is_known, "new statistics are of absolute actions"


def test_robots_of_a_policy_differ():
    of = statistics(chunks())
    robots = {"arm": {"statistics": of, "relative_actions": RELATIVE}, "cart": {"statistics": of}}
    processor = make(relative_actions=None, robots=robots)
    assert processor.robot("arm").units.relative == RELATIVE and processor.robot("cart").units.relative is None
    saved = processor.to_dict()["robots"]
    assert saved["arm"]["relative_actions"] == RELATIVE.to_json() and "relative_actions" not in saved["cart"]


# ----------------------------------------------------------------------------------------------------- ALOHA units
def test_aloha_becomes_pi():
    """openpi's numbers: joints 1 and 2 of both arms turn the other way; a gripper runs from 0 to 1 over its travel."""
    joints = np.arange(14) / 10
    flipped = actions_to_pi(joints[None])[0]
    signs = [1, -1, -1, 1, 1, 1] * 2
    arms = [*range(6), *range(7, 13)]
    np.testing.assert_allclose(flipped[arms], np.multiply(joints[arms], signs))
    np.testing.assert_allclose(state_to_pi(joints)[arms], np.multiply(joints[arms], signs))
    # actions: the command's radians, without where π0's gripper is closed
    expected = joints[[6, 13]] * (1.4910 + 0.6213) - 0.6213 - 0.5476
    np.testing.assert_allclose(flipped[[6, 13]], expected)
    actions = RNG.uniform(0, 1, (3, H, 14))
    np.testing.assert_allclose(actions_from_pi(actions_to_pi(actions)), actions, atol=1e-12)
    # state: the linkage's angle, of the positions closed and open
    position = np.array([0.01844, 0.05800])
    angle = np.arcsin(np.minimum((0.022**2 + position**2 - 0.036**2) / (2 * 0.022 * position), 1))
    grippers = state_to_pi(np.stack([np.zeros(14), np.ones(14)]))[:, 6]
    np.testing.assert_allclose(grippers, (angle - 0.5476) / (1.6296 - 0.5476))


def test_a_processor_in_pi_units_gives_aloha_units():
    actions, state = RNG.uniform(0, 1, (20, H, 14)), RNG.uniform(0, 1, 14)
    relative = parse_relative_actions(["aloha"], RobotDimensions(14, 14))
    offsets = to_relative(actions_to_pi(actions), state_to_pi(state), relative)
    of = {
        "state": compute_statistics(state_to_pi(RNG.uniform(0, 1, (50, 14)))),
        "actions": compute_statistics(actions_to_pi(actions).reshape(-1, 14)),
        "relative_actions": compute_statistics(offsets.reshape(-1, 14)),
    }
    processor = make(statistics=of, relative_actions=relative, adapt_to_pi=True, max_action_dim=14, max_state_dim=14)
    batch = processor(images=[[image(1)]], text=["go"], state=[state], actions=actions[:1])
    np.testing.assert_allclose(batch["actions"][0], processor.robot().actions.normalize(offsets[0]), atol=1e-6)
    back, clipped = processor.unnormalize_and_clip(batch["actions"], state=state[None])
    np.testing.assert_allclose(back, actions[:1], atol=1e-5)
    assert clipped["values"] == 0
    low, high = processor.robot().action_range
    np.testing.assert_allclose([low, high], [actions.reshape(-1, 14).min(0), actions.reshape(-1, 14).max(0)], atol=1e-9)
    with pytest.raises(ValueError, match="adapt_to_pi is for ALOHA"):
        make(statistics=statistics(chunks()), adapt_to_pi=True)

"""Commands keep to the limits, pass untouched if they do, and reach a target that jumped without passing it."""

import numpy as np
import pytest

from kivla.acting import ActionLimits

RATE = 50
SPEED, ACCELERATION = np.array([1.0, 0.5]), np.array([4.0, np.inf])


def run(limits: ActionLimits, actions: np.ndarray) -> np.ndarray:
    return np.stack([limits(action) for action in actions])


def derivatives(positions: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Speed and acceleration of each command, from rest at `start`."""
    speed = np.diff(np.concatenate([start[None], positions]), axis=0) * RATE
    return speed, np.diff(np.concatenate([np.zeros_like(start)[None], speed]), axis=0) * RATE


@pytest.mark.parametrize("seed", range(5))
def test_no_command_is_beyond_a_limit(seed):
    generator = np.random.default_rng(seed)
    wanted = np.cumsum(generator.normal(0, 0.05, (300, 2)), axis=0)
    wanted[100:] += generator.uniform(-1, 1, 2)  # the seam of two chunks
    limits = ActionLimits(RATE, SPEED, ACCELERATION)
    limits.reset(position=[0.2, -0.1])
    speed, acceleration = derivatives(run(limits, wanted), np.array([0.2, -0.1]))
    assert (np.abs(speed) <= SPEED * (1 + 1e-5)).all()
    assert (np.abs(acceleration) <= ACCELERATION * (1 + 1e-5)).all()
    assert limits.commands == 300 and (limits.limited > 0).all()
    assert limits.share == limits.limited.sum() / 600


def test_what_keeps_to_the_limits_passes_bit_for_bit():
    time = np.arange(400)[:, None] / RATE
    wanted = (0.2 * (1 - np.cos(2 * time)) * [1, 0.5]).astype(np.float32)
    speed, acceleration = derivatives(wanted.astype(np.float64), np.zeros(2))
    assert np.abs(speed).max() < 0.5 and np.abs(acceleration).max() < 3, "it does keep to them"
    limits = ActionLimits(RATE, SPEED, ACCELERATION)
    np.testing.assert_array_equal(run(limits, wanted), wanted, strict=True)
    assert limits.limited.tolist() == [0, 0] and limits.share == 0


@pytest.mark.parametrize("jump", [0.001, 0.013, 0.1, 2.0])
def test_a_target_that_jumps_is_reached_and_not_passed(jump):
    limits = ActionLimits(RATE, 1.0, 4.0)
    limits.reset(position=[0.0])
    positions = run(limits, np.full((200, 1), jump))[:, 0]
    assert (np.diff(positions) >= 0).all() and positions.max() <= jump + 1e-9
    assert positions[-1] == pytest.approx(jump, abs=1e-9)
    # No slower than needed: the time of the profile that accelerates and brakes at the limits.
    cruise = max(jump - 1 / 4, 0) / 1.0
    needed = cruise + 2 * np.sqrt(min(jump, 1 / 4) / 4)
    assert (positions < jump - 1e-9).sum() / RATE <= needed + 3 / RATE


def turned(degrees: np.ndarray) -> np.ndarray:
    """The same angles from -180 to 180."""
    return (degrees + 180) % 360 - 180


def test_an_angle_that_wraps_goes_the_shortest_way():
    limits = ActionLimits(RATE, max_speed=50.0, wraps={0: (-180, 180)})
    limits.reset(position=[179.0, 179.0])
    # From 179 to -179 degrees, and in a dimension that does not wrap.
    positions = run(limits, np.full((3, 2), -179.0))
    np.testing.assert_allclose(positions, [[-180, 178], [-179, 177], [-179, 176]], atol=1e-9)
    assert limits.limited.tolist() == [1, 3]
    # Across the end of its range and back, it moves as an angle without an end does.
    wanted = 160 + np.cumsum(np.random.default_rng(0).normal(0, 2, (300, 1)), axis=0)
    wanted[150:] += 40
    endless, wrapping = (ActionLimits(RATE, 60.0, 400.0, wraps=wraps) for wraps in ({}, {0: (-180, 180)}))
    for of in (endless, wrapping):
        of.reset(position=[150.0])
    moved = run(endless, wanted)
    assert (moved > 180).any() and endless.limited > 0, "otherwise this shows nothing"
    np.testing.assert_allclose(turned(run(wrapping, turned(wanted)) - moved), 0, atol=1e-6)
    assert wrapping.limited == endless.limited


def test_what_keeps_to_the_limits_passes_bit_for_bit_where_an_angle_wraps():
    wanted = turned(170 + np.arange(100.0)[:, None]).astype(np.float32)
    limits = ActionLimits(RATE, max_speed=60.0, wraps={0: (-180, 180)})
    np.testing.assert_array_equal(run(limits, wanted), wanted, strict=True)


def test_offsets_are_the_motion_itself():
    limits = ActionLimits(RATE, max_speed=1.0, max_acceleration=10.0, offsets=True)
    offsets = run(limits, np.array([[0.1], [0.1], [0.1], [-0.1], [0.004]]))[:, 0]
    np.testing.assert_allclose(offsets * RATE, [0.2, 0.4, 0.6, 0.4, 0.2])
    limits.reset()
    assert limits(np.array([0.004]))[0] == 0.004 and limits.limited.tolist() == [4]


def test_without_a_position_the_first_target_is_taken_as_it_is():
    limits = ActionLimits(RATE, max_speed=1.0)
    assert limits(np.array([5.0]))[0] == 5 and limits(np.array([6.0]))[0] == pytest.approx(5 + 1 / RATE)
    limits.reset()
    assert limits(np.array([9.0]))[0] == 9
    limits.reset(position=[9.5])
    assert limits(np.array([9.0]))[0] == pytest.approx(9.5 - 1 / RATE)


def test_limits_that_cannot_be():
    with pytest.raises(ValueError, match="Give max_speed, max_acceleration or both"):
        ActionLimits(RATE)
    for values in ({"max_speed": 0.0}, {"max_speed": [1.0, -1.0]}, {"max_acceleration": np.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(values))} must be positive"):
            ActionLimits(RATE, **values)
    for ends in ((180, -180), (0, np.inf)):
        with pytest.raises(ValueError, match="wraps: dimension 1 cannot wrap at"):
            ActionLimits(RATE, SPEED, wraps={1: ends})
    with pytest.raises(ValueError, match=r"wraps names dimension 2, but a command has the shape \(2,\)"):
        ActionLimits(RATE, SPEED, wraps={2: (0, 1)})(np.zeros(2))
    with pytest.raises(ValueError, match="Offsets are how far to go"):
        ActionLimits(RATE, SPEED, offsets=True, wraps={0: (0, 1)})
    with pytest.raises(ValueError, match=r"limits for 2 values, but a command has the shape \(3,\)"):
        ActionLimits(RATE, SPEED)(np.zeros(3))
    with pytest.raises(ValueError, match="rate must be finite, got inf"):
        ActionLimits(np.inf, SPEED)
    with pytest.raises(ValueError, match="a dimension of wraps must be a whole number, got '1'"):
        ActionLimits(RATE, SPEED, wraps={"1": (0, 1)})


def test_positions_that_cannot_be():
    """A joint that was not read is NaN; differences from it are no speeds, and what is no speed was not limited."""
    limits = ActionLimits(RATE, max_speed=1.0)
    with pytest.raises(ValueError, match=r"position that limits count from must be finite, got \[nan, 0.0\]"):
        limits.reset(position=[np.nan, 0.0])
    for position in (0.0, [0.0, 0.0, 0.0]):
        limits.reset(position=position)
        with pytest.raises(ValueError, match=r"limits count from has the shape \(3?,?\), but a command \(2,\)"):
            limits(np.zeros(2))


def test_whole_numbers_are_limited_to_what_lies_between_them():
    limits = ActionLimits(RATE, max_speed=1.0)
    limits.reset(position=[0])
    np.testing.assert_allclose(run(limits, np.ones((3, 1), dtype=np.int64))[:, 0] * RATE, [1, 2, 3])

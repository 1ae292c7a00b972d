"""Limits on the speed and the acceleration of commands, in robot units: the last thing before the robot."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from ..modeling_kivla.real_time_chunking import whole_number


class ActionLimits:
    """Holds commands to a largest speed and a largest acceleration, dimension by dimension.

    Commands that keep to the limits pass as they are, bit for bit. Others become the nearest ones that do: a target
    that jumps is approached at the largest speed, and braked for in time, so that it is not passed.

    Args:
        rate: commands per second.
        max_speed: robot units per second, (action_dim,) or one number for all; `inf` for a dimension without one.
        max_acceleration: robot units per second squared, likewise.
        offsets: whether commands are motions (how far to go in this step), and not targets (where to be).
        wraps: dimensions that are angles which wrap, and their range: `{4: (-180, 180)}`. They go the shortest way:
            from 179 to -179 degrees it is 2 degrees, and not -358.

    Attributes:
        commands: how many came.
        limited: (action_dim,) how many of them were changed, by dimension; None before the first.

    Raises:
        ValueError: no limit at all, one that is not positive, a range without a width, a dimension that is no whole
            number, or `wraps` beside `offsets`.
    """

    def __init__(
        self,
        rate: float,
        max_speed: ArrayLike | None = None,
        max_acceleration: ArrayLike | None = None,
        offsets: bool = False,
        wraps: Mapping[int, tuple[float, float]] | None = None,
    ):
        if max_speed is None and max_acceleration is None:
            raise ValueError("Give max_speed, max_acceleration or both: without them nothing is limited.")
        self.max_speed = np.asarray(np.inf if max_speed is None else max_speed, np.float64)
        self.max_acceleration = np.asarray(np.inf if max_acceleration is None else max_acceleration, np.float64)
        for name, value in (("rate", rate), ("max_speed", self.max_speed), ("max_acceleration", self.max_acceleration)):
            if not np.all(np.asarray(value) > 0):
                raise ValueError(f"{name} must be positive, got {value}.")
        if not rate < np.inf:
            raise ValueError(f"rate must be finite, got {rate}.")
        self.rate = rate
        self.offsets = offsets
        self.wraps = {dimension: (float(low), float(high)) for dimension, (low, high) in (wraps or {}).items()}
        if offsets and self.wraps:
            raise ValueError("Offsets are how far to go, and no angles that wrap: leave out wraps.")
        for dimension, (low, high) in self.wraps.items():
            if whole_number("a dimension of wraps", dimension) < 0 or not low < high < np.inf or low == -np.inf:
                raise ValueError(f"wraps: dimension {dimension} cannot wrap at {low:g} and {high:g}.")
        self.commands = 0
        self.limited: np.ndarray | None = None
        self.reset()

    @property
    def share(self) -> float:
        """Share of all values so far that were changed."""
        return 0.0 if self.limited is None else float(self.limited.sum() / (self.commands * self.limited.size))

    def reset(self, position: ArrayLike | None = None) -> None:
        """Begin anew, at rest; the counts stay.

        Args:
            position: where the robot is, in the units of its targets. Without it the first target is taken as it is,
                however far away. Offsets need none.

        Raises:
            ValueError: a position that is not finite.
        """
        self._position = None if position is None else np.asarray(position, np.float64)  # the last command's
        if position is not None and not np.isfinite(self._position).all():
            raise ValueError(f"The position that limits count from must be finite, got {self._position.tolist()}.")
        self._target = self._position  # the last one that was wanted
        self._speed: np.ndarray | float = 0.0

    def check(self, shape: tuple[int, ...]) -> None:
        """
        Raises:
            ValueError: commands of this shape have another number of values than there are limits, or than the
                position has that they are counted from.
        """
        for limit in (self.max_speed, self.max_acceleration):
            if limit.ndim and limit.shape != shape:
                raise ValueError(f"There are limits for {limit.size} values, but a command has the shape {shape}.")
        if self._position is not None and self._position.shape != shape:
            raise ValueError(
                f"The position that limits count from has the shape {self._position.shape}, but a command {shape}."
            )
        if self.wraps and max(self.wraps) >= shape[-1]:
            raise ValueError(f"wraps names dimension {max(self.wraps)}, but a command has the shape {shape}.")

    def check_wraps(self, wraps: Mapping[int, tuple[float, float]]) -> None:
        """Check that angles which wrap go the shortest way where they are limited.

        Args:
            wraps: those of the robot.

        Raises:
            ValueError: one does not; naming it.
        """
        for dimension, ends in wraps.items():
            limits = [limit[dimension] if limit.ndim else limit for limit in (self.max_speed, self.max_acceleration)]
            if not self.offsets and np.isfinite(limits).any() and self.wraps.get(dimension) != tuple(ends):
                raise ValueError(
                    f"Dimension {dimension} is an angle that wraps at {ends[0]:g} and {ends[1]:g}, and the limits do "
                    f"not say so: they would turn it the long way round. ActionLimits(..., wraps={dict(wraps)})."
                )

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """The command that may be sent, (action_dim,), of the same type (float64 for whole numbers).

        Raises:
            ValueError: see `check`.
        """
        self.check(action.shape)
        wanted = action.astype(np.float64)
        if not self.offsets and self._position is None:
            self._position = self._target = wanted
        # How fast this command would move the robot, and how fast it may.
        speed = wanted * self.rate if self.offsets else self._way(self._position, wanted) * self.rate
        allowed = speed if self.offsets else self._approach(wanted)
        allowed = np.clip(allowed, -self.max_speed, self.max_speed)
        change = self.max_acceleration / self.rate
        allowed = np.clip(allowed, self._speed - change, self._speed + change)
        # Within rounding of what was wanted it is what was wanted.
        is_limited = np.abs(allowed - speed) > 1e-6 * np.maximum(np.abs(speed), np.abs(self._speed) + 1e-6)
        moved = allowed / self.rate if self.offsets else self._within(self._position + allowed / self.rate)
        command = np.where(is_limited, moved, wanted)
        self._speed = np.where(is_limited, allowed, speed)
        if not self.offsets:
            self._position, self._target = command, wanted
        self.commands += 1
        self.limited = (0 if self.limited is None else self.limited) + is_limited.astype(np.int64)
        return command.astype(action.dtype if np.issubdtype(action.dtype, np.floating) else np.float64)

    def _approach(self, target: np.ndarray) -> np.ndarray:
        """The speed that goes with the target and closes the gap to it, as fast as can be braked in time.

        In units of what a step of braking takes off, a speed of m comes to rest after a way of m + (m - 1) + ...: that
        is (n + 1) m - n (n + 1) / 2 with n = floor(m), here solved for m.
        """
        gap = self._way(self._position, self._target)
        unit = np.where(np.isinf(self.max_acceleration), 1.0, self.max_acceleration / self.rate)
        way = np.abs(gap) * self.rate / unit
        n = np.floor(np.sqrt(0.25 + 2 * way) - 0.5)
        speed = unit * np.where(np.isinf(self.max_acceleration), way, (way + n * (n + 1) / 2) / (n + 1))
        return self._way(self._target, target) * self.rate + np.sign(gap) * speed

    def _way(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """How far it is from one position to another, the shortest way where an angle wraps."""
        way = end - start
        for dimension, (low, high) in self.wraps.items():
            half = (high - low) / 2
            way[..., dimension] = (way[..., dimension] + half) % (high - low) - half
        return way

    def _within(self, position: np.ndarray) -> np.ndarray:
        """The same position, with angles that wrap in their range."""
        for dimension, (low, high) in self.wraps.items():
            position[..., dimension] = low + (position[..., dimension] - low) % (high - low)
        return position


__all__ = ["ActionLimits"]

"""From a robot's actions to those that a policy learns, and back: units, offsets from the state, normalisation."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch

from .normalization import EPSILON, MOST, Normalizer, as_numbers, clip_to_range
from .pi_aloha import ALOHA_DIM, actions_from_pi, actions_to_pi, state_to_pi
from .relative_actions import RelativeActions, to_absolute, to_relative
from .relative_words import RobotDimensions, parse_relative_actions, preset_size

# Of a checkpoint that does not say whether its actions are relative to the state: it cannot act until somebody does
UNKNOWN = "unknown"
# Widths of the recorded range that actions of the same robot and units are never outside of it
_FAR = 2.0


class ActionUnits:
    """What the numbers of one robot's actions mean to a policy.

    Robot units → π0's, with `adapt_to_pi` → offsets from the state, where actions are relative → normalised.

    Args:
        statistics: of `RobotSpec`. Absolute actions are normalised by `"actions"`, relative ones by
            `"relative_actions"`; clipped are both to the range of `"actions"`.
        normalization: "quantile", "mean_std" or "none".
        action_dim: size of an action; None for that of the statistics.
        relative: of `RobotSpec`.
        adapt_to_pi: of `RobotSpec`.

    Attributes:
        relative: which dimensions are relative; None if none are, or if it is not known.
        is_known: whether it is known which actions are relative.
        normalizer: of what is learned.
        state_dim: size of the state by its statistics; None without any.

    Raises:
        ValueError: statistics that are missing, or words that do not fit the robot.
    """

    def __init__(
        self,
        statistics: dict[str, dict[str, np.ndarray]],
        normalization: str,
        action_dim: int | None,
        relative: RelativeActions | Mapping | str | None,
        adapt_to_pi: bool,
    ):
        self.statistics, self.normalization, self.adapt_to_pi = statistics, normalization, adapt_to_pi
        self.is_known = relative != UNKNOWN
        sizes = {name: np.size(next(iter(values.values()))) for name, values in statistics.items() if values}
        self.state_dim = sizes.get("state")
        if isinstance(relative, str):
            size = action_dim or sizes.get("relative_actions") or sizes.get("actions") or preset_size([relative])
            robot = RobotDimensions(size, self.state_dim or size)
            relative = parse_relative_actions([relative], robot) if self.is_known else None
        self.relative = RelativeActions.from_json(relative) if isinstance(relative, Mapping) else relative
        if not isinstance(self.relative, RelativeActions | None):
            raise ValueError(
                f"relative_actions are RelativeActions, a dict of their arguments, or a word; got {relative!r}."
            )
        if self.relative is not None and self.state_dim and self.relative.state_size > self.state_dim:
            raise ValueError(
                f"actions are relative to dimension {self.relative.state_size - 1} of the state, and its statistics "
                f"have {self.state_dim} dimensions. Say which dimension of the state belongs to which action."
            )
        self._learned = "actions" if self.relative is None else "relative_actions"
        if normalization != "none" and self._learned not in statistics:
            raise ValueError(
                f'these actions are normalised by statistics["{self._learned}"], and there are those of '
                f"{sorted(statistics)}. They are computed from a dataset by robot_statistics "
                "(kivla.training.data.relative_chunks)."
            )
        self.normalizer = Normalizer(statistics.get(self._learned), normalization)

    @property
    def dim(self) -> int | None:
        """Size of an action, where the statistics or what is relative tell it."""
        return self.normalizer.dim if self.relative is None else len(self.relative.state_dimensions)

    def check_known(self) -> None:
        """Refuse to act where nobody has said whether the actions are relative.

        Raises:
            ValueError: it is not known.
        """
        if not self.is_known:
            raise ValueError(
                "it is not known whether this policy's actions are relative to the robot's state: its checkpoint does "
                "not say, and the wrong ones may do harm. Say it: kivla convert ... --relative_actions none (or aloha, "
                "droid, "
                '0-5); or KIVLAProcessor.from_pretrained(folder, relative_actions="none").save_pretrained(folder).'
            )

    def check_state(self, state) -> None:
        """Refuse to act without the state where actions are relative to it.

        Raises:
            ValueError: there is none.
        """
        if self.relative is not None and state is None:
            raise ValueError(
                "there is no `state`, and this policy's actions are relative to the robot's state. Pass the state of "
                "the observation that they belong to, in robot units."
            )

    # ----------------------------------------------------------------------------------------------- there and back
    def learned(self, actions, state=None):
        """Actions (..., H, D), robot units -> those that are normalised: relative ones, where some are.

        Args:
            state: (..., Ds), robot units: that of the chunk's first observation; only needed where actions are
                relative.

        Raises:
            ValueError: it is needed and not there, or sizes do not fit.
        """
        self.check_known()
        if self.adapt_to_pi:
            actions = actions_to_pi(as_numbers(actions))
        if self.relative is not None:
            actions = to_relative(actions, self._reference(state), self.relative)
        return actions

    def normalize(self, actions: np.ndarray, state=None) -> np.ndarray:
        """Actions (..., H, D), robot units -> normalised float32; see `learned`."""
        return self.normalizer.normalize(self.learned(actions, state))

    def unnormalize(self, chunk, state=None):
        """Inverse of `normalize`: absolute actions in robot units, float32."""
        self.check_known()
        learned = self.normalizer.unnormalize(chunk)
        if self.relative is None and not self.adapt_to_pi:
            return learned
        actions = as_numbers(learned)
        if self.relative is not None:
            actions = to_absolute(actions, self._reference(state), self.relative)
        actions = self._from_pi(actions)
        return torch.as_tensor(actions).to(learned) if torch.is_tensor(learned) else actions.astype(np.float32)

    def clip(self, actions) -> tuple:
        """Hold absolute actions (..., H, D) within `range`, and say what was changed (`clip_to_range`; None without
        one).

        Dimensions that are a rotation together stay as they are: each by itself has no range.
        """
        if self.range is None:
            return actions, None
        low, high = (ends.copy() for ends in self.range)
        if self.relative is not None:
            low[self.relative.rotated], high[self.relative.rotated] = -np.inf, np.inf
        return clip_to_range(actions, low, high)

    def check_plausible(self, actions) -> None:
        """Refuse absolute actions (..., D) that are far outside of all that were recorded: they are in other units.

        Raises:
            ValueError: one lies more than `_FAR` widths of its dimension's range outside of it.
        """
        if self.range is None:
            return
        low, high = self.range
        moves = high - low > EPSILON
        if self.relative is not None:
            moves[self.relative.rotated] = False
        actions = as_numbers(actions)
        excess = np.maximum(low - actions, actions - high) / np.where(moves, high - low, 1.0)
        excess = np.where(moves, excess, 0.0).reshape(-1, len(low)).max(axis=0)  # (D,)
        worst = int(excess.argmax())
        if excess[worst] > _FAR:
            raise ValueError(
                f"in dimension {worst} they lie {excess[worst]:.3g} widths of the recorded range ({low[worst]:g} to "
                f"{high[worst]:g}) outside of it: are they in robot units, and of this robot?"
            )

    def state(self, state: np.ndarray) -> np.ndarray:
        """A state (..., Ds), robot units -> in the units of the statistics."""
        return state_to_pi(state) if self.adapt_to_pi else state

    # ------------------------------------------------------------------------------------- what is known of the data
    @property
    def mean(self) -> np.ndarray | None:
        """(D,), robot units: the average absolute action; None without its statistics."""
        if "actions" not in self.statistics:
            return None
        return self._from_pi(np.asarray(self.statistics["actions"]["mean"], dtype=np.float64))

    @cached_property
    def range(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Smallest and largest absolute action, each (D,), robot units.

        None if the statistics do not have `min` and `max`, or without normalisation (values are then not known to be in
        robot units).
        """
        recorded = self.statistics.get("actions", {})
        if self.normalization == "none" or not {"min", "max"} <= recorded.keys():
            return None
        ends = self._from_pi(np.array([recorded["min"], recorded["max"]], dtype=np.float64))
        return ends.min(axis=0), ends.max(axis=0)  # of a joint that turns the other way they change places

    @cached_property
    def bound(self) -> np.ndarray | float:
        """Largest normalised value that is learned, (D,): `MOST`, and more where the statistics' own data goes further
        (those of older policies). Infinite without normalisation."""
        if self.normalization == "none":
            return np.inf
        recorded = self.statistics[self._learned]
        if not {"min", "max"} <= recorded.keys():
            return MOST
        return np.maximum(MOST, np.abs([self.normalizer.normalize(recorded[name]) for name in ("min", "max")]).max(0))

    def _reference(self, state) -> np.ndarray:
        """The state that actions are relative to, in the units of the statistics."""
        self.check_state(state)
        state = as_numbers(state)
        if self.state_dim is not None and state.shape[-1:] != (self.state_dim,):
            raise ValueError(
                f"`state` has the shape {state.shape}, and its statistics are of {self.state_dim} dimensions: is it "
                "the state of another robot?"
            )
        return self.state(state)

    def _from_pi(self, actions: np.ndarray) -> np.ndarray:
        return actions_from_pi(actions) if self.adapt_to_pi else actions


def check_pi_dimensions(action_dim: int) -> None:
    """
    Raises:
        ValueError: these are not the actions of ALOHA.
    """
    if action_dim != ALOHA_DIM:
        raise ValueError(
            f"adapt_to_pi is for ALOHA, whose actions have {ALOHA_DIM} dimensions; these have {action_dim}. Leave it "
            "out."
        )


__all__ = ["UNKNOWN", "ActionUnits", "check_pi_dimensions"]

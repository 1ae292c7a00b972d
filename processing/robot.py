"""One robot's side of a processor: what its numbers mean, and which cameras it has."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .normalization import Normalizer, statistics_from_json, statistics_to_json


@dataclass
class Robot:
    """
    Args:
        statistics: `{"state": {...}, "actions": {...}}` of this robot's data in its units, or None.
        cameras: names of its cameras, in the order in which the model sees them; None for any number of images.
        action_dim: real size of an action; that of the statistics if None.
        normalization: "quantile", "mean_std" or "none".
        reads_state: whether the policy reads the robot's state.
        max_action_dim: width of the model's chunks.

    Raises:
        ValueError: statistics that are missing or do not fit.
    """

    statistics: dict[str, dict[str, np.ndarray]] | None
    cameras: Sequence[str] | None
    action_dim: int | None
    normalization: str
    reads_state: bool
    max_action_dim: int
    actions: Normalizer = field(init=False)
    state: Normalizer | None = field(init=False, default=None)

    def __post_init__(self):
        if self.statistics is None and self.normalization != "none":
            raise ValueError(
                f'normalization="{self.normalization}" needs the statistics of your robot\'s data: pass '
                'statistics=LeRobotDataset(...).statistics, or normalization="none" if values are normalised already.'
            )
        statistics = self.statistics or {}
        self.cameras = None if self.cameras is None else list(self.cameras)
        self.actions = Normalizer(statistics.get("actions"), self.normalization)
        if self.reads_state:
            if self.normalization != "none" and "state" not in statistics:
                raise ValueError(
                    f'the policy reads the state and needs statistics["state"], but the statistics are of '
                    f'{sorted(statistics)}. For a robot without state use state_encoding="none".'
                )
            self.state = Normalizer(statistics.get("state"), self.normalization)
        if self.action_dim is None:
            self.action_dim = self.actions.dim or self.max_action_dim
        if self.actions.dim not in (None, self.action_dim):
            raise ValueError(
                f"action_dim = {self.action_dim}, but the statistics are of {self.actions.dim}-dimensional "
                "actions: are these the statistics of another robot?"
            )
        if not 1 <= self.action_dim <= self.max_action_dim:
            raise ValueError(
                f"Actions have {self.action_dim} dimensions, but max_action_dim is {self.max_action_dim}. Build "
                f"processor and model with max_action_dim of at least {self.action_dim}."
            )

    @property
    def mean_action(self) -> np.ndarray:
        """(action_dim,), robot units: the average action of the data; zero without statistics."""
        return self.statistics["actions"]["mean"] if self.statistics else np.zeros(self.action_dim)

    def to_dict(self) -> dict:
        """What belongs to the robot alone, ready for JSON."""
        statistics = self.statistics
        if statistics is not None:
            statistics = {name: statistics_to_json(values) for name, values in statistics.items()}
        return {"statistics": statistics, "cameras": self.cameras, "action_dim": self.action_dim}


def robot_from_json(values: dict) -> dict:
    """Inverse of `Robot.to_dict`, as arguments."""
    statistics = values["statistics"]
    if statistics is not None:
        statistics = {name: statistics_from_json(entries) for name, entries in statistics.items()}
    return {**values, "statistics": statistics}


__all__ = ["Robot", "robot_from_json"]

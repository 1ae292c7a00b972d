"""Options by which commands open a dataset of demonstrations."""

from dataclasses import dataclass, field
from functools import partial

from ..processing.observation_history import NO_HISTORY, ObservationHistory
from .data.episode_selection import parse_episodes, without
from .data.robot_dataset import DATASET_FORMAT_HELP, RobotDataset, dataset_reader
from .policy_options import refuse

_EPISODES = "numbers, ranges (0-49), or @FILE with such."
_LEROBOT = ("dataset_keys", "action_key", "state_key", "tolerance_s")


@dataclass(kw_only=True)
class KeyOptions:
    """Which columns of a LeRobot dataset are what."""

    dataset_keys: str | None = field(
        default=None, metadata={"help": "Whose names its columns have: openpi, or gr00t (meta/modality.json)."}
    )
    action_key: list[str] | None = field(
        default=None, metadata={"help": "Columns of the actions, put after each other; action, or what plainly is."}
    )
    state_key: list[str] | None = field(
        default=None, metadata={"help": "Columns of the state, put after each other; none for no state."}
    )
    tolerance_s: float | None = field(
        default=None, metadata={"help": "Seconds that a row may be from its video frame; half a frame."}
    )

    def reader_arguments(self) -> dict:
        """What of these is given, by the names that `LeRobotDataset` has for it."""
        given = {"keys" if name == "dataset_keys" else name: getattr(self, name) for name in _LEROBOT}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(kw_only=True)
class DatasetOptions(KeyOptions):
    """Format, columns and episodes of a dataset."""

    dataset_format: str = field(default="lerobot", metadata={"help": DATASET_FORMAT_HELP})
    episodes: list[str] | None = field(default=None, metadata={"help": f"Episodes to use: {_EPISODES} All."})
    exclude_episodes: list[str] | None = field(default=None, metadata={"help": f"Episodes to leave out: {_EPISODES}"})

    def __post_init__(self):
        self.episodes = parse_episodes(self.episodes)
        self.exclude_episodes = parse_episodes(self.exclude_episodes, "exclude_episodes")
        if self.dataset_format != "lerobot":
            reason = f"it is for LeRobot datasets, and --dataset_format is {self.dataset_format}"
            refuse({name: reason for name in _LEROBOT if getattr(self, name) is not None})

    def reader(self) -> partial:
        """Make what opens a dataset: the format's class, with the columns that were chosen."""
        return partial(dataset_reader(self.dataset_format), **self.reader_arguments())

    def camera_names(self, dataset: str) -> list[str]:
        """Name the cameras of a dataset."""
        return dataset_reader(self.dataset_format).camera_names(dataset)

    def chosen_episodes(self, dataset: str, also_without: list[int] | None = None) -> list[int] | None:
        """Say which episodes of a dataset to open; None for all.

        Args:
            also_without: those of `--eval_episodes`, which are left out beside `exclude_episodes`, whether they are
                among `episodes` or not.

        Raises:
            ValueError: the dataset has no such episode to evaluate on, or no episode is left.
        """
        if not self.exclude_episodes and not also_without:
            return self.episodes
        there = dataset_reader(self.dataset_format).episode_numbers(dataset)
        if unknown := sorted(set(also_without or ()) - set(there)):
            raise ValueError(
                f"--eval_episodes: {dataset} has no episode {unknown[0]}. It has {len(there)}, {min(there)} to "
                f"{max(there)}."
            )
        episodes = there if self.episodes is None else self.episodes
        if self.exclude_episodes:
            episodes = without(episodes, self.exclude_episodes)
        rest = [episode for episode in episodes if episode not in set(also_without or ())]
        if not rest:
            raise ValueError(
                f"--eval_episodes holds out all {len(episodes)} episodes of {dataset} that are to be used: nothing is "
                "left to train on. Hold out fewer."
            )
        return rest

    def open(
        self,
        dataset: str,
        chunk_size: int,
        cameras: list[str] | None,
        robot: str | None,
        history: ObservationHistory = NO_HISTORY,
    ) -> RobotDataset:
        """Open a dataset as the options say, for a policy that looks back so far."""
        return self.reader()(dataset, chunk_size, self.chosen_episodes(dataset), cameras, robot).look_back(history)


__all__ = ["DatasetOptions", "KeyOptions"]

"""Demonstrations that a policy is measured on: opened as what it was trained on, and compared with it."""

from dataclasses import dataclass, field

from ..modeling_kivla.pipeline_kivla import DTYPE_OPTION, NOISE_SCALE_OPTION, ActionPredictionPipeline
from ..processing.camera_names import CAMERAS_HELP, parse_cameras
from .data.camera_naming import unseen_note
from .data.robot_dataset import RobotDataset
from .dataset_options import DatasetOptions
from .training_facts import compare_with_policy, trained_columns


@dataclass(kw_only=True)
class PolicyDataOptions(DatasetOptions):
    """Which demonstrations, and how the policy acts on them."""

    robot: str | None = field(default=None, metadata={"help": "Whose data it is, of a policy of several robots."})
    cameras: list[str] | None = field(default=None, metadata={"help": CAMERAS_HELP})
    num_steps: int | None = field(default=None, metadata={"help": "Euler steps; the policy's default."})
    noise_scale: float | None = field(default=None, metadata=NOISE_SCALE_OPTION)
    dtype: str = field(default="auto", metadata=DTYPE_OPTION)
    seed: int = field(default=0, metadata={"help": "Seed of the noise."})

    def acting_options(self, pipe: ActionPredictionPipeline) -> dict:
        """What the pipeline takes beside observations.

        Raises:
            ValueError: cameras that the policy does not have.
        """
        names = parse_cameras(self.cameras)
        pipe.processor.check_cameras(names)
        return {"seed": self.seed, "num_steps": self.num_steps, "noise_scale": self.noise_scale, "cameras": names}

    def open_for(self, pipe: ActionPredictionPipeline, policy: str, dataset: str) -> RobotDataset:
        """Open a dataset by the columns that the policy was trained on, unless others are named; print what differs.

        Args:
            policy: where the pipeline is from.
        """
        robot = pipe.processor.robot(self.robot)
        there = self.camera_names(dataset)
        cameras = robot.among(there, parse_cameras(self.cameras))
        if self.dataset_format == "lerobot" and self.dataset_keys is None:
            for key, columns in trained_columns(policy, self.robot).items():
                if getattr(self, key) is None:
                    setattr(self, key, columns)
                    print(f"{dataset}: read as what the policy was trained on, --{key} {' '.join(columns)}")
        data = self.open(dataset, pipe.processor.chunk_size, cameras, self.robot, pipe.observation_history)
        for note in [*data.notes, *unseen_note(data, there)]:
            print(f"{data.name}: {note}")
        for note in compare_with_policy(policy, robot, data):
            print(note)
        return data

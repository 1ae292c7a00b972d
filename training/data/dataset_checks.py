"""Whether data and policy agree on sizes, before anything is read."""

import logging
from collections.abc import Mapping, Sequence

from torch.utils.data import ConcatDataset, IterableDataset, Subset

from ...processing import KIVLAProcessor
from .augmentation import AUGMENTATIONS, check_wrist_cameras
from .data_ranges import range_problems
from .mixture import Mixture
from .robot_dataset import RobotDataset

logger = logging.getLogger(__name__)


def robot_datasets(dataset) -> list[RobotDataset]:
    """The robot datasets that a dataset is made of. Others cannot tell their sizes: see `KIVLACollator`."""
    if isinstance(dataset, RobotDataset):
        return [dataset]
    if isinstance(dataset, Subset):
        return robot_datasets(dataset.dataset)
    parts = {ConcatDataset: "datasets", Mixture: "sources"}
    for kind, name in parts.items():
        if isinstance(dataset, kind):
            return [found for part in getattr(dataset, name) for found in robot_datasets(part)]
    return []


def check_dataset(dataset, processor: KIVLAProcessor, names: Mapping[str, str | None] | None = None) -> None:
    """Check that a dataset fits the processor.

    Args:
        names: an explicit mapping of cameras: see `KIVLACollator`.

    Raises:
        ValueError: a robot dataset in it has another chunk size, history or action size or other cameras than the
            processor, no state where actions are relative to it, or belongs to an unknown robot. (Cameras in another
            order are the same cameras.)
    """
    for data in robot_datasets(dataset):
        try:
            robot = processor.robot(data.robot)
        except ValueError as error:
            raise ValueError(f"{data.name}: {error}") from error
        if data.chunk_size != processor.chunk_size:
            raise ValueError(
                f"{data.name} was read with chunk_size={data.chunk_size}, but the policy acts in chunks of "
                f"{processor.chunk_size}: {type(data).__name__}(..., chunk_size={processor.chunk_size}), or build "
                f"model and processor with chunk_size={data.chunk_size}."
            )
        if data.observation_history != processor.observation_history:
            raise ValueError(
                f"{data.name} was read with {data.observation_history} in an example, and the policy sees "
                f"{processor.observation_history}: {type(data).__name__}(...).look_back(processor.observation_history)."
            )
        if data.action_dim != robot.action_dim:
            raise ValueError(
                f"{data.name} has actions of {data.action_dim} dimensions, the processor's robot has "
                f"{robot.action_dim}: is it the data of another robot?"
            )
        if robot.units.relative is not None and not data.state_dim:
            raise ValueError(
                f"{data.name} has no state, and the actions of the processor's robot are relative to it: they cannot "
                "be made of this data."
            )
        if robot.cameras is None and names is None:
            continue
        try:
            placed = robot.place(data.cameras, names)
        except ValueError as error:
            raise ValueError(
                f"{data.name}: {error} For KIVLATrainer the mapping is data_collator=KIVLACollator(processor, cameras="
                f"{{...}}); fewer cameras are chosen by {type(data).__name__}(..., cameras=[...])."
            ) from error
        if list(placed.values()) != data.cameras and "cameras" not in data[0]:
            raise ValueError(
                f"{data.name} has the cameras {data.cameras}, the processor {robot.cameras}, and the examples of "
                f'{type(data).__name__} do not say which image is which. Add "cameras": self.cameras to them.'
            )


def check_augmentation(dataset, augment: str, wrist_cameras: Sequence[str] | None, processor: KIVLAProcessor) -> None:
    """Check that the pictures of a training dataset can be augmented as told.

    Args:
        augment: one of `AUGMENTATIONS`.
        wrist_cameras: those that were told to be on a wrist, or None.

    Raises:
        ValueError: its examples have no numbers to draw by, or it has no such camera.
    """
    if AUGMENTATIONS[augment] is not None and isinstance(dataset, IterableDataset):
        raise ValueError(
            "augment draws by the number of an example, and a stream (IterableDataset) has none: use a dataset with a "
            "length, or leave out augment."
        )
    if wrist_cameras is not None:
        cameras = [camera for data in robot_datasets(dataset) for camera in data.cameras]
        cameras = cameras or [camera for robot in processor.robots.values() for camera in robot.cameras or ()]
        check_wrist_cameras(wrist_cameras, list(dict.fromkeys(cameras)))


def check_ranges(dataset, processor: KIVLAProcessor) -> None:
    """Say where many values of the robots' data lie far outside what the processor was normalised for.

    Raises:
        ValueError: actions vary in a dimension that was constant there, so that the policy could never do them.
    """
    for data in robot_datasets(dataset):
        for problem in range_problems(processor.robot(data.robot), data):
            if problem.is_lost:
                raise ValueError(
                    f"The processor's statistics are not for this data: {problem.text}. Make the processor with the "
                    "statistics of all that the policy is to learn, before its first step; or take the policy to this "
                    "data with new ones: `kivla train --policy ... --adapt`."
                )
            logger.warning("%s", problem.text)


__all__ = ["check_augmentation", "check_dataset", "check_ranges", "robot_datasets"]

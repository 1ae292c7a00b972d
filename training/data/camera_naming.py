"""A policy knows its cameras by name: where its processor has none, they come from what it is trained on."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers.trainer_utils import has_length

from ...processing import KIVLAProcessor
from .mixture import Mixture
from .robot_dataset import RobotDataset
from .vlm.dataset import VLMDataset
from .vlm.texts import TextDataset

# Examples of each part of a dataset that are looked at
_LOOKED_AT = 64


def name_cameras(processor: KIVLAProcessor, dataset, mapping: Mapping[str, str | None] | None = None) -> list[str]:
    """Give every robot without camera names those of its training data.

    They are those of a robot dataset, or of the first example with actions. Images in lists without names become
    `camera_0`, `camera_1`, ...: so many, and in this order, the policy then takes.

    Args:
        mapping: an explicit one (see `KIVLACollator`) has the names already.

    Returns:
        A sentence for each robot that was named, for people.
    """
    notes = []
    for name, robot in processor.robots.items():
        if robot.cameras is not None:
            continue
        if mapping is not None:
            found = list(mapping), False
        else:
            found = next((names for part in _parts(dataset) if (names := _names(part, name)) is not None), None)
        if found is None:
            continue
        names, are_made_up = found
        robot.cameras = names
        of_robot = "" if name is None else f" of robot {name!r}"
        if are_made_up:
            notes.append(
                f"The images{of_robot} have no names: the policy takes {len(names)} for each example, in the order of "
                f"its training data, and calls them {names}. To name them, make the processor with cameras=[...]."
            )
        else:
            notes.append(f"The policy's cameras{of_robot} are those of its training data: {names}, in this order.")
    return notes


def unseen_note(data: RobotDataset, names: Sequence[str]) -> list[str]:
    """Say which cameras of a dataset were passed over because the policy has no such; empty where none were.

    Args:
        data: opened with the policy's cameras.
        names: of all cameras that it has.
    """
    unseen = [name for name in names if name not in data.cameras]
    if not unseen:
        return []
    return [f"The policy does not see the data's {'camera' if len(unseen) == 1 else 'cameras'} {', '.join(unseen)}."]


def _parts(dataset) -> Iterator[Dataset]:
    """What a dataset is made of. (Items of a `Subset` are looked at through it: others may not be there.)"""
    parts = {ConcatDataset: "datasets", Mixture: "sources"}
    for kind, attribute in parts.items():
        if isinstance(dataset, kind):
            for part in getattr(dataset, attribute):
                yield from _parts(part)
            return
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, RobotDataset):
        dataset = dataset.dataset
    if dataset is not None and not isinstance(dataset, VLMDataset | TextDataset):
        yield dataset


def _names(part, robot: str | None) -> tuple[list[str], bool] | None:
    """Names of the cameras of one robot in a part of the data, and whether they are made up; None if it has none."""
    if isinstance(part, RobotDataset):
        return (list(part.cameras), False) if part.robot == robot else None
    for example in _first(part):
        if not isinstance(example, Mapping) or example.get("actions") is None or example.get("robot") != robot:
            continue
        images, names = example.get("images"), example.get("cameras")
        if isinstance(images, Mapping):
            names = list(images)
        if names is not None:
            return list(names), False
        if images is None or isinstance(images, list | tuple):  # the processor refuses all else
            return [f"camera_{i}" for i in range(len(images or ()))], True
    return None


def _first(part) -> Iterator:
    return (part[i] for i in range(min(len(part), _LOOKED_AT))) if has_length(part) else islice(part, _LOOKED_AT)


__all__ = ["name_cameras", "unseen_note"]

"""Which cameras a LeRobot dataset has, and which of them are used."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..camera_choice import choose_cameras
from .hub_files import HubFolder
from .messages import refuse_missing, some
from .metadata import LeRobotMetadata


def is_pictures(feature: dict) -> bool:
    """Whether a feature of info.json is a camera or a depth map."""
    return feature.get("dtype") in ("video", "image")


def is_camera(feature: dict) -> bool:
    """Whether a feature of info.json is a camera. (Depth maps are none.)"""
    if not is_pictures(feature):
        return False
    details = [feature.get(name) for name in ("info", "video_info")]
    details = [part for part in details if isinstance(part, dict)]
    return not any(part.get("video.is_depth_map") or part.get("is_depth_map") for part in details)


def cameras_with_files(metadata: LeRobotMetadata, hub: HubFolder | None) -> list[str]:
    """Name the cameras of which there are pictures; nothing is fetched.

    Args:
        hub: where the dataset is; None if it is a folder of this machine.
    """

    def has_videos(camera: str) -> bool:
        if hub is not None:  # by the first episode's: nothing is fetched
            return metadata.has_videos(camera) and all(
                map(hub.has, metadata.video_files(camera, metadata.recorded[:1]))
            )
        return any(not gone for gone in _videos_gone(metadata, camera, metadata.recorded).values())

    return [
        camera
        for camera, feature in metadata.info["features"].items()
        if is_camera(feature) and (feature["dtype"] == "image" or has_videos(camera))
    ]


def unnamed_cameras(metadata: LeRobotMetadata, embedded: Collection[str]) -> list[str]:
    """Name what there are pictures of although info.json does not say so.

    Args:
        embedded: columns of the data files that hold picture files for certain, not only bytes or words.
    """
    features = metadata.info["features"]
    return [camera for camera in [*metadata.filmed(), *embedded] if not is_pictures(features.get(camera, {}))]


def select_cameras(
    name: str,
    metadata: LeRobotMetadata,
    positions: np.ndarray,
    stored_images: Collection[str],
    unnamed: Collection[str],
    no_pictures: Mapping[str, str],
    lacking: Mapping[str, str],
    wanted: Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """Find the cameras to use, and check that their files are there.

    Args:
        name: the dataset's, for messages.
        positions: of the selected episodes.
        stored_images: columns of the data files that hold pictures.
        unnamed: see `unnamed_cameras`.
        no_pictures: other columns → their type, for messages.
        lacking: columns that only some data files have → where not, for messages.
        wanted: see `choose_cameras`; None for all that have files.

    Returns:
        The cameras' feature names, and notes.

    Raises:
        ValueError: an unknown camera, or one that is selected twice; a column that should hold pictures and does not.
        FileNotFoundError: pictures are missing.
    """
    features = metadata.info["features"]
    announced = [key for key, feature in features.items() if is_camera(feature)]
    notes = []
    if unnamed:
        notes.append(
            f"There are pictures of {some(unnamed)}, which the features of meta/info.json do not name as "
            f"{'a camera' if len(unnamed) == 1 else 'cameras'}: not used. Give them the dtype video or image there."
        )
    try:
        selected = choose_cameras(name, announced, wanted)
    except ValueError as error:
        raise ValueError(" ".join([str(error), *notes])) from error
    if wrong := [camera for camera in selected if features[camera]["dtype"] == "image" and camera in no_pictures]:
        raise ValueError(
            f"{name}: the column of the camera {wrong[0]!r} holds {no_pictures[wrong[0]]}; expected are image files as "
            "bytes, alone or with their path, or paths of them. Export the dataset again, or leave the camera out."
        )
    if gone_from := [camera for camera in selected if features[camera]["dtype"] == "image" and camera in lacking]:
        raise FileNotFoundError(
            f"{name}: the column of the camera {gone_from[0]!r} {lacking[gone_from[0]]}. Export the dataset again, or "
            "leave these episodes or the camera out."
        )
    gone = {camera: _videos_gone(metadata, camera, positions) for camera in selected if camera not in stored_images}
    absent = [camera for camera, paths in gone.items() if all(paths.values())]
    if absent and (wanted is not None or len(absent) == len(selected)):
        raise FileNotFoundError(
            f"{name}: info.json announces {some(absent)}, but the folder holds no picture of "
            f"{'them' if len(absent) > 1 else 'it'}. Download or copy the dataset again, or leave the cameras out "
            "(cameras=[] for none)." + (f" {metadata.note_on_videos}" if metadata.note_on_videos else "")
        )
    notes += [f"info.json announces the camera {camera}, but the folder holds no picture of it: left out."
             for camera in absent]  # fmt: skip
    selected = [camera for camera in selected if camera not in absent]
    missing = [path for camera in selected for path, is_gone in gone.get(camera, {}).items() if is_gone]
    refuse_missing(name, missing, f"video of the cameras {some(selected)}")
    return selected, notes


def _videos_gone(metadata: LeRobotMetadata, camera: str, positions: np.ndarray) -> dict[Path, bool]:
    """The video files of a camera → whether they are missing; none where the metadata does not say where they are."""
    if not metadata.has_videos(camera):
        return {}
    return {path: not metadata.has(path) for path in metadata.video_files(camera, positions)}


__all__ = ["cameras_with_files", "is_camera", "select_cameras", "unnamed_cameras"]

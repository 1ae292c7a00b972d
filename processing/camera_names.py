"""Names of cameras: the same camera is `observation.images.wrist` in a dataset and `wrist` on a robot."""

from collections.abc import Sequence


def short_name(camera: str) -> str:
    """Return the last part of a camera's name: `observation.images.wrist` is `wrist`."""
    return camera.rpartition(".")[2]


def match_cameras(given: Sequence[str], cameras: Sequence[str]) -> dict[str, str]:
    """Find each of a policy's cameras among given names: camera → the name that was given for it.

    A name matches as a whole, and by its last part where that is said once on either side. Cameras that were not given
    are left out.
    """
    return {camera: name for camera in cameras if (name := _match(camera, given, cameras)) is not None}


def _match(camera: str, given: Sequence[str], cameras: Sequence[str]) -> str | None:
    if camera in given:
        return camera
    names = [name for name in given if short_name(name) == short_name(camera)]
    others = [other for other in cameras if short_name(other) == short_name(camera)]
    return names[0] if len(names) == len(others) == 1 else None


__all__ = ["match_cameras", "short_name"]

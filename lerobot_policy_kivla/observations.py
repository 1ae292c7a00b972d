"""A batch of LeRobot's -> observations as KIVLA's pipeline and processor take them."""

import logging
from collections.abc import Mapping
from functools import cache

import numpy as np
from lerobot.utils.constants import OBS_IMAGE, OBS_IMAGES, OBS_PREFIX, OBS_STATE
from torch import Tensor

from kivla.processing.robot_spec import RobotSpec

log = logging.getLogger(__name__)


def image_key(camera: str) -> str:
    """LeRobot's key of a camera: cameras of LeRobot datasets are named by it, others get its prefix."""
    return camera if camera.startswith(OBS_PREFIX) else f"{OBS_IMAGES}.{camera}"


def to_observations(
    batch: dict, spec: RobotSpec, robot: str | None = None, names: Mapping[str, str] | None = None
) -> list[dict]:
    """One dict for each environment, or for each frame of a dataset.

    Args:
        batch: with images (B, 3, height, width), floats in [0, 1], by their keys; `observation.state` (B, Ds); `task`,
            B strings. For a policy with a history both may have n moments, (B, n, ...), the newest last; those that are
            padded (`..._is_pad`, at the beginning of an episode) are missing.
        spec: the policy's robot, which knows its cameras, and whether the state is needed. Cameras whose images the
            batch lacks are missing.
        robot: its name, for a policy of several robots.
        names: an explicit mapping, the policy's camera → the key of its images.

    Returns:
        `images` (by camera name: arrays (height, width, 3) or lists of them, None for a missing camera), `text`,
        `state` and `robot`.

    Raises:
        ValueError: no image is of one of the policy's cameras, or there are images that are not; images of another
            shape; not one instruction for each observation.
    """
    keys = _keys(batch, spec, names)
    columns = {camera: _pictures(key, batch) for camera, key in keys.items() if key is not None}
    text = batch.get("task")
    text = [text] if isinstance(text, str) else text
    size = len(next(value for key, value in batch.items() if key.startswith(OBS_PREFIX) and isinstance(value, Tensor)))
    if text is None or len(text) != size:
        raise ValueError(f"There must be one `task` for each of the {size} observations, got {text!r}.")
    state = _states(batch) if spec.needs_state and OBS_STATE in batch else [None] * size
    observations = []
    for i in range(size):
        images = {camera: columns[camera][i] if camera in columns else None for camera in keys}
        observations.append({"images": images, "text": text[i], "state": state[i], "robot": robot})
    return observations


def _pictures(key: str, batch: dict) -> list:
    """(B, [n,] 3, height, width) -> B pictures or clips; KIVLA's processor checks the range and rounds to 8 bits."""
    images = batch[key]
    if images.ndim not in (4, 5) or images.shape[-3] != 3:
        raise ValueError(f"`{key}` must be (batch, 3, height, width), got {tuple(images.shape)}.")
    images = images.float() if images.is_floating_point() else images
    return _moments(key, batch, images.movedim(-3, -1).cpu().numpy(), has_moments=images.ndim == 5)


def _states(batch: dict) -> list:
    """B states (Ds,), or (n, Ds) of those moments that are there."""
    states = batch[OBS_STATE].float()
    moments = _moments(OBS_STATE, batch, states.cpu().numpy(), has_moments=states.ndim == 3)
    return moments if states.ndim < 3 else [np.stack([row for row in rows if row is not None]) for rows in moments]


def _moments(key: str, batch: dict, values: np.ndarray, has_moments: bool) -> list:
    """The B values of a key; of several moments (B, n, ...) lists, None for those that LeRobot has padded."""
    if not has_moments:
        return list(values)
    is_pad = batch[f"{key}_is_pad"].cpu().numpy() if f"{key}_is_pad" in batch else np.zeros(values.shape[:2], bool)
    return [
        [None if pad else value for value, pad in zip(moments, pads, strict=True)]
        for moments, pads in zip(values, is_pad, strict=True)
    ]


def _keys(batch: dict, spec: RobotSpec, names: Mapping[str, str] | None) -> dict[str, str | None]:
    """The key of each camera's images; None for one that is missing, which is said once."""
    given = [key for key in batch if key.startswith(OBS_IMAGE) and not key.endswith("_is_pad")]
    missing = [] if names else spec.missing(given)
    if 0 < len(missing) < len(spec.cameras) and len(given) == len(spec.cameras) - len(missing):
        _warn_of_missing(tuple(missing))
        names = dict.fromkeys(missing)
    try:
        return spec.place(given, names)
    except ValueError as error:
        others = [key for key in given if key not in spec.has_cameras(given)] or ["observation.images.NAME"]
        example = f'{{"{others[0]}": "{image_key((missing or spec.cameras)[0])}"}}'
        raise ValueError(
            f"{error} In LeRobot: --rename_map='{example}', or --policy.cameras='{{\"POLICY_NAME\": \"KEY\"}}'; or "
            "leave out cameras that the policy does not know."
        ) from error


@cache
def _warn_of_missing(cameras: tuple[str, ...]) -> None:
    """Once, and not with every step."""
    log.warning("There are no images of %s: the policy acts without these cameras.", ", ".join(cameras))


__all__ = ["image_key", "to_observations"]

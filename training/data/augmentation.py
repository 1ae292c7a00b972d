"""Image augmentation: what a camera could have seen in other light, or moved a little. For training alone.

The pictures are changed by Pillow, which is here anyway: one affine transform, and three of its `ImageEnhance`. (Of the
libraries for this, albumentations is archived and its successor is under the AGPL, imgaug and augly rest since 2020 and
2022, and kornia is for float tensors in batches.)
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from ...processing.camera_names import match_cameras
from ...processing.image_input import as_rgb
from ...processing.observation_history import is_clip

NO_CAMERA = "none"  # in the place of names: no camera is on a wrist
# A camera that moves with the hand: `cam_left_wrist`, `eye_in_hand`, `gripper`, `handeye`
_WRIST_WORDS = {"wrist", "hand", "gripper", "handeye"}


@dataclass(frozen=True)
class Augmentation:
    """How much pictures are changed; every example draws anew.

    Attributes:
        crop: side of the window that is kept, of the picture's; it lies anywhere, and is brought back to full size.
        rotation: at most so many degrees to either side; what was outside of the picture is black.
        brightness, contrast, saturation: each is multiplied by a factor between 1 - value and 1 + value. (Contrast
            is about the mean grey of the picture, saturation about its own grey.)
    """

    crop: float
    rotation: float
    brightness: float
    contrast: float
    saturation: float


# "robot" has openpi's numbers. There is no change of hue: instructions name colours.
AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "robot": Augmentation(crop=0.95, rotation=5.0, brightness=0.3, contrast=0.4, saturation=0.5),
}


@dataclass(frozen=True)
class ExampleAugmentation:
    """Augments an example: colours by one draw for all of its cameras, places by one for each.

    Light is the same for all cameras of an example, and all frames of a camera (a history) have the same place: what
    moves from one to the next has moved. Cameras on a wrist keep their geometry: they see the gripper always
    in the same place, which says where it is.

    Examples without actions (questions about pictures, plain text) stay as they are: answers are about places and
    colours.

    Args:
        amount: how much.
        wrist_cameras: the cameras on a wrist, by name or its last part; None for those whose name says so
            (`is_wrist_camera`). Pictures without names are of no wrist.
    """

    amount: Augmentation
    wrist_cameras: Sequence[str] | None = None

    def __call__(self, example: Mapping, rng: np.random.Generator) -> Mapping:
        """Return the example with other pictures, each uint8 (height, width, 3), as large as before.

        Args:
            example: as `KIVLACollator` takes it; it stays as it is.
            rng: all that is drawn.
        """
        images = example.get("images")
        if example.get("actions") is None or not images:
            return example
        if isinstance(images, Mapping):
            changed = self.changed(images.values(), list(images), rng)
            return {**example, "images": dict(zip(images, changed, strict=True))}
        return {**example, "images": self.changed(images, example.get("cameras"), rng)}

    def changed(self, images: Collection, cameras: Sequence[str] | None, rng: np.random.Generator) -> list:
        """Change the pictures or clips of one example; None, where one is missing, stays.

        Args:
            cameras: a name for each; None if they have none.
        """
        on_wrist = [] if cameras is None else wrist_among(cameras, self.wrist_cameras)
        amounts = (self.amount.brightness, self.amount.contrast, self.amount.saturation)
        factors = [rng.uniform(1 - amount, 1 + amount) for amount in amounts]
        changed = []
        for image, camera in zip(images, cameras or [None] * len(images), strict=True):
            if image is None:
                changed.append(None)
                continue
            place = None if camera in on_wrist else drawn_place(self.amount, rng)
            frames = [
                None if frame is None else self._seen(frame, factors, place)
                for frame in (image if is_clip(image) else [image])
            ]
            changed.append(frames if is_clip(image) else frames[0])
        return changed

    def _seen(self, image, factors: Sequence[float], place: tuple[float, float, float] | None) -> np.ndarray:
        # The light first: what is black beside a turned picture has no part in its contrast.
        image = relit(as_rgb(image), *factors)
        return np.asarray(image if place is None else moved(image, self.amount, place))


def drawn_place(amount: Augmentation, rng: np.random.Generator) -> tuple[float, float, float]:
    """Draw how a picture is turned, in degrees, and where its window's centre lies, as shares of width and height."""
    angle = rng.uniform(-amount.rotation, amount.rotation)
    right, down = rng.uniform(-0.5, 0.5, 2) * (1 - amount.crop)
    return angle, right, down


def moved(image: Image.Image, amount: Augmentation, place: tuple[float, float, float]) -> Image.Image:
    """Show a window of a picture, turned, in its full size; in one resampling.

    Args:
        place: of `drawn_place`.
    """
    width, height = image.size
    angle, right, down = np.deg2rad(place[0]), place[1] * width, place[2] * height
    cos, sin = amount.crop * np.cos(angle), amount.crop * np.sin(angle)
    # Of a pixel (x, y) of the new picture the place (a x + b y + c, d x + e y + f) in the old one
    x, y = width / 2, height / 2
    places = (cos, -sin, x + right - cos * x + sin * y, sin, cos, y + down - sin * x - cos * y)
    return image.transform(image.size, Image.Transform.AFFINE, places, Image.Resampling.BILINEAR)


def relit(image: Image.Image, brightness: float, contrast: float, saturation: float) -> Image.Image:
    """Multiply brightness, contrast and saturation, in this order."""
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    return ImageEnhance.Color(image).enhance(saturation)


def is_wrist_camera(name: str) -> bool:
    """Whether a camera's name says that it moves with a hand: one of its words is wrist, hand, gripper or handeye."""
    return not _WRIST_WORDS.isdisjoint(re.findall("[a-z]+", name.lower()))


def wrist_among(cameras: Sequence[str], told: Sequence[str] | None) -> list[str]:
    """Those of these cameras that are on a wrist: the ones that were told, or by their names if nothing was."""
    if told is None:
        return [camera for camera in cameras if is_wrist_camera(camera)]
    return list(match_cameras(cameras, told).values())


def wrists_by_name(cameras: Sequence[str], mapping: Mapping[str, str | None]) -> list[str]:
    """Those of the data's cameras that are on a wrist by their own name, or by the policy's name for them.

    Args:
        mapping: the policy's name of a camera → the data's.
    """
    renamed = [theirs for ours, theirs in mapping.items() if theirs is not None and is_wrist_camera(ours)]
    on_wrist = match_cameras(cameras, renamed).values()
    return [camera for camera in cameras if is_wrist_camera(camera) or camera in on_wrist]


def check_wrist_cameras(told: Sequence[str], cameras: Sequence[str]) -> None:
    """Check that cameras which were told to be on a wrist are there.

    Args:
        cameras: those of the data.

    Raises:
        ValueError: one is not.
    """
    if missing := [name for name in told if name != NO_CAMERA and name not in match_cameras(cameras, [name])]:
        raise ValueError(
            f"wrist_cameras names {missing[0]!r}, and the data's cameras are {list(cameras)}. Name those of them that "
            f"are on a wrist; or {NO_CAMERA}."
        )


def describe(augment: str, cameras: Sequence[str], told: Sequence[str] | None) -> str:
    """Say for people what is done to the pictures of these cameras."""
    amount = AUGMENTATIONS[augment]
    if amount is None:
        return "none: pictures are learned as they were recorded"
    on_wrist = wrist_among(cameras, told)
    others = [camera for camera in cameras if camera not in on_wrist]
    light = f"brightness ±{amount.brightness:.0%}, contrast ±{amount.contrast:.0%}, saturation ±{amount.saturation:.0%}"
    parts = [f"{augment}: {light}, one draw for all cameras"]
    if others:
        parts.append(f"{', '.join(others)} cropped to {amount.crop:.0%}, turned by up to {amount.rotation:g} degrees")
    if on_wrist:
        parts.append(f"{', '.join(on_wrist)} not (on a wrist)")
    return "; ".join(parts)


__all__ = [
    "AUGMENTATIONS",
    "NO_CAMERA",
    "Augmentation",
    "ExampleAugmentation",
    "check_wrist_cameras",
    "describe",
    "drawn_place",
    "is_wrist_camera",
    "moved",
    "relit",
    "wrist_among",
    "wrists_by_name",
]

"""What the cameras show, on a few frames of a few episodes: dark, blurred, frozen, repeated."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .findings import Finding, limit, some

# A pixel has changed if a channel differs by more than this (compression alone changes less), and a picture is the
# same if fewer of its pixels have, of all pixels. A scene moves if ten times as many have.
_CHANGED, _SAME, _MOVES = 12, 5e-4, 5e-3
# Pixels of one picture differ from key frame to key frame, as each is compressed anew; means of blocks hardly do. Side
# of a block in pixels → the most that its mean may differ, of 255: by 5 and 22 in h264 and AV1 at any usual quality,
# while something large and pale that moves changes large blocks by 35 or more, and something small small ones by 45.
_SAME_BLOCKS = {16: 8, 4: 30}
# A camera hangs if so many of the pictures that are spread over an episode are the same, one after another, while the
# robot moves by more than this part of its range.
_HANGS, _MOVED = 4, 0.05
_ALWAYS = 0.8  # of an episode's movement, and more
_ALTERNATES = 0.3
_NOISE = 2.0  # mean difference of two pictures of the same, by compression
_BLUR_WIDTH = 9  # pixels, as in the paper
_WIDE = 320  # pictures are looked at in about this width: a sharp large picture is a sharp small one


@dataclass
class CameraView:
    """What was seen of one camera.

    Attributes:
        name: of the camera.
        shape: (height, width) of its pictures.
        brightness: mean of each picture that was looked at, 0 to 255.
        brightest: 99.9 % quantile of each.
        blur: of each, 0 to 1.
        moments: for each episode that was looked at in a row, where the robot moves most.
        stills: for each episode that was looked at, how long the picture stays the same.
        blocks: of each picture, see `block_means`.
    """

    name: str
    shape: tuple[int, int] = (0, 0)
    brightness: list[float] = field(default_factory=list)
    brightest: list[float] = field(default_factory=list)
    blur: list[float] = field(default_factory=list)
    moments: dict[int, "Moment"] = field(default_factory=dict)
    stills: dict[int, "Still"] = field(default_factory=dict)
    blocks: list[list[np.ndarray]] = field(default_factory=list)


@dataclass(frozen=True)
class Moment:
    """Some frames in a row, and two further apart around them.

    Attributes:
        steps: share of changed pixels between neighbours.
        two_apart: the same between every second frame.
        whole: share of changed pixels between the two further apart.
    """

    steps: tuple[float, ...]
    two_apart: tuple[float, ...]
    whole: float


@dataclass(frozen=True)
class Still:
    """How the robot moves in an episode, as part of its range, summed over its dimensions.

    Attributes:
        moved: from the first picture to the last.
        unchanged: the most of it in one go, in which all pictures that were looked at are the same.
    """

    moved: float
    unchanged: float


def changed(first: np.ndarray, second: np.ndarray) -> float:
    """Share of pixels that differ, of two uint8 (H, W, 3); of a picture that changes a little as a whole, how much."""
    difference = np.abs(first.astype(np.int16) - second).max(axis=-1)
    as_a_whole = (float(difference.mean()) - _NOISE) / _CHANGED
    return max(float((difference > _CHANGED).mean()), min(as_a_whole, 1.0))


def block_means(image: np.ndarray) -> list[np.ndarray]:
    """What is left of a picture when compression is averaged out: means of its large and of its small blocks.

    Returns:
        float32 (h, w, 3) for each size of `_SAME_BLOCKS`.
    """
    means = []
    for side in _SAME_BLOCKS:
        n = min(side, *image.shape[:2])
        height, width = image.shape[0] // n, image.shape[1] // n
        parts = image[: height * n, : width * n].reshape(height, n, width, n, 3)
        means.append(parts.mean(axis=(1, 3), dtype=np.float32))
    return means


def are_same(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    """Whether two pictures, given by their blocks, show the same, however they were compressed."""
    return all(
        one.shape == other.shape and float(np.abs(one - other).max()) <= most
        for one, other, most in zip(first, second, _SAME_BLOCKS.values(), strict=True)
    )


def measure_still(blocks: Sequence[Sequence[np.ndarray]], position: np.ndarray) -> Still:
    """Find the longest way that the robot goes before pictures that stay the same.

    Args:
        blocks: of n pictures of an episode, in order.
        position: (n,) how far the robot has moved until each.
    """
    unchanged, first = 0.0, 0
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or not are_same(blocks[first], blocks[i]):
            if i - first >= min(_HANGS, len(blocks)):
                unchanged = max(unchanged, float(position[i - 1] - position[first]))
            first = i
    return Still(float(position[-1] - position[0]), unchanged)


def smaller(image: np.ndarray) -> np.ndarray:
    """About `_WIDE` pixels wide, every n-th pixel averaged with its neighbours: float32 (h, w), grey."""
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    n = max(image.shape[1] // _WIDE, 1)
    height, width = grey.shape[0] // n * n, grey.shape[1] // n * n
    return grey[:height, :width].reshape(height // n, n, width // n, n).mean(axis=(1, 3))


def blur(grey: np.ndarray) -> float:
    """How blurred a picture is, 0 to 1: how little it changes when it is blurred once more (Crete et al. 2007).

    Args:
        grey: float (H, W).
    """
    scores = []
    for axis in (0, 1):
        if grey.shape[axis] <= _BLUR_WIDTH:
            return 0.0
        sums = np.cumsum(np.pad(grey, [(1, 0) if i == axis else (0, 0) for i in (0, 1)]), axis=axis, dtype=np.float64)
        count = grey.shape[axis]
        ends, begins = np.arange(_BLUR_WIDTH, count + 1), np.arange(count + 1 - _BLUR_WIDTH)
        blurred = (sums.take(ends, axis) - sums.take(begins, axis)) / _BLUR_WIDTH
        middle = grey.take(begins + _BLUR_WIDTH // 2, axis)
        sharp, soft = np.abs(np.diff(middle, axis=axis)), np.abs(np.diff(blurred, axis=axis))
        total = float(sharp.sum())
        scores.append(1 - float(np.maximum(sharp - soft, 0).sum()) / total if total else 0.0)
    return max(scores)


def busiest(movement: np.ndarray, margin: int) -> int:
    """The frame around which most happens.

    Args:
        movement: (T - 1,) how far the robot moves in each step.
        margin: frames that are looked at on both sides.
    """
    if len(movement) <= 2 * margin:
        return (len(movement) + 1) // 2
    window = np.convolve(movement, np.ones(2 * margin), mode="valid")
    return int(window.argmax()) + margin


def check_camera(view: CameraView) -> list[Finding]:
    """What is wrong with a camera, by the pictures that were looked at."""
    if not view.brightness:
        return []
    name, count, findings = view.name, len(view.brightness), []
    brightness = float(np.mean(view.brightness))
    if max(view.brightest) <= limit("black"):
        return [Finding("black", f"All {count} pictures of {name} that were looked at are black.", camera=name)]
    if brightness < limit("dark"):
        text = f"The pictures of {name} are dark: their mean brightness is {brightness:.0f} of 255."
        findings.append(Finding("dark", text, camera=name))
    if brightness > limit("bright"):
        text = f"The pictures of {name} are too bright: their mean brightness is {brightness:.0f} of 255."
        findings.append(Finding("bright", text, camera=name))
    if min(view.blur) > limit("blurred"):
        text = f"All {count} pictures of {name} that were looked at are blurred: is the lens out of focus, or dirty?"
        findings.append(Finding("blurred", text, camera=name))
    if findings:  # in such pictures nothing else can be seen
        return findings
    if any(still.moved > _MOVED for still in view.stills.values()) and all(
        are_same(view.blocks[0], other) for other in view.blocks[1:]
    ):
        text = f"All {count} pictures of {name} that were looked at are the same, though the robot moves."
        return [Finding("frozen_camera", text, camera=name)]
    findings += _check_stills(view)
    alternating = tuple(
        e
        for e, moment in view.moments.items()
        if moment.two_apart and min(moment.steps) > _ALTERNATES and max(moment.two_apart) < min(moment.steps) / 2
    )
    if alternating:
        text = f"Every second picture of {name} shows something else in the episodes {some(alternating)}: look at them."
        findings.append(Finding("alternating", text, episodes=alternating, camera=name))
    moving = {episode: moment for episode, moment in view.moments.items() if moment.whole >= _MOVES}
    steps = [step < _SAME for moment in moving.values() for step in moment.steps]
    if steps and np.mean(steps) >= limit("repeated_pictures"):
        text = (
            f"{100 * np.mean(steps):.0f} % of the pictures of {name} repeat the one before, while the scene moves: the "
            "camera is slower than the recording."
        )
        findings.append(Finding("repeated_pictures", text, episodes=tuple(moving), camera=name))
    return findings


def _check_stills(view: CameraView) -> list[Finding]:
    """Episodes in which a camera hangs: the whole time, or a good part of it."""
    hung = {e: still for e, still in view.stills.items() if still.unchanged > _MOVED}
    whole = tuple(e for e, still in hung.items() if still.unchanged >= _ALWAYS * still.moved)
    partly = tuple(
        e for e, still in hung.items() if still.unchanged >= limit("frozen") * still.moved and e not in whole
    )
    # A robot that is out of sight for a part of most episodes is no fault of the camera.
    partly = partly if len(partly) <= len(view.stills) / 2 else ()
    findings = []
    for found, how in ((whole, "nearly all the time"), (partly, "for a good part of the time")):
        if found:
            text = (
                f"{view.name} shows the same picture {how} while the robot moves, in {len(found)} of "
                f"{len(view.stills)} episodes that were looked at: {some(found)}. Did it hang?"
            )
            findings.append(Finding("frozen", text, episodes=found, camera=view.name))
    return findings


def look(view: CameraView, images: Sequence[np.ndarray]) -> None:
    """Note brightness, sharpness and blocks of pictures, uint8 (H, W, 3) each."""
    for image in images:
        grey = smaller(image)
        view.shape = (image.shape[0], image.shape[1])
        view.brightness.append(float(grey.mean()))
        view.brightest.append(float(np.quantile(grey, 0.999)))
        view.blur.append(blur(grey))
        view.blocks.append(block_means(image))


__all__ = [
    "CameraView",
    "Moment",
    "Still",
    "are_same",
    "block_means",
    "blur",
    "busiest",
    "changed",
    "check_camera",
    "look",
    "measure_still",
    "smaller",
]

"""Pictures of tables from anti-aliased sprites: many scenes at once, in numpy alone.

A sprite's coverage is computed once per image size, at quarter-pixel offsets. Drawing is then integer arithmetic on
small patches, element by element, so that a scene's pixels depend neither on its neighbours in the batch nor on the
machine.
"""

from functools import lru_cache

import numpy as np

from .scenes import COLORS, SHAPE_NAMES, Scene

OBJECT_RADIUS = 0.17  # table units
RING_RADII = {"open": (0.25, 0.3), "closed": (0.165, 0.235)}  # inner and outer; a held object stays visible
BACKGROUND = (32, 33, 38)
PALETTE = np.array([*COLORS.values(), (255, 255, 255)], dtype=np.uint16)  # (colours + 1, 3); the last is the gripper
GRIPPER_COLOR = len(COLORS)

OFFSETS = 4  # sprites are placed on a grid of 1/4 pixel
SUBSAMPLES = 8  # per pixel and axis, for the coverage


def render(scenes: Scene, image_size: int, ring_colors: np.ndarray | None = None) -> np.ndarray:
    """Pictures of N stacked scenes, from above.

    Args:
        scenes: N tables.
        image_size: height and width in pixels.
        ring_colors: (N,) the colour of each gripper's ring, an index into `PALETTE`; white by default.

    Returns:
        uint8 (N, image_size, image_size, 3).
    """
    sprites = _sprites(image_size)  # (sprites, OFFSETS, OFFSETS, S, S)
    size = sprites.shape[-1]
    num_scenes = len(scenes.gripper)

    # The gripper is drawn last, over the objects; the held object over the other ones.
    order = np.argsort(np.arange(scenes.colors.shape[1]) == scenes.held[:, None], axis=1, kind="stable")
    sprite = np.concatenate(
        [np.take_along_axis(scenes.shapes, order, 1), len(SHAPE_NAMES) + scenes.closed[:, None].astype(int)], axis=1
    )
    if ring_colors is None:
        ring_colors = np.full(num_scenes, GRIPPER_COLOR)
    color = np.concatenate([np.take_along_axis(scenes.colors, order, 1), ring_colors[:, None]], axis=1)
    points = np.concatenate(
        [np.take_along_axis(scenes.positions, order[..., None], 1), scenes.gripper[:, None]], axis=1
    )  # (N, K + 1, 2)

    # Quarter pixels from the canvas's corner (y down); the canvas has a margin that takes what sticks out.
    quarters = np.rint((points * [1, -1] + 1) / 2 * image_size * OFFSETS).astype(int)
    pixel, offset = np.divmod(np.clip(quarters, 0, image_size * OFFSETS), OFFSETS)
    width = image_size + size + 1
    canvas = np.empty((num_scenes, width * width, 3), dtype=np.uint8)
    canvas[:] = BACKGROUND
    patch = (np.arange(size)[:, None] * width + np.arange(size)).ravel()
    rows = np.arange(num_scenes)[:, None]
    for k in range(points.shape[1]):
        alpha = sprites[sprite[:, k], offset[:, k, 1], offset[:, k, 0]].reshape(num_scenes, -1, 1)
        where = (pixel[:, k, 1] * width + pixel[:, k, 0])[:, None] + patch  # (N, S·S)
        below = canvas[rows, where]
        canvas[rows, where] = (below * (255 - alpha) + PALETTE[color[:, k], None] * alpha + 127) // 255
    margin = size // 2
    canvas = canvas.reshape(num_scenes, width, width, 3)
    return np.ascontiguousarray(canvas[:, margin : margin + image_size, margin : margin + image_size])


@lru_cache
def _sprites(image_size: int) -> np.ndarray:
    """Coverage 0..255 of every shape, then of the open and the closed ring: (sprites, OFFSETS, OFFSETS, S, S)."""
    scale = image_size / 2  # pixels per table unit
    margin = int(np.ceil(max(RING_RADII["open"]) * scale)) + 1
    size = 2 * margin + 1
    samples = (np.arange(size * SUBSAMPLES) + 0.5) / SUBSAMPLES - margin  # pixels from the sprite's pixel corner
    coverage = []
    for inside in (*_SHAPES.values(), *(_ring(*radii) for radii in RING_RADII.values())):
        for offset_y in range(OFFSETS):
            for offset_x in range(OFFSETS):
                x = (samples - offset_x / OFFSETS)[None] / scale
                y = -(samples - offset_y / OFFSETS)[:, None] / scale
                hits = inside(x, y).reshape(size, SUBSAMPLES, size, SUBSAMPLES)
                coverage.append(np.rint(hits.mean((1, 3)) * 255))
    return np.array(coverage, dtype=np.uint16).reshape(-1, OFFSETS, OFFSETS, size, size)


def _ring(inner: float, outer: float):
    return lambda x, y: (np.hypot(x, y) >= inner) & (np.hypot(x, y) < outer)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points; every point is folded onto one edge, from a tip to the notch beside it."""
    tip, notch, fold = 1.15 * OBJECT_RADIUS, 0.42 * OBJECT_RADIUS, np.pi / 5
    angle = np.abs((np.arctan2(y, x) - np.pi / 2 + fold) % (2 * fold) - fold)
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    edge_x, edge_y = notch * np.cos(fold) - tip, notch * np.sin(fold)
    return edge_x * across - edge_y * (along - tip) >= 0


_SHAPES = {
    "circle": lambda x, y: np.hypot(x, y) < 0.9 * OBJECT_RADIUS,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.9 * OBJECT_RADIUS,
    "triangle": lambda x, y: (y > -0.8 * OBJECT_RADIUS) & (np.abs(x) < (1.05 * OBJECT_RADIUS - y) * 0.55),
    "star": _star,
}

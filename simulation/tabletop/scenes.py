"""What lies on the table, drawn from a seed, and the words for it.

The table is the square [-1, 1] x [-1, 1], x to the right and y up (away from the viewer). It holds objects, each a
colour and a shape, and a gripper. Places are named coarsely ("top left", a grid of 3 x 3) or by the column (from the
left) and row (from the top) of a grid of 6 x 6.

Some colour-shape pairs (`HELD_OUT_PAIRS`) are never demonstrated, but asked about.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np

COLORS = {
    "red": (225, 45, 45),
    "green": (45, 175, 65),
    "blue": (55, 90, 240),
    "yellow": (245, 225, 50),
    "purple": (150, 60, 205),
    "orange": (250, 140, 25),
    "cyan": (55, 215, 225),
    "pink": (255, 160, 200),
}
COLOR_NAMES = tuple(COLORS)
SHAPE_NAMES = ("circle", "square", "triangle", "star")

ALL_PAIRS = tuple((color, shape) for color in range(len(COLOR_NAMES)) for shape in range(len(SHAPE_NAMES)))
# Every colour and every shape is demonstrated; these combinations (a quarter, one per colour, two per shape) are not.
HELD_OUT_PAIRS = tuple((color, shape) for color, shape in ALL_PAIRS if shape == color % len(SHAPE_NAMES))
SEEN_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT_PAIRS)

GRID = 6
CELL = 2 / GRID
PLACES = (("top left", "top", "top right"), ("left", "center", "right"), ("bottom left", "bottom", "bottom right"))

RELATIONS = ("left of", "right of", "above", "below")
RELATION_VECTORS = np.array([(-1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])  # (4, 2)
RELATION_MARGIN = 0.2  # `a` is left of `b` when it lies at least this far to the left

# How an instruction or a question may name an object. Demonstrations use the first three.
SEEN_REFERENCES = ("pair", "color", "shape")
REFERENCES = (*SEEN_REFERENCES, "inverted", "relation")

BORDER = 0.84  # objects start no further out, so that none is cut by the picture's edge
JITTER = 0.1  # objects lie within this distance (per axis) of the middle of their cell
OBJECT_SPACING = 0.45  # smallest distance between two objects, and between the gripper's start and any object
PATH_CLEARANCE = 0.27  # the straight way from the gripper's start to any object passes the others at this distance
SHARING = 0.7  # share of objects that take their colour or their shape from another one


@dataclass(eq=False)
class Scene:
    """One table, or N of them (`stack`): every array then has a leading dimension N.

    Attributes:
        colors, shapes: (K,) indices into `COLOR_NAMES` and `SHAPE_NAMES`. No two objects share both.
        positions: (K, 2) the objects' centres.
        gripper: (2,) the gripper's position.
        closed: () bool.
        held: () index of the object in the gripper, -1 for none.
    """

    colors: np.ndarray
    shapes: np.ndarray
    positions: np.ndarray
    gripper: np.ndarray
    closed: np.ndarray
    held: np.ndarray

    @staticmethod
    def stack(scenes: Sequence["Scene"]) -> "Scene":
        """N scenes with the same number of objects as one."""
        return Scene(*(np.stack([getattr(scene, field.name) for scene in scenes]) for field in fields(Scene)))

    def __getitem__(self, index: int) -> "Scene":
        """The `index`-th of N stacked scenes (a view)."""
        return Scene(*(getattr(self, field.name)[index] for field in fields(Scene)))


Pair = tuple[int, int]


def sample_scene(rng: np.random.Generator, pools: Sequence[Sequence[Pair]]) -> Scene:
    """A table with an open gripper, which can reach every object on a straight line that stays clear of the others.

    Objects often share their colour or their shape with another one; which ones do says nothing about a target that
    is drawn uniformly afterwards.

    Args:
        rng: the source of randomness.
        pools: for each object the colour-shape pairs it is drawn from, such as `[SEEN_PAIRS] * 3`.
    """
    return _lay_out(rng, sample_pairs(rng, pools))


def sample_pairs(rng: np.random.Generator, pools: Sequence[Sequence[Pair]]) -> list[Pair]:
    """A colour and a shape for each object, no two alike; see `sample_scene`."""
    pairs: list[Pair] = []
    for pool in pools:
        pairs.append(_sample_pair(rng, pairs, pool))
    return pairs


def _sample_pair(rng: np.random.Generator, taken: Sequence[Pair], pool: Sequence[Pair]) -> Pair:
    free = [pair for pair in pool if pair not in taken]
    if taken and rng.random() < SHARING:
        axis, other = rng.integers(2), taken[rng.integers(len(taken))]
        free = [pair for pair in free if pair[axis] == other[axis]] or free
    return free[rng.integers(len(free))]


def sample_points(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """(*shape, 2) points near the middles of uniformly drawn cells, where an object is not cut by the border."""
    middles = -1 + (rng.integers(GRID, size=(*shape, 2)) + 0.5) * CELL
    return np.clip(middles + rng.uniform(-JITTER, JITTER, size=middles.shape), -BORDER, BORDER)


def _lay_out(rng: np.random.Generator, pairs: Sequence[Pair]) -> Scene:
    while True:
        points = sample_points(rng, (16, len(pairs) + 1))  # sixteen tries at once; the gripper first
        good = np.flatnonzero(_well_spaced(points) & paths_are_clear(points[:, 0], points[:, 1:], PATH_CLEARANCE))
        if len(good):
            break
    gripper, *positions = points[good[0]]
    colors, shapes = np.array(pairs).T
    return Scene(colors, shapes, np.array(positions), gripper, np.array(False), np.array(-1))


def _well_spaced(points: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(points.shape[1], 1)
    return (np.linalg.norm(points[:, first] - points[:, second], axis=-1) >= OBJECT_SPACING).all(1)


def paths_are_clear(start: np.ndarray, positions: np.ndarray, clearance: float) -> np.ndarray:
    """Whether the straight ways from start (B, 2) to each of positions (B, K, 2) pass the others so far off: (B,)."""
    way = positions - start[:, None]
    along = (way @ way.swapaxes(1, 2)) / ((way * way).sum(-1, keepdims=True) + 1e-9)  # (B, to, past), 1 at the end
    nearest = start[:, None, None] + np.clip(along, 0, 1)[..., None] * way[:, :, None]  # (B, to, past, 2)
    distance = np.linalg.norm(nearest - positions[:, None], axis=-1)
    return ((distance >= clearance) | np.eye(positions.shape[1], dtype=bool)).all((1, 2))


def pair_name(scene: Scene, index: int) -> str:
    """`"red star"`: colour and shape of one object."""
    return f"{COLOR_NAMES[scene.colors[index]]} {SHAPE_NAMES[scene.shapes[index]]}"


def cell_of(point: np.ndarray) -> tuple[int, int]:
    """(column, row) of the 6 x 6 grid, from 1, columns from the left and rows from the top."""
    column, row = np.clip(np.floor((np.array([point[0], -point[1]]) + 1) / CELL), 0, GRID - 1).astype(int) + 1
    return int(column), int(row)


def place_of(point: np.ndarray) -> str:
    """The coarse word, such as `"top left"` or `"center"`."""
    column, row = cell_of(point)
    return PLACES[(row - 1) * 3 // GRID][(column - 1) * 3 // GRID]


def offset_towards(relation: int | np.ndarray, point: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """How far `point` lies from `anchor` in the direction of `RELATIONS[relation]`; arrays broadcast."""
    return ((point - anchor) * RELATION_VECTORS[relation]).sum(-1)


def unique_relations(scene: Scene) -> list[tuple[int, int, int]]:
    """All (index, relation, anchor) where the object alone is `RELATIONS[relation]` the anchor, and clearly so."""
    offsets = scene.positions[:, None] - scene.positions[None]  # (object, anchor, 2)
    offsets = np.concatenate([-offsets[..., :1], offsets[..., :1], offsets[..., 1:], -offsets[..., 1:]], -1)
    unique = (offsets >= RELATION_MARGIN) & ((offsets > 0).sum(0) == 1)  # (object, anchor, relation)
    return [(index, relation, anchor) for index, anchor, relation in np.argwhere(unique).tolist()]


def references(scene: Scene, index: int, forms: Collection[str] = SEEN_REFERENCES) -> list[str]:
    """The phrases in the given forms (of `REFERENCES`) that name this object and no other of the scene."""
    color, shape = COLOR_NAMES[scene.colors[index]], SHAPE_NAMES[scene.shapes[index]]
    phrases = []
    if "pair" in forms:
        phrases.append(f"the {color} {shape}")
    if "color" in forms and (scene.colors == scene.colors[index]).sum() == 1:
        phrases.append(f"the {color} object")
    if "shape" in forms and (scene.shapes == scene.shapes[index]).sum() == 1:
        phrases.append(f"the {shape}")
    if "inverted" in forms:
        phrases.append(f"the {shape} that is {color}")
    if "relation" in forms:
        phrases += [
            f"the object {RELATIONS[relation]} the {pair_name(scene, anchor)}"
            for found, relation, anchor in unique_relations(scene)
            if found == index
        ]
    return phrases

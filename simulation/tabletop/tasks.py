"""Instructions on the tabletop: what may be asked of a scene, how it is said, when it is done, and how to do it.

What is touched or moved *first* decides: whoever acts on the wrong object has failed, whatever follows.

| kind | instruction | decided when | right when |
|---|---|---|---|
| touch | touch the red star | the gripper first comes within `REACH` of an object | it is the target |
| move | move the red star left | an object has been carried `MOVED` along one axis | target, that direction |
| push | push the red star to the left edge | an object has been carried to an edge | target, that edge |
| put | put the red star left of the blue square | the first object was let go and lay still | target, there and near |
| touch_then_touch | touch the red star, then touch the blue circle | two objects were touched | in this order |

In move, push and put, taking hold of another object than the target is the end. Passing over objects is free.

In touch_then_touch the anchor is touched second, and touching another object than the target first is the end. What has
happened must be seen, since a policy remembers nothing: from the first touch on the gripper's ring has the colour of
what it touched (in this kind alone). Each half of the sentence is a sub-task, and says what to do now: see `subtask`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .scenes import (
    COLOR_NAMES,
    HELD_OUT_PAIRS,
    OBJECT_SPACING,
    PATH_CLEARANCE,
    REFERENCES,
    RELATION_MARGIN,
    RELATION_VECTORS,
    RELATIONS,
    SEEN_PAIRS,
    SEEN_REFERENCES,
    SHAPE_NAMES,
    Scene,
    offset_towards,
    paths_are_clear,
    references,
    sample_scene,
)
from .synonyms import COLOR_SYNONYMS, SYNONYMS, names_with

TASK_KINDS = ("touch", "move", "push", "put", "touch_then_touch")
TOUCHING = (TASK_KINDS.index("touch"), TASK_KINDS.index("touch_then_touch"))  # the gripper stays open
TOUCH_TWICE = TASK_KINDS.index("touch_then_touch")
PUT = TASK_KINDS.index("put")
THEN = ", then "  # between the sub-tasks of an instruction
WORDINGS = {
    "touch": ("touch {x}", "reach {x}", "go to {x}"),
    "move": ("move {x} {direction}", "shift {x} {direction}"),
    "push": ("push {x} to the {edge} edge", "slide {x} to the {edge} edge"),
    "put": ("put {x} {relation} {anchor}", "place {x} {relation} {anchor}"),
    "touch_then_touch": tuple(f"{verb} {{x}}{THEN}{verb} {{anchor}}" for verb in ("touch", "reach", "go to")),
}
# A task's `argument` is a direction, an edge or a relation: three words for each of `RELATION_VECTORS`.
DIRECTIONS = ("left", "right", "up", "down")
EDGES = ("left", "right", "top", "bottom")
NEXT_TO = len(RELATIONS)
PUT_RELATIONS = (*RELATIONS, "next to")
NO_ARGUMENT = -1

# What the episodes of a split are made of. Only the first is demonstrated; each of the others holds out one thing
# that the questions do ask about: the target's pair, the wording "the star that is red", or relations ("touch the
# object left of the blue square", "put ... above ..."). The last one holds out words that no question has either: the
# target is named by a synonym alone ("touch the crimson object").
SPLITS = ("demonstrations", "held_out_pairs", "held_out_wordings", "held_out_relations", "synonyms")
SPLIT_REFERENCES = {"held_out_wordings": ("inverted",), "held_out_relations": ("relation",)}
HELD_OUT_PUT_RELATION = RELATIONS.index("above")

LIMIT = 0.95  # the gripper stays within [-LIMIT, LIMIT] on both axes
REACH = 0.15  # table units between the gripper and an object's centre: it is touched, and can be held
MOVED = 0.3
EDGE = 0.75
NEAR = OBJECT_SPACING - 0.01  # "put": at most this far from the anchor, hence never so at the start
BETWEEN_CLEARANCE = PATH_CLEARANCE + 0.05  # as much for the way from where the first object was reached to the second
MOVE_BY, PUSH_TO, PUT_AT = 0.4, 0.85, 0.32  # what the expert aims for; "put" ends right from 0.2 to 0.44 beside
PUT_REST = 3  # steps that an object rests before "put" is decided: demonstrations show what follows after letting go
SLOWING = 0.3  # "put": so near to its goal the expert slows down, the more the nearer: when to let go must be seen
PRECISION = 0.08  # the expert closes so near to an object's centre, two pixels of 48, and opens so near to its goal

# What the swapped instruction asks for in place of the scene's own: another object, or the opposite direction.
SWAPS = ("target", "direction")
OPPOSITE = (1, 0, 3, 2)  # of `RELATION_VECTORS`


class Task(NamedTuple):
    """What is asked; all fields are ints, or (N,) int arrays for N scenes.

    `kind` indexes `TASK_KINDS`, `target` and `anchor` the scene's objects (the anchor is the target but for "put" and
    "touch_then_touch"), `argument` `DIRECTIONS`, `EDGES` or `PUT_RELATIONS`.
    """

    kind: int | np.ndarray
    target: int | np.ndarray
    argument: int | np.ndarray
    anchor: int | np.ndarray


class Episode(NamedTuple):
    """A scene, what is asked, and the same asked about another object of the scene.

    In the split "synonyms" also `word`, the synonym, and `plain_instruction`, with the demonstrated word in its place.
    """

    scene: Scene
    task: Task
    instruction: str
    swapped_instruction: str
    word: str | None = None
    plain_instruction: str | None = None


@dataclass(eq=False)
class History:
    """What has happened in N episodes so far.

    Attributes:
        starts: (N, K, 2), where the K objects lay at first.
        first_touched, first_held: (N,), the object; -1 for none yet.
        second_touched: (N,), the first object after it that is another one; -1 for none yet.
        rested: (N,) int, steps since the first held object was let go, that one included; 0 before.
    """

    starts: np.ndarray
    first_touched: np.ndarray
    second_touched: np.ndarray
    first_held: np.ndarray
    rested: np.ndarray


def sample_episode(
    rng: np.random.Generator, kinds: Sequence[str], split: str, num_objects: int = 3, swapped_by: str = "target"
) -> Episode:
    """Draw a kind, a scene, then the target uniformly from its objects.

    In "held_out_pairs" the scene has one object of a pair that was never demonstrated, and it is the target. In
    "synonyms" the word is drawn first, every one as often, and the target is the only object that it fits.

    Swapped by "target" the other instruction is about another object, in the same direction where the scene has room
    for it. Swapped by "direction" it is about the same object, and asks for the opposite direction, edge or side; only
    tasks that have one in the split are drawn. Either way both instructions cannot be fulfilled by the same deed.
    """
    kind = kinds[rng.integers(len(kinds))]
    first_pool = HELD_OUT_PAIRS if split == "held_out_pairs" else SEEN_PAIRS
    word = list(SYNONYMS)[rng.integers(len(SYNONYMS))] if split == "synonyms" else None
    while True:
        scene = sample_scene(rng, [first_pool] + [SEEN_PAIRS] * (num_objects - 1))
        tasks = [possible_tasks(scene, kind, target, split) for target in range(num_objects)]
        if swapped_by == "direction":
            tasks = [[task for task in found if opposite(task) in found] for found in tasks]
        # Else the target would not be uniform given the scene, or not named by the word.
        if all(tasks) and (word is None or _fitting(scene, word) is not None):
            break
    if word is not None:
        target = _fitting(scene, word)
    else:
        target = 0 if split == "held_out_pairs" else int(rng.integers(num_objects))
    task = tasks[target][rng.integers(len(tasks[target]))]
    instruction = phrase(rng, scene, task, split, word)
    if swapped_by == "direction":
        swapped = phrase(rng, scene, opposite(task), split)
    else:
        others = [other for other in range(num_objects) if other != target]
        candidates = tasks[others[rng.integers(len(others))]]
        candidates = [other for other in candidates if other.argument == task.argument] or candidates
        swapped = phrase(rng, scene, candidates[rng.integers(len(candidates))], split)
    if word is None:
        return Episode(scene, task, instruction, swapped)
    told = instruction.replace(*names_with(word), 1)  # the target is named before all else
    return Episode(scene, task, told, swapped, word, plain_instruction=instruction)


def _fitting(scene: Scene, word: str) -> int | None:
    """The object that a synonym names, where it is the only one of this colour or shape."""
    is_color = word in COLOR_SYNONYMS
    values, names = (scene.colors, COLOR_NAMES) if is_color else (scene.shapes, SHAPE_NAMES)
    found = np.flatnonzero(values == names.index(SYNONYMS[word]))
    return int(found[0]) if len(found) == 1 else None


def possible_tasks(scene: Scene, kind: str, target: int, split: str | None = None) -> list[Task]:
    """The tasks of a kind with this target that the scene has room for, and words for in the split (None: any)."""
    number, position = TASK_KINDS.index(kind), scene.positions[target]
    relations_held_out = split == "held_out_relations"
    if kind == "put":
        if relations_held_out:
            arguments = [HELD_OUT_PUT_RELATION]
        else:
            arguments = [i for i in range(len(PUT_RELATIONS)) if split is None or i != HELD_OUT_PUT_RELATION]
        return [
            Task(number, target, argument, anchor)
            for anchor in range(len(scene.colors))
            for argument in arguments
            if anchor != target and (argument == NEXT_TO or _room_beside(scene.positions[anchor])[argument])
        ]
    if relations_held_out and not references(scene, target, SPLIT_REFERENCES[split]):
        return []
    if kind == "touch":
        return [Task(number, target, NO_ARGUMENT, target)]
    if kind == "touch_then_touch":
        others = [anchor for anchor in range(len(scene.colors)) if anchor != target]
        if relations_held_out and not all(references(scene, anchor, SPLIT_REFERENCES[split]) for anchor in others):
            return []
        has_room = _ways_between_are_clear(scene.positions)
        return [Task(number, target, NO_ARGUMENT, anchor) for anchor in others] if has_room else []
    way = RELATION_VECTORS @ position  # (4,) how far out it lies already
    room = way + MOVE_BY <= (LIMIT if kind == "move" else PUSH_TO)
    return [Task(number, target, int(argument), target) for argument in np.flatnonzero(room)]


def opposite(task: Task) -> Task | None:
    """The same asked for in the opposite direction; None where there is none ("touch", "next to")."""
    return task._replace(argument=OPPOSITE[task.argument]) if 0 <= task.argument < len(OPPOSITE) else None


def _room_beside(point: np.ndarray) -> np.ndarray:
    """(..., 2) -> (..., 4) bool: whether an object fits on each side."""
    return (np.abs(point[..., None, :] + PUT_AT * RELATION_VECTORS) <= LIMIT).all(-1)


def _ways_between_are_clear(positions: np.ndarray) -> bool:
    """Whether every object can be reached from every other one (K, 2): which is second must be uniform, too."""
    others = [np.delete(positions, i, axis=0) for i in range(len(positions))]
    return bool(paths_are_clear(positions, np.stack(others), BETWEEN_CLEARANCE).all())


def phrase(rng: np.random.Generator, scene: Scene, task: Task, split: str, word: str | None = None) -> str:
    """A sentence; with a synonym, the demonstrated one whose target is named by the word that it stands for."""
    wordings = WORDINGS[TASK_KINDS[task.kind]]
    names_of_target, names_of_anchor = _target_and_anchor(scene, task, split)
    if word is not None:
        names_of_target = [names_with(word)[0]]
    x, anchor = (names[rng.integers(len(names))] for names in (names_of_target, names_of_anchor))
    return _fill(wordings[rng.integers(len(wordings))], task, x, anchor)


def _target_and_anchor(scene: Scene, task: Task, split: str) -> tuple[list[str], list[str]]:
    forms = SPLIT_REFERENCES.get(split, SEEN_REFERENCES)
    if TASK_KINDS[task.kind] == "put" and split == "held_out_relations":
        forms = SEEN_REFERENCES  # there it is the task's own relation that is held out
    return references(scene, task.target, forms), references(scene, task.anchor, forms)


def _fill(wording: str, task: Task, x: str, anchor: str) -> str:
    words = {}
    if task.argument != NEXT_TO:
        words = {"direction": DIRECTIONS[task.argument], "edge": EDGES[task.argument]}
    return wording.format(x=x, anchor=anchor, relation=PUT_RELATIONS[task.argument], **words)


def parse_instruction(scene: Scene, instruction: str) -> Task | None:
    """The task that a sentence asks of this scene; None where it is none of our sentences, or fits no object."""
    for number, (kind, wordings) in enumerate(WORDINGS.items()):
        starts = tuple(wording.partition("{x}")[0] for wording in wordings)
        if not instruction.startswith(starts):
            continue
        for target in range(len(scene.colors)):
            names = references(scene, target, REFERENCES)
            names += [names_with(word)[1] for word in SYNONYMS if _fitting(scene, word) == target]
            for task in possible_tasks(scene, kind, target):
                anchors = references(scene, task.anchor, REFERENCES) if task.anchor != target else [""]
                for wording in wordings:
                    if any(_fill(wording, task, x, anchor) == instruction for x in names for anchor in anchors):
                        return task._replace(kind=number)
    return None


def judge(task: Task, scene: Scene, history: History) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of N episodes is decided, and whether it is a success: two (N,) bool arrays."""
    rows = np.arange(len(history.first_held))
    position, start = scene.positions[rows, task.target], history.starts[rows, task.target]
    anchor = scene.positions[rows, task.anchor]

    touched = history.first_touched >= 0
    touch = (touched, history.first_touched == task.target)

    way = (position - start) @ RELATION_VECTORS.T  # (N, 4) carried in each direction
    argument = np.clip(task.argument, 0, len(RELATIONS) - 1)
    move = (way.max(-1) >= MOVED, way.argmax(-1) == argument)

    at_edge = (position @ RELATION_VECTORS.T >= EDGE) & (way >= MOVED)  # (N, 4)
    push = (at_edge.any(-1), at_edge[rows, argument] & (at_edge.sum(-1) == 1))

    distance = np.linalg.norm(position - anchor, axis=-1)
    beside = (task.argument == NEXT_TO) | (offset_towards(argument, position, anchor) >= RELATION_MARGIN)
    lies = scene.held < 0
    put = (history.rested >= PUT_REST, lies & beside & (distance >= RELATION_MARGIN) & (distance <= NEAR))

    both = history.second_touched >= 0
    twice = (both | (touched & ~touch[1]), touch[1] & (history.second_touched == task.anchor))

    decided, success = (np.choose(task.kind, outcomes) for outcomes in zip(touch, move, push, put, twice, strict=True))
    wrong = ~np.isin(task.kind, TOUCHING) & (history.first_held >= 0) & (history.first_held != task.target)
    return decided | wrong, decided & success & ~wrong


def expert_actions(task: Task, scene: Scene, history: History, step: float, precision: float = PRECISION) -> np.ndarray:
    """The scripted expert: straight to the target; hold it, carry it and let it go where the task says so.

    Args:
        step: how far one action of size 1 moves the gripper on each axis, in table units.
        precision: how near it comes before it closes or opens, in table units. One that is finer than the picture, or
            than a disturbance of its motion, hovers over its target for no reason that can be seen.

    Returns:
        float32 (N, 3) actions: dx, dy in [-1, 1] and -1 (open) or 1 (close).
    """
    rows = np.arange(len(history.first_held))
    is_second = (task.kind == TOUCH_TWICE) & (history.first_touched >= 0)
    position = scene.positions[rows, np.where(is_second, task.anchor, task.target)]
    holds = scene.held == task.target
    touches = np.isin(task.kind, TOUCHING)

    to_target, to_goal = position - scene.gripper, carry_goal(task, scene, history) - position
    way = np.where(holds[:, None], to_goal, to_target) / step
    way = way / np.maximum(np.abs(way).max(-1, keepdims=True), 1)  # straight, at full speed
    at_target = np.linalg.norm(to_target, axis=-1) < precision
    distance = np.linalg.norm(to_goal, axis=-1)
    at_goal = distance < precision
    slows = holds & (task.kind == PUT)
    way *= np.where(slows, np.clip(distance / SLOWING, 0, 1), 1)[:, None]
    # A gripper that closed on nothing, or on something else, opens first.
    let_go = history.rested > 0
    close = np.where(holds, ~at_goal, at_target & ~scene.closed) & ~touches & ~let_go
    still = (close != scene.closed) | let_go
    way[still] = 0
    return np.concatenate([way, np.where(close, 1, -1)[:, None]], axis=1).astype(np.float32)


def carry_goal(task: Task, scene: Scene, history: History) -> np.ndarray:
    """(N, 2): where the expert brings the target."""
    rows = np.arange(len(history.first_held))
    start, anchor = history.starts[rows, task.target], scene.positions[rows, task.anchor]
    vector = RELATION_VECTORS[np.clip(task.argument, 0, len(RELATIONS) - 1)]
    move = start + MOVE_BY * vector
    push = np.where(vector == 0, start, PUSH_TO * vector)
    beside = anchor[:, None] + PUT_AT * RELATION_VECTORS  # (N, 4, 2)
    distance = np.where(_room_beside(anchor), np.linalg.norm(beside - start[:, None], axis=-1), np.inf)
    side = np.where(task.argument == NEXT_TO, distance.argmin(-1), np.clip(task.argument, 0, len(RELATIONS) - 1))
    return np.choose(np.asarray(task.kind)[:, None], [start, move, push, beside[rows, side], start])


def subtask(instruction: str, num_done: int) -> str:
    """The part of an instruction that is to be done now: after `num_done` of "touch ..., then touch ..." are."""
    parts = instruction.split(THEN)
    return parts[min(num_done, len(parts) - 1)]

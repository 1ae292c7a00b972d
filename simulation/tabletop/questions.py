"""Questions about the tabletop's scenes with their true answers, for teaching a VLM to see.

Answers are balanced within every form of every kind of question: among the questions that a scene allows, one with the
answer given least often is asked, and none whose answer has had its share. A constant answer scores at chance.

With `split="all"` the questions are also about what is never demonstrated: held-out colour-shape pairs, the wording
"the star that is red", and how objects lie to each other.
"""

import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image

from .rendering import render
from .scenes import (
    ALL_PAIRS,
    COLOR_NAMES,
    GRID,
    PLACES,
    REFERENCES,
    RELATION_MARGIN,
    RELATIONS,
    SEEN_PAIRS,
    SEEN_REFERENCES,
    SHAPE_NAMES,
    Scene,
    cell_of,
    offset_towards,
    pair_name,
    place_of,
    references,
    sample_scene,
    unique_relations,
)

QUESTION_SPLITS = ("all", "demonstrations")

BALANCE_TOLERANCE = 0.01  # without it the rarest cell of the grid would set the number of questions

RELATION_SHARE = 0.1  # of the phrases that name an object in the questions: "the object left of the red star"

# What the gripper does, and in which share of the scenes.
GRIPPER_MODES = {"holding": 0.45, "above an object": 0.2, "closed on nothing": 0.15, "away": 0.2}
GRIPPER_JITTER = 0.05  # between the gripper and the object below it, per axis
DIRECTION_DISTANCE = 0.25  # an object nearer to the gripper than this lies in no direction


class Question(NamedTuple):
    """A question about a picture. `form` tells apart the ways to ask that are balanced separately."""

    kind: str
    form: str
    text: str
    answer: str


class Asker(NamedTuple):
    """What a kind's function needs: the scene, randomness, and what the split lets it name."""

    scene: Scene
    rng: np.random.Generator
    reference_forms: tuple[str, ...]
    pairs: Sequence[tuple[int, int]]

    def pick(self, options: Sequence):
        return options[self.rng.integers(len(options))]

    def name(self, index: int, without: Sequence[str] = ()) -> str:
        """A phrase for the object in a random form, of which one must fit; seldom by its relation to another."""
        forms = [form for form in self.reference_forms if form not in (*without, "relation")]
        forms = self.rng.permutation(forms).tolist()
        if "relation" in self.reference_forms and "relation" not in without and self.rng.random() < RELATION_SHARE:
            forms.insert(0, "relation")
        return self.pick(next(found for form in forms if (found := references(self.scene, index, (form,)))))


class Candidate(NamedTuple):
    """A question that could be asked: `text` with a `{}` for the phrase of each of `objects`."""

    text: str
    answer: str
    objects: tuple[int, ...] = ()


Candidates = tuple[str, list[Candidate]]  # the form, and what could be asked in it


def _place(ask: Asker) -> Candidates:
    return "", [Candidate("Where is {}?", place_of(point), (i,)) for i, point in enumerate(ask.scene.positions)]


def _cell(ask: Asker) -> Candidates:
    return "", [
        Candidate("At which column and row is {}?", _cell_words(cell_of(point)), (i,))
        for i, point in enumerate(ask.scene.positions)
    ]


def _at(ask: Asker) -> Candidates:
    names = [pair_name(ask.scene, i) for i in range(len(ask.scene.colors))]
    form = ask.pick(("place", "cell"))
    if form == "place":
        occupied = [f"the {place_of(point)}" for point in ask.scene.positions]
        everywhere = [f"the {place}" for row in PLACES for place in row]
    else:
        occupied = [_cell_words(cell_of(point)) for point in ask.scene.positions]
        everywhere = [_cell_words((c, r)) for c in range(1, GRID + 1) for r in range(1, GRID + 1)]
    found = [(where, name) for where, name in zip(occupied, names, strict=True) if occupied.count(where) == 1]
    empty = ask.pick([where for where in everywhere if where not in occupied])
    return form, [Candidate(f"What is at {where}?", name) for where, name in [*found, (empty, "nothing")]]


def _color(ask: Asker) -> Candidates:
    return "", [
        Candidate("Which color is {}?", COLOR_NAMES[color], (i,))
        for i, color in enumerate(ask.scene.colors)
        if references(ask.scene, i, ("shape",))
    ]


def _shape(ask: Asker) -> Candidates:
    return "", [
        Candidate("Which shape is {}?", SHAPE_NAMES[shape], (i,))
        for i, shape in enumerate(ask.scene.shapes)
        if references(ask.scene, i, ("color",))
    ]


def _presence(ask: Asker) -> Candidates:
    form, colors, shapes = ask.pick(("pair", "color", "shape")), ask.scene.colors, ask.scene.shapes
    if form == "pair":
        present = set(zip(colors.tolist(), shapes.tolist(), strict=True))
        absent = [pair for pair in ask.pairs if pair not in present]
        near = [(c, s) for c, s in absent if c in colors and s in shapes]  # only both together tell it is not there
        color, shape = ask.pick(near if near and ask.rng.random() < 0.5 else absent)
        there = ask.rng.integers(len(colors))
        yes, no = pair_name(ask.scene, there), f"{COLOR_NAMES[color]} {SHAPE_NAMES[shape]}"
    elif form == "color":
        absent = [color for color in range(len(COLOR_NAMES)) if color not in colors]
        yes, no = f"{COLOR_NAMES[ask.pick(colors)]} object", f"{COLOR_NAMES[ask.pick(absent)]} object"
    else:
        absent = [shape for shape in range(len(SHAPE_NAMES)) if shape not in shapes]
        if not absent:
            return form, []
        yes, no = SHAPE_NAMES[ask.pick(shapes)], SHAPE_NAMES[ask.pick(absent)]
    return form, [Candidate(f"Is there {_article(yes)}?", "yes"), Candidate(f"Is there {_article(no)}?", "no")]


def _relation(ask: Asker) -> Candidates:
    relation, positions = int(ask.rng.integers(len(RELATIONS))), ask.scene.positions
    offsets = offset_towards(relation, positions[:, None], positions[None])  # (object, anchor)
    return "", [
        Candidate(f"Is {{}} {RELATIONS[relation]} {{}}?", "yes" if offsets[i, j] > 0 else "no", (i, j))
        for i, j in np.argwhere(np.abs(offsets) >= RELATION_MARGIN).tolist()
    ]


def _related(ask: Asker) -> Candidates:
    return "", [
        Candidate(f"What is {RELATIONS[relation]} {{}}?", pair_name(ask.scene, found), (anchor,))
        for found, relation, anchor in unique_relations(ask.scene)
    ]


def _count(ask: Asker) -> Candidates:
    form = ask.pick(("color", "shape"))
    if form == "color":
        numbers = [(f"{name} objects", (ask.scene.colors == i).sum()) for i, name in enumerate(COLOR_NAMES)]
    else:
        numbers = [(f"{name}s", (ask.scene.shapes == i).sum()) for i, name in enumerate(SHAPE_NAMES)]
    return form, [Candidate(f"How many {what} are there?", str(number)) for what, number in numbers]


def _holding(ask: Asker) -> Candidates:
    return "", [
        Candidate("Does the gripper hold {}?", "yes" if i == ask.scene.held else "no", (i,))
        for i in range(len(ask.scene.colors))
    ]


def _held(ask: Asker) -> Candidates:
    held = "nothing" if ask.scene.held < 0 else pair_name(ask.scene, int(ask.scene.held))
    return "", [Candidate("What does the gripper hold?", held)]


def _gripper_place(ask: Asker) -> Candidates:
    return "", [Candidate("Where is the gripper?", place_of(ask.scene.gripper))]


def _gripper_cell(ask: Asker) -> Candidates:
    return "", [Candidate("At which column and row is the gripper?", _cell_words(cell_of(ask.scene.gripper)))]


def _direction(ask: Asker) -> Candidates:
    offsets = ask.scene.positions - ask.scene.gripper  # (K, 2)
    hours = np.rint(np.arctan2(offsets[:, 0], offsets[:, 1]) / (np.pi / 6)).astype(int) % 12
    return "", [
        Candidate("In which direction from the gripper is {}?", f"{hour or 12} o'clock", (i,))
        for i, hour in enumerate(hours.tolist())
        if np.linalg.norm(offsets[i]) >= DIRECTION_DISTANCE
    ]


class _Kind(NamedTuple):
    candidates: Callable[[Asker], Candidates]
    num_answers: int  # a constant answer's chance is 1 / num_answers
    unnamed_by: tuple[str, ...] = ()  # forms of reference that would tell the answer, or make the question a riddle


_KINDS = {
    "place": _Kind(_place, 9),
    "cell": _Kind(_cell, GRID * GRID),
    "at": _Kind(_at, len(SEEN_PAIRS)),
    "color": _Kind(_color, len(COLOR_NAMES), ("pair", "color", "inverted")),
    "shape": _Kind(_shape, len(SHAPE_NAMES), ("pair", "shape", "inverted")),
    "presence": _Kind(_presence, 2),
    "relation": _Kind(_relation, 2, ("relation",)),
    "related": _Kind(_related, len(SEEN_PAIRS), ("relation",)),
    "count": _Kind(_count, 3),
    "holding": _Kind(_holding, 2),
    "held": _Kind(_held, 9),
    "gripper_place": _Kind(_gripper_place, 9),
    "gripper_cell": _Kind(_gripper_cell, GRID * GRID),
    "direction": _Kind(_direction, 12),
}
# Kind of question -> the accuracy of a constant answer, at most (within `BALANCE_TOLERANCE` and two questions).
QUESTION_KINDS = {name: 1 / kind.num_answers for name, kind in _KINDS.items()}
RELATION_KINDS = ("relation", "related")


def generate_questions(
    num_scenes: int,
    seed: int,
    split: str = "all",
    questions_per_scene: int = 6,
    kinds: Sequence[str] | None = None,
    num_objects: int = 3,
    image_size: int = 48,
) -> tuple[np.ndarray, list[list[Question]]]:
    """Pictures of scenes, and questions about each, every one of another kind.

    Args:
        num_scenes: number of pictures, N.
        seed: everything follows from it.
        split: "all", or "demonstrations" for only what demonstrations show and say too.
        questions_per_scene: this many at most; fewer where a scene has no balanced question of enough kinds.
        kinds: of `QUESTION_KINDS`; by default all that the split allows.
        num_objects: objects in a scene, 2 to 5.
        image_size: height and width in pixels.

    Returns:
        images uint8 (N, image_size, image_size, 3), and N lists of `Question`s.

    Raises:
        ValueError: an unknown split or kind, or a number out of range.
    """
    if split not in QUESTION_SPLITS:
        raise ValueError(f"There is no split {split!r} of the questions. Splits: {', '.join(QUESTION_SPLITS)}.")
    allowed = [kind for kind in QUESTION_KINDS if split == "all" or kind not in RELATION_KINDS]
    kinds = allowed if kinds is None else list(kinds)
    if not kinds or not set(kinds) <= set(allowed):
        raise ValueError(f"kinds={kinds}: for split {split!r} give one or more of {', '.join(allowed)}.")
    if num_scenes < 1 or questions_per_scene < 1 or not 2 <= num_objects <= 5:
        raise ValueError(
            f"Got num_scenes={num_scenes}, questions_per_scene={questions_per_scene}, num_objects={num_objects}: the "
            "first two must be 1 or more, and a scene has 2 to 5 objects."
        )
    rng = np.random.default_rng(seed)
    pairs = ALL_PAIRS if split == "all" else SEEN_PAIRS
    forms = REFERENCES if split == "all" else SEEN_REFERENCES
    # Answers given so far, by kind of question: a common answer is not asked for again before the others.
    given: dict[tuple[str, str], Counter] = defaultdict(Counter)
    scenes, questions = [], []
    for _ in range(num_scenes):
        scene = with_gripper(rng, sample_scene(rng, [pairs] * num_objects))
        ask = Asker(scene, rng, forms, pairs)
        asked = []
        for kind in rng.permutation(kinds).tolist():
            question = _balanced(ask, kind, given)
            if question is not None:
                asked.append(question)
            if len(asked) == questions_per_scene:
                break
        scenes.append(scene)
        questions.append(asked)
    return render(Scene.stack(scenes), image_size), questions


def _balanced(ask: Asker, kind: str, given: dict[tuple[str, str], Counter]) -> Question | None:
    form, candidates = _KINDS[kind].candidates(ask)
    if not candidates:
        return None
    answers = given[kind, form]
    fewest = min(answers[candidate.answer] for candidate in candidates)
    if fewest > 1 + answers.total() * (QUESTION_KINDS[kind] + BALANCE_TOLERANCE):
        return None  # these answers have had their share
    text, answer, objects = ask.pick([candidate for candidate in candidates if answers[candidate.answer] == fewest])
    answers[answer] += 1
    names = [ask.name(i, without=_KINDS[kind].unnamed_by) for i in objects]
    return Question(kind, form, text.format(*names), answer)


def with_gripper(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with its gripper somewhere else, as often as `GRIPPER_MODES` says."""
    mode = rng.choice(list(GRIPPER_MODES), p=list(GRIPPER_MODES.values()))
    if mode == "away":
        return scene
    if mode == "closed on nothing":
        return replace(scene, closed=np.array(True))
    index = int(rng.integers(len(scene.colors)))
    gripper = scene.positions[index] + rng.uniform(-GRIPPER_JITTER, GRIPPER_JITTER, size=2)
    if mode == "above an object":
        return replace(scene, gripper=gripper)
    return replace(scene, gripper=gripper, closed=np.array(True), held=np.array(index))


def make_questions(
    num_scenes: int, seed: int, split: str = "all", multi_turn: bool = False, **options
) -> datasets.Dataset:
    """`generate_questions` as a dataset in the conversational layout that VLM fine-tuning uses.

    Columns: `images` (a list of one picture), `messages` (the user's picture and question, the assistant's answer),
    `kind`. One row for each question; with `multi_turn` one for each picture, with all its questions as one
    conversation and a list of kinds.

    Args:
        num_scenes, seed, split, options: as for `generate_questions`, which also says what is raised.
    """
    images, questions = generate_questions(num_scenes, seed, split, **options)
    rows = {"images": [], "messages": [], "kind": []}
    for image, asked in zip(images, questions, strict=True):
        encoded = {"bytes": _png(image), "path": None}
        for conversation in [asked] if multi_turn else [[question] for question in asked]:
            kinds = [question.kind for question in conversation]
            rows["images"].append([encoded])
            rows["messages"].append(_messages(conversation))
            rows["kind"].append(kinds if multi_turn else kinds[0])
    content = datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")})
    kind = datasets.Value("string")
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": content}),
            "kind": datasets.List(kind) if multi_turn else kind,
        }
    )
    return datasets.Dataset.from_dict(rows, features=features)


def place_distance(answer: str, truth: str) -> int | None:
    """How many cells an answer is off, on the axis where it is off most; None if it names no place of the truth's grid.

    The grid is 6 x 6 for answers such as `"column 2 row 5"`, and 3 x 3 for coarse words.

    Raises:
        ValueError: the truth is no place.
    """
    (truth_grid, expected), (answer_grid, got) = _grid_and_cell(truth), _grid_and_cell(answer)
    if expected is None:
        raise ValueError(f"{truth!r} is no place: expected 'column 2 row 5' or a word such as 'top left'.")
    if got is None or answer_grid != truth_grid:
        return None
    return max(abs(got[0] - expected[0]), abs(got[1] - expected[1]))


def _grid_and_cell(words: str) -> tuple[str, tuple[int, int] | None]:
    words = words.strip().lower()
    match = re.fullmatch(r"column (\d+) row (\d+)", words)
    if match:
        return "fine", (int(match[1]), int(match[2]))
    cells = {word: (column, row) for row, line in enumerate(PLACES) for column, word in enumerate(line)}
    return "coarse", cells.get(words)


def _cell_words(cell: tuple[int, int]) -> str:
    return f"column {cell[0]} row {cell[1]}"


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _messages(conversation: Sequence[Question]) -> list[dict]:
    messages = []
    for question in conversation:
        picture = [] if messages else [{"type": "image", "text": None}]
        messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question.text}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    return messages


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()

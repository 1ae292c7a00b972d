"""Questions about scenes: true by an independent reading of the scene, balanced, and held out where they should be."""

import re
from collections import Counter, defaultdict
from itertools import chain

import numpy as np
import pytest

from kivla.simulation import QUESTION_KINDS, generate_questions, make_questions, place_distance
from kivla.simulation.tabletop import questions
from kivla.simulation.tabletop.scenes import COLOR_NAMES, HELD_OUT_PAIRS, SHAPE_NAMES, Scene

TOLERANCE = 0.03


@pytest.fixture(scope="module")
def asked():
    """split -> (scenes, questions), as `generate_questions` makes them but for the drawing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "render", lambda scenes, image_size: scenes)
        return {split: generate_questions(800, 3, split) for split in questions.QUESTION_SPLITS}


def objects_of(scene: Scene) -> list[dict]:
    return [
        {"index": i, "color": COLOR_NAMES[c], "shape": SHAPE_NAMES[s], "x": x, "y": y}
        for i, (c, s, (x, y)) in enumerate(zip(scene.colors, scene.shapes, scene.positions, strict=True))
    ]


def direction(relation: str, a: dict, b: dict) -> bool:
    return {
        "left of": a["x"] < b["x"], "right of": a["x"] > b["x"], "above": a["y"] > b["y"], "below": a["y"] < b["y"],
    }[relation]  # fmt: skip


def find(phrase: str, things: list[dict]) -> dict:
    """The one object a phrase means, read word by word; asserts that it means exactly one."""
    if match := re.fullmatch(r"the object (left of|right of|above|below) (the .+)", phrase):
        anchor = find(match[2], things)
        found = [thing for thing in things if thing is not anchor and direction(match[1], thing, anchor)]
    else:
        words = set(phrase.split()) - {"the", "object", "that", "is"}
        assert words <= {*COLOR_NAMES, *SHAPE_NAMES}, phrase
        found = [thing for thing in things if words <= {thing["color"], thing["shape"]}]
    assert len(found) == 1, phrase
    return found[0]


def place(thing, cells):
    """(column, row) from 0 in a grid of `cells` x `cells`, from the top left."""
    return int((thing["x"] + 1) / 2 * cells), int((1 - thing["y"]) / 2 * cells)


def place_words(thing):
    column, row = place(thing, 3)
    words = [("top", "", "bottom")[row], ("left", "", "right")[column]]
    return " ".join(filter(None, words)) or "center"


def cell_words(thing):
    column, row = place(thing, 6)
    return f"column {column + 1} row {row + 1}"


def name(thing):
    return f"{thing['color']} {thing['shape']}"


def true_answer(text: str, scene: Scene) -> str:
    """Answers a question from the scene's numbers, with none of the code that made it."""
    things = objects_of(scene)
    gripper = {"x": scene.gripper[0], "y": scene.gripper[1]}
    yes_or_no = {True: "yes", False: "no"}
    if text == "Where is the gripper?":
        return place_words(gripper)
    if text == "At which column and row is the gripper?":
        return cell_words(gripper)
    if text == "What does the gripper hold?":
        return name(things[scene.held]) if scene.held >= 0 else "nothing"
    if match := re.fullmatch(r"Does the gripper hold (.+)\?", text):
        return yes_or_no[find(match[1], things)["index"] == scene.held]
    if match := re.fullmatch(r"In which direction from the gripper is (.+)\?", text):
        thing = find(match[1], things)
        # Hours of a clock face: clockwise from up
        clockwise = (90 - np.degrees(np.arctan2(thing["y"] - gripper["y"], thing["x"] - gripper["x"]))) % 360
        hours = {hour: min((clockwise - 30 * hour) % 360, (30 * hour - clockwise) % 360) for hour in range(1, 13)}
        return f"{min(hours, key=hours.get)} o'clock"
    if match := re.fullmatch(r"Where is (.+)\?", text):
        return place_words(find(match[1], things))
    if match := re.fullmatch(r"At which column and row is (.+)\?", text):
        return cell_words(find(match[1], things))
    if match := re.fullmatch(r"What is at (?:the )?(.+)\?", text):
        found = [thing for thing in things if match[1] in (place_words(thing), cell_words(thing))]
        assert len(found) <= 1
        return name(found[0]) if found else "nothing"
    if match := re.fullmatch(r"Which (color|shape) is (.+)\?", text):
        return find(match[2], things)[match[1]]
    if match := re.fullmatch(r"Is there an? (.+)\?", text):
        words = set(match[1].split()) - {"object"}
        return yes_or_no[any(words <= {thing["color"], thing["shape"]} for thing in things)]
    if match := re.fullmatch(r"How many (\w+?)s?(?: objects)? are there\?", text):
        return str(sum(match[1] in (thing["color"], thing["shape"]) for thing in things))
    if match := re.fullmatch(r"What is (left of|right of|above|below) (.+)\?", text):
        return name(find(f"the object {match[1]} {match[2]}", things))
    match = re.fullmatch(r"Is (the .+?) (left of|right of|above|below) (the .+)\?", text)
    return yes_or_no[direction(match[2], find(match[1], things), find(match[3], things))]


@pytest.mark.parametrize("split", questions.QUESTION_SPLITS)
def test_answers_are_true(asked, split):
    scenes, lists = asked[split]
    for i, asked_here in enumerate(lists):
        assert len({question.kind for question in asked_here}) == len(asked_here)
        for question in asked_here:
            assert question.answer == true_answer(question.text, scenes[i]), question


@pytest.mark.parametrize("split", questions.QUESTION_SPLITS)
def test_a_constant_answer_scores_at_chance(asked, split):
    answers = defaultdict(Counter)
    for question in chain(*asked[split][1]):
        answers[question.kind][question.answer] += 1
    assert set(answers) == set(QUESTION_KINDS) - (set() if split == "all" else set(questions.RELATION_KINDS))
    for kind, counts in answers.items():
        assert max(counts.values()) / counts.total() <= QUESTION_KINDS[kind] + TOLERANCE, kind
        assert counts.total() > 150, kind


def test_words_of_the_question_do_not_tell_yes_from_no(asked):
    counts = defaultdict(Counter)
    for question in chain(*asked["all"][1]):
        if question.answer in ("yes", "no"):
            for word in set(question.text.rstrip("?").split()):
                counts[question.kind, word][question.answer] += 1
    frequent = {key: count for key, count in counts.items() if count.total() >= 60}
    assert len(frequent) > 20
    for key, count in frequent.items():
        deviation = abs(count["yes"] - count["no"]) / np.sqrt(count.total())
        assert deviation < 4, (key, count)  # standard deviations


def test_held_out_pairs_wordings_and_relations_are_asked_about_only_in_all(asked):
    held_out = {f"{COLOR_NAMES[color]} {SHAPE_NAMES[shape]}" for color, shape in HELD_OUT_PAIRS}
    texts = {split: [f"{q.text} {q.answer}" for q in chain(*asked[split][1])] for split in asked}
    assert all(any(pair in text for text in texts["all"]) for pair in held_out)
    assert not any(pair in text for text in texts["demonstrations"] for pair in held_out)
    for words in (" that is ", " left of ", " above "):
        assert any(words in text for text in texts["all"])
        assert not any(words in text for text in texts["demonstrations"])


def test_conversational_layout():
    data = make_questions(5, seed=0, questions_per_scene=2)
    assert data.column_names == ["images", "messages", "kind"] and len(data) == 10
    images, lists = generate_questions(5, seed=0, questions_per_scene=2)
    flat = list(chain(*lists))
    for i, row in enumerate(data):
        assert (np.asarray(row["images"][0]) == images[i // 2]).all()
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert [part["type"] for part in user["content"]] == ["image", "text"]
        assert user["content"][1]["text"] == flat[i].text and assistant["content"][0]["text"] == flat[i].answer
        assert row["kind"] == flat[i].kind


def test_conversations_of_several_turns():
    data = make_questions(5, seed=0, questions_per_scene=3, multi_turn=True)
    single = make_questions(5, seed=0, questions_per_scene=3)
    assert len(data) == 5
    assert list(chain(*data["kind"])) == single["kind"]
    for i, row in enumerate(data):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * len(row["kind"])
        kinds = [part["type"] for message in row["messages"] for part in message["content"]]
        assert kinds.count("image") == 1 and kinds[0] == "image", "one picture, in front of the first question"
        turns = [row["messages"][k : k + 2] for k in range(0, len(row["messages"]), 2)]
        texts = [[part["text"] for message in turn for part in message["content"] if part["text"]] for turn in turns]
        rows = single.select(range(3 * i, 3 * i + 3))["messages"]
        expected = [[part["text"] for message in r for part in message["content"] if part["text"]] for r in rows]
        assert texts == expected


def test_same_seed_same_questions():
    images, lists = generate_questions(10, seed=5)
    again, lists_again = generate_questions(10, seed=5)
    assert (images == again).all() and lists == lists_again
    assert generate_questions(10, seed=6)[1] != lists


def test_place_distance():
    assert place_distance("column 2 row 5", "column 3 row 3") == 2
    assert place_distance(" Top left", "center") == 1
    assert place_distance("top left", "top left") == 0
    assert place_distance("red", "top") is None and place_distance("top", "column 1 row 1") is None
    with pytest.raises(ValueError, match="'red' is no place"):
        place_distance("top", "red")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "There is no split 'test'"),
        ({"kinds": ["taste"]}, "taste"),
        ({"split": "demonstrations", "kinds": ["relation"]}, "relation"),
        ({"num_objects": 1}, "2 to 5"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generate_questions(2, 0, **options)

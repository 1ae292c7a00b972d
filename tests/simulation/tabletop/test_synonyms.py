"""Words never demonstrated: chosen by their rule, met nowhere else, and alone in saying what is meant."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from matplotlib.colors import XKCD_COLORS, to_rgb

from kivla.simulation import SPLITS, TabletopVectorEnv, make_questions
from kivla.simulation.tabletop.scenes import COLOR_NAMES, COLORS, SHAPE_NAMES
from kivla.simulation.tabletop.synonyms import COLOR_SYNONYMS, LEFT_OUT, SHAPE_SYNONYMS, SYNONYMS


def lab(rgb) -> np.ndarray:
    """CIELAB (D65) of sRGB in [0, 1]."""
    rgb = np.asarray(rgb, np.float64)
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    xyz = to_xyz @ linear / [0.9505, 1.0, 1.0888]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(word: str) -> tuple[str, str]:
    """The tabletop's colours that are nearest to the survey's by distance and by hue."""
    colors = {name: lab(np.array(rgb) / 255) for name, rgb in COLORS.items()}
    asked = lab(to_rgb(XKCD_COLORS[f"xkcd:{word}"]))
    angle = {name: np.arctan2(value[2], value[1]) - np.arctan2(asked[2], asked[1]) for name, value in colors.items()}
    by_distance = min(colors, key=lambda name: np.linalg.norm(colors[name] - asked))
    return by_distance, min(angle, key=lambda name: abs((angle[name] + np.pi) % (2 * np.pi) - np.pi))


def test_colour_words_are_chosen_by_the_rule():
    assert {word: nearest(word) for word in COLOR_SYNONYMS} == {word: (c, c) for word, c in COLOR_SYNONYMS.items()}
    assert nearest("lavender") == ("pink", "purple") and nearest("indigo") == ("purple", "purple")
    assert set(LEFT_OUT) == {"lavender", "indigo"} and not set(LEFT_OUT) & set(SYNONYMS)
    assert set(SHAPE_SYNONYMS.values()) == set(SHAPE_NAMES)


def words_of(sentences) -> set[str]:
    return {word.strip(".,?") for sentence in sentences for word in sentence.lower().split()}


def test_no_question_and_no_other_instruction_has_the_words():
    questions = make_questions(100, seed=0)
    said = words_of(part["text"] or "" for turns in questions["messages"] for t in turns for part in t["content"])
    for split, kind in product(set(SPLITS) - {"synonyms"}, ("touch", "put")):
        info = TabletopVectorEnv(50, [kind], split=split, image_size=24).reset(seed=0)[1]
        said |= words_of(info["instruction"] + info["swapped_instruction"])
    assert {"red", "star"} < said and not said & set(SYNONYMS)


def test_the_word_alone_says_which_object_is_meant():
    env = TabletopVectorEnv(500, split="synonyms", image_size=24)
    _, info = env.reset(seed=range(500))
    for i, (told, plain, word) in enumerate(
        zip(info["instruction"], info["plain_instruction"], info["word"], strict=True)
    ):
        meaning = SYNONYMS[word]
        assert told == plain.replace(meaning, word) and told != plain
        is_color = word in COLOR_SYNONYMS
        values, names = (env.scene.colors[i], COLOR_NAMES) if is_color else (env.scene.shapes[i], SHAPE_NAMES)
        assert np.flatnonzero(values == names.index(meaning)).tolist() == [env.task.target[i]]
        others = set(COLOR_NAMES) | set(SHAPE_NAMES)
        assert not others & words_of([told]), "nothing else names the object"
        assert info["swapped_instruction"][i].endswith((*SHAPE_NAMES, "object"))
    counts = Counter(info["word"])
    assert set(counts) == set(SYNONYMS) and min(counts.values()) > 8, "every word about as often"
    assert np.bincount(env.task.target).min() > 130, "the target may be any of the three"


@pytest.mark.parametrize("kind", ["touch", "put"])
def test_both_sentences_ask_for_the_same(kind):
    env = TabletopVectorEnv(40, [kind], split="synonyms", image_size=24)
    _, info = env.reset(seed=range(40))
    task = [field.copy() for field in env.task]
    env.reset(seed=range(40), options={"instruction": info["plain_instruction"]})
    assert env.understood.all()
    for name in ("kind", "target", "argument", "anchor"):
        np.testing.assert_array_equal(getattr(env.told_task, name), task[env.task._fields.index(name)])

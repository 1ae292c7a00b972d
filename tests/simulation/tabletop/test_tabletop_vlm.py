"""The small VLM that comes with KIVLA sees what its card says."""

import json

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from kivla.named_models import TABLETOP_VLM
from kivla.simulation import make_questions
from kivla.simulation.tabletop.answers import answer_accuracy
from kivla.training.evaluation.vlm_answers import ask


def test_it_is_small():
    assert sum(file.stat().st_size for file in TABLETOP_VLM.iterdir()) <= 5e6


def test_the_card_reports_what_was_asked_for():
    accuracy = json.loads((TABLETOP_VLM / "accuracy.json").read_text())["accuracy"]
    for kind in ("place to one cell", "cell to one cell", "gripper_place to one cell", "gripper_cell to one cell"):
        assert accuracy[kind]["accuracy"] >= 0.9, kind
    for kind in ("color", "shape", "presence"):
        assert accuracy[kind]["accuracy"] >= 0.95, kind


@pytest.mark.slow
def test_fresh_questions_are_answered_as_the_card_says():
    claimed = json.loads((TABLETOP_VLM / "accuracy.json").read_text())["accuracy"]
    questions = make_questions(300, seed=987_654)
    model = AutoModelForImageTextToText.from_pretrained(TABLETOP_VLM, dtype="float32")
    table = answer_accuracy(questions, ask(model, AutoProcessor.from_pretrained(TABLETOP_VLM), questions))
    assert table["all"]["accuracy"] == pytest.approx(claimed["all"]["accuracy"], abs=0.03)
    for kind, row in table.items():
        # Four standard errors of this sample, and one answer
        error = (max(claimed[kind]["accuracy"] * (1 - claimed[kind]["accuracy"]), 0.01) / row["asked"]) ** 0.5
        assert row["accuracy"] == pytest.approx(claimed[kind]["accuracy"], abs=4 * error + 1 / row["asked"]), kind

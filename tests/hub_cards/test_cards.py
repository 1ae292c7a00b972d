"""Cards: valid metadata, every figure of the report, and code that runs."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from kivla.answers import answer_accuracy, answer_of
from kivla.hub_cards import fine_tuned_card, policy_card, tabletop_vlm_card
from kivla.pretrain_tiny import PretrainArguments, command
from kivla.rollout import success_rate
from kivla.simulation import make_questions
from kivla.tabletop import TABLETOP_VLM


@pytest.fixture(scope="module")
def accuracy():
    questions = make_questions(20, seed=1)
    return answer_accuracy(questions, [answer_of(messages) for messages in questions["messages"]])


def test_the_policys_card_has_the_reports_figures(accuracy):
    rates = {"original": success_rate([False] * 19 + [True]), "swapped": success_rate([True] * 17 + [False] * 3)}
    report = {
        "policy": "outputs/policy",
        "summary": ["It does as it is told."],
        "settings": {"vlm": "some/vlm", "steps": 12},
        "machine": {"cpu": "a processor", "threads": 2, "torch": "2", "transformers": "5"},
        "rollouts": [{"title": "Touch tasks", "success": success_rate([True] * 18 + [False] * 2), "swapped": rates}],
        "questions": {"before": accuracy, "after": accuracy},
    }
    card = policy_card(report, "kivla demo")
    assert (card.data.pipeline_tag, card.data.library_name) == ("robotics", "kivla")
    row = next(line for line in card.text.splitlines() if line.startswith("| Touch tasks"))
    assert re.findall(r"\d+\.\d %", row) == ["90.0 %", "5.0 %", "85.0 %"]
    assert "vlm: some/vlm" in card.text and "a processor" in card.text
    assert card.text.count("| 100.0 % | 100.0 % |") == len(accuracy)


def test_the_vlms_card_has_its_command_and_its_accuracy(accuracy):
    args = PretrainArguments("outputs/tabletop_vlm", seed=3)
    report = {**vars(args), "model_class": "Vlm", "parameters": 12345, "threads": 2, "accuracy": accuracy}
    card = tabletop_vlm_card(report, command(args))
    assert "kivla pretrain-tiny outputs/tabletop_vlm --seed 3\n" in card.text
    assert "12,345 parameters" in card.text
    assert card.text.count("| 100.0 % |") == len(accuracy)


def test_the_code_of_the_shipped_vlms_card_runs(capsys):
    card = ModelCard.load(TABLETOP_VLM / "README.md")
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    asked, answered = capsys.readouterr().out.rsplit("<assistant>", 1)
    assert "?" in asked and answered.strip()
    report = json.loads((TABLETOP_VLM / "accuracy.json").read_text())
    assert f"{100 * report['accuracy']['all']['accuracy']:.1f} %" in card.text


def test_the_fine_tuned_card_says_which_facts_are_missing():
    with pytest.raises(ValueError, match=r"needs the facts \['name', 'path', 'recipe'"):
        fine_tuned_card({"vlm": "x"})

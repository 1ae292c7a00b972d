"""Cards: valid metadata, every figure of the report, and code that runs."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from kivla.demo.pretraining import PretrainArguments, command
from kivla.hub_cards import fine_tuned_card, hub_names, policy_card, readme, tabletop_vlm_card
from kivla.modeling_kivla import hub_card
from kivla.named_models import TABLETOP_VLM
from kivla.processing import processor_card
from kivla.simulation import make_questions
from kivla.simulation.rollout_evaluation import success_rate
from kivla.simulation.tabletop.answers import answer_accuracy
from kivla.training.evaluation.vlm_answers import answer_of


@pytest.fixture(scope="module")
def accuracy():
    questions = make_questions(20, seed=1)
    return answer_accuracy(questions, [answer_of(messages) for messages in questions["messages"]])


def test_the_policys_card_has_the_reports_figures(accuracy):
    rates = {"original": success_rate([False] * 19 + [True]), "swapped": success_rate([True] * 17 + [False] * 3)}
    report = {
        "policy": "outputs/policy",
        "summary": ["It does as it is told."],
        "settings": {"vlm": "some/vlm", "steps": 12, "recipe": "frozen", "kinds": ["put", "move"]},
        "recipe": "flow trains the expert",
        "machine": {"cpu": "a processor", "threads": 2, "torch": "2", "transformers": "5"},
        "rollouts": [{"title": "Touch tasks", "success": success_rate([True] * 18 + [False] * 2), "swapped": rates}],
        "questions": {"before": accuracy, "after": accuracy},
    }
    card = policy_card(report, "kivla demo")
    assert (card.data.pipeline_tag, card.data.library_name) == ("robotics", "kivla")
    row = next(line for line in card.text.splitlines() if line.startswith("| Touch tasks"))
    assert re.findall(r"\d+\.\d %", row) == ["90.0 %", "5.0 %", "85.0 %"]
    assert "by KIVLA's recipe `frozen`: flow trains the expert.\n" in card.text and "insulation" not in card.text
    assert "* kinds: put, move\n" in card.text and 'make_env("tabletop", 1, kinds=[' in card.text
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


ROBOT = {
    "name": None,
    "dataset": "./pushes",
    "episodes": 3,
    "frames": 182,
    "fps": 10,
    "cameras": ["top"],
    "action_names": ["x"],
    "state_names": ["x"],
    **{kind: [0.5] for kind in ("q01", "q99", "mean", "std")},
}
ROW = {"action_mae": 0.25, "mean_action_mae": 0.5, "times_better_than_mean": 2.0}
FACTS = {
    **{"name": "pusher", "path": "./pusher", "recipe": "insulated", "what_it_is": "insulated", "vlm": "./vlm"},
    **{"vlm_class": "Vlm", "vlm_parameters": 10, "expert_parameters": 3, "acts_by": "flow", "chunk_size": 6},
    **{"action_tokens": "none", "state_encoding": "text", "normalization": "quantile", "max_steps": 5, "batch_size": 2},
    **{"minutes": 1.0, "machine": None, "robots": [ROBOT], "example_text": "push it", "vlm_dataset": None},
    **{"trains_vlm_data": False, "command": "kivla train", "sets": {"train": ROW}, "before": None, "after": None},
}


def results(card: ModelCard) -> list[dict]:
    """As the Hub reads them: from the YAML, checked by huggingface_hub."""
    again = ModelCard(str(card))
    assert again.data.eval_results, "huggingface_hub does not understand the model index"
    (entry,) = again.data.to_dict()["model-index"]
    return entry["results"]


def test_every_evaluated_set_is_a_dataset_of_its_own():
    robots = [{**ROBOT, "name": "a", "dataset": "me/first"}, {**ROBOT, "name": "b", "dataset": "./second"}]
    sets = {"train_a": ROW, "train_b": {**ROW, "action_mae": 0.125}, "held_out": {**ROW, "action_mae": 1.0}}
    found = results(fine_tuned_card({**FACTS, "robots": robots, "sets": sets}))
    expected = [("me/first, train_a", "me/first", 0.25), ("second, train_b", "second", 0.125)]
    expected.append(("me/first, held_out", "me/first", 1.0))
    assert [(r["dataset"]["name"], r["dataset"]["type"], r["metrics"][0]["value"]) for r in found] == expected


def test_where_the_vlm_is_from():
    assert "`./vlm`, a folder of the machine that it was made on: insulated." in fine_tuned_card(FACTS).text
    own = fine_tuned_card({**FACTS, "vlm": hub_names.vlm_name(TABLETOP_VLM)})
    assert "`tabletop`, the small one that comes with KIVLA: insulated." in own.text
    assert "model `google/vlm`: insulated." in fine_tuned_card({**FACTS, "vlm": "google/vlm"}).text.replace("\n", " ")


def test_metadata_are_the_hubs():
    facts = {**FACTS, "vlm": "google/paligemma2-3b-pt-224", "vlm_dataset": "./questions"}
    facts["robots"] = [ROBOT, {**ROBOT, "dataset": "lerobot/pusht"}]
    data = fine_tuned_card(facts, "mit").data
    assert (data.license, data.base_model, data.datasets) == ("mit", ["google/paligemma2-3b-pt-224"], ["lerobot/pusht"])
    data = fine_tuned_card(FACTS).data
    assert (data.license, data.base_model, data.datasets) == (None, None, None)


def test_what_is_not_finite_is_no_result():
    card = fine_tuned_card({**FACTS, "sets": {"train": {**ROW, "action_mae": float("nan")}, "held_out": ROW}})
    (result,) = results(card)
    assert result["dataset"]["split"] == "held_out" and "| train | nan |" in card.text
    card = fine_tuned_card({**FACTS, "sets": {"train": {**ROW, "action_mae": float("inf")}}})
    assert "model-index" not in card.data.to_dict()


def test_names_with_special_characters():
    name, words = 'a | "b" <c> \\ `d`\nnext: line', 'push "it" \\ to the\nleft'
    robot = {**ROBOT, "action_names": [name], "state_names": [name], "cameras": [name], "name": words}
    card = fine_tuned_card(
        {**FACTS, "name": "my: 'policy' #1", "path": words, "example_text": words, "robots": [robot]}
    )
    assert ModelCard(str(card)).data.model_name == "my: 'policy' #1"
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    given = {}
    exec(code.partition("from transformers import pipeline")[0], given)
    exec("observation" + code.partition("observation")[2].partition("actions =")[0], given)
    assert given["observation"]["text"] == given["observation"]["robot"] == words
    (row,) = [line for line in card.text.splitlines() if line.startswith("| a ")]
    assert row.replace("\\|", "").count("|") == 6, "the name has cut the table's row"


def test_what_a_trainer_does_not_know_is_left_out():
    facts = {**FACTS, "recipe": None, "what_it_is": None, "command": None, "sets": {}, "minutes": None}
    text = fine_tuned_card({**facts, "robots": [{**ROBOT, "dataset": None, "episodes": None}]}).text
    assert not re.search(r"None|training\.png|chunks\.png|## Evaluation|## Training", text)
    assert "## Limits" in text and "\n\n\n\n" not in text


def test_the_fine_tuned_card_says_which_facts_are_missing():
    with pytest.raises(ValueError, match=r"needs the facts \['name', 'path', 'recipe'"):
        fine_tuned_card({"vlm": "x"})


@pytest.mark.parametrize("name", ["owner/name", "name", "a/b/c", "owner/na me", ".", "", None, "hub_cards/__init__.py"])
def test_what_travels_with_a_policy_agrees(name):
    """Policies and processors bring their own code along, which imports nothing of this package: what they share with
    the cards stands in both."""
    assert hub_card.hub_id(name) == hub_names.hub_id(name)
    assert (hub_card.BEGIN, hub_card.END) == (readme.BEGIN, readme.END)
    minimal = processor_card._TEXT
    assert f"{readme.BEGIN}\n{hub_card.MINIMAL}\n" in minimal and readme.END in minimal
    assert readme.author_words(minimal) == ("", ""), "a fuller card takes the place of all of it"

"""The card of a policy from `kivla train`: true metadata, pictures that exist, code that runs."""

import json
import re
import shutil

import pytest
from huggingface_hub import DatasetCard, ModelCard

from kivla.cli import main
from tests.commands.test_train_recipes import command, sources  # noqa: F401 (a fixture)
from tests.helpers.policies import DATASET, dataset


@pytest.fixture(scope="module")
def policy(sources, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("card") / "my_policy"
    main(command(sources, folder))
    return folder


def test_metadata_is_the_hubs(policy):
    card = ModelCard.load(policy / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("kivla", "robotics")
    assert card.data.base_model is None and card.data.datasets is None, "folders are no names on the Hub"
    figures = json.loads((policy / "eval_results.json").read_text())
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(figures["eval_train_action_mae"], abs=1e-6)
    assert f"{100 * figures['eval_vlm_answer_accuracy']:.1f} %" in card.text
    mean = dataset().statistics["actions"]["mean"][0]
    assert f"| {mean:.4g} |" in card.text


def test_pictures_exist_and_code_runs(policy, monkeypatch):
    text = (policy / "README.md").read_text()
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures == ["training.png", "chunks.png"]
    assert all((policy / picture).stat().st_size > 1000 for picture in pictures)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    namespace = {}
    monkeypatch.chdir(policy.parent)
    exec(code.replace(", trust_remote_code=True", ""), namespace)
    assert namespace["actions"].shape == (6, 4)


def test_the_command_writes_it_again(policy, tmp_path, capsys):
    shutil.copytree(policy, tmp_path / "copy")
    main(["card", str(tmp_path / "copy"), "--license", "apache-2.0", "--name", "Drawer opener"])
    card = ModelCard.load(tmp_path / "copy" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.model_name == "Drawer opener"
    assert "# Drawer opener" in card.text
    with pytest.raises(SystemExit, match="has no training_facts"):
        main(["card", str(tmp_path)])


def test_a_datasets_card(tmp_path, monkeypatch):
    shutil.copytree(DATASET, tmp_path / "data")
    main(["card", str(tmp_path / "data"), "--name", "Faucets"])
    card = DatasetCard.load(tmp_path / "data" / "README.md")
    assert card.data.tags == ["LeRobot"] and "3 episodes, 182 frames" in card.text
    low = dataset().statistics["actions"]["min"][0]
    assert f"{low:.4g}" in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    monkeypatch.chdir(tmp_path)
    exec(code, {})

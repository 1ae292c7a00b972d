"""What a push leaves on the Hub as README.md, of a model, a processor, a trainer and `kivla train`; an author's stays.

A Hub on this machine, huggingface_hub's own client, and one process that pushes everything.
"""

import re

import pytest
import yaml

from kivla.modeling_kivla import hub_card as of_model
from kivla.processing import processor_card as of_processor
from tests.commands.test_train_recipes import sources  # noqa: F401 (a fixture)
from tests.helpers.hub_stand_in import hub_stand_in
from tests.helpers.policies import make_trainer, save_policy
from tests.hub_cards.test_hub import run

PUSH = """
import sys
from pathlib import Path
from kivla import KIVLAForActionPrediction, KIVLAProcessor
from tests.helpers.policies import make_trainer
folder, out = map(Path, sys.argv[1:])
model, processor = KIVLAForActionPrediction.from_pretrained(folder), KIVLAProcessor.from_pretrained(folder)
model.vlm.config._name_or_path = "google/paligemma2-3b-pt-224"
for repo, parts in {
    "user/model": [model],
    "user/processor": [processor],
    "user/model-first": [model, processor],
    "user/processor-first": [processor, model],
    "user/authors": [processor, model, processor],
}.items():
    for part in parts:
        part.push_to_hub(repo)

(out / "saved").mkdir()
(out / "saved" / "README.md").write_text("Mine.")
model.save_pretrained(out / "saved", push_to_hub=True, repo_id="user/saved")

(out / "run").mkdir()
(out / "run" / "README.md").write_text("From here.\\n")
trainer = make_trainer(out, hub_model_id="user/trained", max_steps=1, push_to_hub=True)
assert "Every word counts." in (out / "run" / "README.md").read_text(), "the next checkpoint would overwrite the Hub's"
trainer.train()
trainer.evaluate()
trainer.push_to_hub(license="mit", tags="sawyer")
"""
COMMAND = "import sys; from kivla.cli import main; main(sys.argv[1:])"


AUTHORS = "---\nlicense: mit\ntags:\n- mine\n---\n\n# By hand\n\nEvery word counts.\n"


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The Hub after all pushes, and the folder here."""
    folder = tmp_path_factory.mktemp("pushed")
    policy = save_policy(folder)
    with hub_stand_in() as (endpoint, hub):
        for repo in ("user/authors", "user/trained"):
            hub.repos[repo] = {}
            hub.commit(repo, "main", [])
            hub.repos[repo]["main"]["README.md"] = AUTHORS.encode()
        run(PUSH, policy, folder, endpoint=endpoint, cache=folder / "cache")
    return hub, folder


def card(hub, repo: str) -> tuple[dict, str]:
    text = hub.repos[repo]["main"]["README.md"].decode()
    metadata, body = re.match(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    return yaml.safe_load(metadata), body


def test_both_folders_agree_on_their_lines():
    for line in (of_model.BEGIN, of_model.END, of_model.MINIMAL):
        assert line in of_processor._TEXT
    assert of_model._LIBRARYS == of_processor._LIBRARYS


@pytest.mark.slow
@pytest.mark.parametrize("repo", ["user/model", "user/model-first", "user/processor-first", "user/saved"])
def test_a_model_pushed_alone_or_with_its_processor(pushed, repo):
    hub, folder = pushed
    metadata, body = card(hub, repo)
    assert metadata["pipeline_tag"] == "robotics" and metadata["library_name"] == "kivla"
    assert metadata["base_model"] == "google/paligemma2-3b-pt-224" and set(of_model.TAGS) <= set(metadata["tags"])
    assert f'model="{repo}"' in body and "PaliGemmaForConditionalGeneration" in body
    assert "automatically generated" not in body and body.count(of_model.BEGIN) == 1
    for name, content in hub.repos[repo]["main"].items():
        assert str(folder).encode() not in content, f"{name} tells where this machine keeps the VLM"


@pytest.mark.slow
def test_a_processor_pushed_alone(pushed):
    metadata, body = card(pushed[0], "user/processor")
    assert metadata == {"library_name": "kivla", "tags": ["kivla", "robotics"]}
    assert 'KIVLAProcessor.from_pretrained("user/processor")' in body and "More Information Needed" not in body


@pytest.mark.slow
def test_an_authors_card_on_the_hub_stays(pushed):
    metadata, body = card(pushed[0], "user/authors")
    assert body.strip() == AUTHORS.partition("---\n\n")[2].strip()
    assert (metadata["license"], metadata["pipeline_tag"]) == ("mit", "robotics") and "mine" in metadata["tags"]


@pytest.mark.slow
def test_saving_with_a_push_leaves_the_readme_here_alone(pushed):
    hub, folder = pushed
    assert (folder / "saved" / "README.md").read_text() == "Mine."
    assert "model.safetensors" in hub.repos["user/saved"]["main"]


@pytest.mark.slow
def test_a_trainers_push_has_the_real_card_and_keeps_the_authors(pushed):
    hub, folder = pushed
    metadata, body = card(hub, "user/trained")
    assert (metadata["pipeline_tag"], metadata["library_name"]) == ("robotics", "kivla")
    assert metadata["license"] == "mit" and {"mine", "sawyer", "kivla"} <= set(metadata["tags"])
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert result["dataset"]["name"] == "lerobot_v3_metaworld, evaluation"
    assert f"| {result['metrics'][0]['value']:.4f} |" in body
    assert body.count("Every word counts.") == body.count("From here.") == body.count(of_model.BEGIN) == 1
    assert 'model="user/trained"' in body and "3 episodes" in body
    assert str(folder) not in body


def test_an_option_that_the_card_does_not_have_is_refused(tmp_path):
    with pytest.raises(TypeError, match="The card has no colour; options are tags, language"):
        make_trainer(tmp_path).create_model_card(colour="red")


@pytest.mark.slow
def test_kivla_train_pushes_once_and_with_its_own_card(sources, tmp_path):  # noqa: F811
    from tests.commands.test_train_recipes import command

    options = {"push_to_hub": True, "hub_model_id": "user/recipe", "recipe": "pi0.5", "max_steps": 2}
    words = command(sources, tmp_path / "policy", **options)
    with hub_stand_in() as (endpoint, hub):
        run(COMMAND, *words, endpoint=endpoint, cache=tmp_path / "cache")
        assert list(hub.repos) == ["user/recipe"], "a stage was pushed as a policy of its own"
        metadata, body = card(hub, "user/recipe")
        files = hub.repos["user/recipe"]["main"]
    assert not [file for file in files if "stage_" in file or "checkpoint-" in file], "only the policy is pushed"
    assert (tmp_path / "policy" / "_stage_1" / "model.safetensors").is_file()
    assert "pi0.5" in metadata["tags"] and 'model="user/recipe"' in body and "before fine-tuning" in body
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", body):
        assert picture in files, f"the card on the Hub shows {picture}, which is not there"
    assert str(tmp_path) not in body and str(sources) not in body

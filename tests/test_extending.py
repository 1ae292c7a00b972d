"""What is added from outside the package, one of each: an action tokenizer, a dataset format, an environment, a recipe.

The files of `tests/out_of_tree` lie in a temporary folder, as in a project of a user's own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from kivla import KIVLAProcessor, LeRobotDataset
from kivla.cli import main
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.processing import ACTION_TOKENIZERS, ActionTokenizer, action_tokenizer_class, load_action_tokenizer
from kivla.simulation import make_env
from kivla.training.data.episode_dataset import EpisodeDataset
from kivla.training.data.robot_dataset import dataset_reader
from kivla.training.recipes import get_recipe
from tests.commands.test_commands import TINY

SOURCES = Path(__file__).parent / "out_of_tree"
TOKENIZER, DATASET, ENVIRONMENT = (
    "companding_tokenizer:CompandingActionTokenizer",
    "npz_dataset:NpzDataset",
    "dot_world:DotWorld",
)


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory):
    """A folder with the user's files, where Python finds them."""
    folder = tmp_path_factory.mktemp("project")
    for file in SOURCES.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def entry_points(tmp_path, monkeypatch):
    """As if the user's files were an installed package that names them."""
    folder = tmp_path / "my_lab-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.0\n")
    groups = {"action_tokenizers": f"companding = {TOKENIZER}", "datasets": f"npz = {DATASET}"}
    groups["environments"] = f"dots = {ENVIRONMENT}"
    (folder / "entry_points.txt").write_text("\n".join(f"[kivla.{name}]\n{line}" for name, line in groups.items()))
    monkeypatch.syspath_prepend(tmp_path)


def record(folder: Path, count: int = 4) -> Path:
    """Episodes of the environment's expert in the user's format."""
    env = make_env(ENVIRONMENT, count)
    observation, info = env.reset(seed=range(count))
    steps = []
    for _ in range(5):
        actions = env.expert_actions()
        steps.append((actions, observation["state"], observation["images"]["front"]))
        observation, *_ = env.step(actions)
    folder.mkdir()
    for i in range(count):
        actions, state, front = (np.stack([step[j][i] for step in steps]) for j in range(3))
        np.savez(folder / f"{i}.npz", actions=actions, state=state, front=front, text=info["instruction"][i])
    return folder


@pytest.fixture(scope="module")
def trained(project, tmp_path_factory):
    """A policy by the user's recipe, with his action tokenizer, on data of his format; and the data."""
    folder = tmp_path_factory.mktemp("trained")
    save_tiny_vlm(folder / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    data = record(folder / "episodes")
    options = {**TINY, "vlm": folder / "vlm", "output_dir": folder / "policy", "max_steps": 2, "eval_episodes": 1}
    options |= {"dataset": data, "dataset_format": DATASET, "recipe": project / "half_insulated.yaml"}
    del options["action_vocab_size"]
    main(["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value))])
    return folder / "policy", data


def test_a_policy_with_an_action_tokenizer_of_ones_own(trained, entry_points, monkeypatch):
    settings = json.loads((trained[0] / "processor_config.json").read_text())
    assert settings["action_tokenizer"]["kind"] == "companding"
    actions = [dict(np.load(file))["actions"] for file in sorted(trained[1].glob("*.npz"))]
    assert settings["action_tokenizer"]["limit"] > 0, "fitted on the data"
    processor = KIVLAProcessor.from_pretrained(trained[0])
    chunk = np.concatenate([actions[0], actions[0][-1:]])  # 6 steps
    row = processor(images=[[np.zeros((32, 32, 3), np.uint8)]], text=["go"], state=[[0.5, 0.5]], actions=[chunk])
    (decoded,) = processor.decode_actions(row["labels"])
    np.testing.assert_allclose(processor.unnormalize_actions(decoded), chunk, atol=0.05)

    # Another process knows the class by its package alone
    monkeypatch.delitem(ACTION_TOKENIZERS, "companding")
    pipe = pipeline("action-prediction", model=str(trained[0]))
    observation = {"images": [np.zeros((32, 32, 3), np.uint8)], "text": "go left", "state": [0.5, 0.5]}
    assert np.isfinite(pipe(observation, seed=0)["actions"]).all()


def test_where_the_package_is_not_installed_the_action_tokenizer_is_named(trained, monkeypatch):
    monkeypatch.delitem(ACTION_TOKENIZERS, "companding")
    with pytest.raises(ValueError, match=r"Unknown action tokenizer 'companding', expected one of .*fast.* install"):
        KIVLAProcessor.from_pretrained(trained[0])


def test_commands_import_the_module_that_they_are_told(trained, tmp_path, monkeypatch):
    """A tokenizer of one file, without a package: its policy acts where the command is told the file's module."""
    monkeypatch.delitem(ACTION_TOKENIZERS, "companding")
    monkeypatch.delitem(sys.modules, "companding_tokenizer")
    options = ["--env", ENVIRONMENT, "--max_steps", "2", "--num_episodes", "1", "--num_videos", "0"]
    options += ["--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"Unknown action tokenizer 'companding'(.|\n)*--import MODULE"):
        main(["rollout", str(trained[0]), *options])
    main(["rollout", str(trained[0]), *options, "--import", "companding_tokenizer"])
    assert (tmp_path / "rollout.json").is_file()


def test_the_kind_is_saved_by_whoever_saves(tmp_path):
    class Silent(action_tokenizer_class(TOKENIZER)):
        kind = "silent"

        def to_dict(self):
            return {name: value for name, value in super().to_dict().items() if name != "kind"}

    Silent(limit=3.0).save_pretrained(tmp_path)
    assert type(load_action_tokenizer(tmp_path)) is Silent
    del ACTION_TOKENIZERS["silent"]


def test_an_action_tokenizer_by_itself_on_disk(tmp_path, entry_points, monkeypatch):
    tokenizer = action_tokenizer_class(TOKENIZER)(limit=2.0, vocab_size=32)
    tokenizer.save_pretrained(tmp_path / "saved")
    monkeypatch.delitem(ACTION_TOKENIZERS, "companding")
    loaded = load_action_tokenizer(tmp_path / "saved")
    chunk = np.linspace(-2, 2, 12).reshape(6, 2)
    assert loaded.encode(chunk) == tokenizer.encode(chunk)
    assert loaded.roundtrip_error([chunk])["rmse"] < 0.2


def test_an_action_tokenizer_with_a_layout_of_its_own(tmp_path):
    class Waves(action_tokenizer_class(TOKENIZER)):
        kind, files = "waves", ("waves.json",)

        @classmethod
        def from_pretrained(cls, folder, **hub_kwargs):
            return cls(**json.loads((Path(folder) / "waves.json").read_text()))

        def save_pretrained(self, folder):
            (Path(folder) / "waves.json").write_text(json.dumps({"limit": self.limit}))

    Waves(limit=3.0).save_pretrained(tmp_path)
    loaded = load_action_tokenizer(tmp_path)
    assert (type(loaded), loaded.limit) == (Waves, 3.0)
    del ACTION_TOKENIZERS["waves"]


def test_a_saved_file_does_not_decide_what_is_imported():
    with pytest.raises(ValueError, match="expected is the name of a kind"):
        load_action_tokenizer({"kind": "this:Zen", "limit": 1})
    assert "this" not in sys.modules


def test_data_of_ones_own_format_is_what_the_policy_was_trained_on(trained, tmp_path, capsys):
    policy, folder = trained
    data = dataset_reader(DATASET)(folder, chunk_size=6, episodes=[0, 2, 3])
    saved = KIVLAProcessor.from_pretrained(policy)
    assert saved.cameras == ["front"]
    for name, values in data.statistics["actions"].items():
        np.testing.assert_allclose(saved.statistics["actions"][name], values, err_msg=name)
    facts = json.loads((policy / "training_facts.json").read_text())
    assert [robot["action_names"] for robot in facts["robots"]] == [["x", "y"]]
    metrics = json.loads((policy / "eval_results.json").read_text())
    assert "eval_held_out_action_mae" in metrics
    options = ["--dataset", str(folder), "--dataset_format", DATASET, "--output_dir", str(tmp_path)]
    main(["predict", str(policy), *options, "--num_frames", "2", "--num_plots", "1"])
    assert "2 chunks" in capsys.readouterr().out


def test_the_recipe_was_followed(trained, project):
    config = json.loads((trained[0] / "config.json").read_text())
    assert config["backbone_gradient_scale"] == 0.5
    assert (trained[0] / "stage_1" / "trainer_state.json").is_file(), "two stages"
    assert json.loads((trained[0] / "training_facts.json").read_text())["recipe"] == "half_insulated"
    recipe = get_recipe(str(project / "half_insulated.yaml"))
    assert [stage.trains for stage in recipe.stages] == [("backbone",), ("backbone", "expert")]


def test_an_environment_of_ones_own_is_recorded_and_rolled_out(trained, tmp_path):
    main(["record", str(tmp_path / "data"), "--env", ENVIRONMENT, "--num_episodes", "3", "--num_envs", "2"])
    data = LeRobotDataset(tmp_path / "data", chunk_size=6)
    assert (data.num_episodes, data.cameras) == (3, ["observation.images.front"])
    options = ["--env", ENVIRONMENT, "--env_options", "steps=3", "--max_steps", "3", "--output_dir", str(tmp_path)]
    main(["rollout", str(trained[0]), *options, "--num_episodes", "2", "--num_videos", "0"])
    report = json.loads((tmp_path / "rollout.json").read_text())
    assert report["policies"][0]["success"]["episodes"] == 2
    assert report["policies"][0]["swapped"] is not None


def test_what_installed_packages_name_is_found_by_its_name(entry_points):
    assert make_env("dots", 2).num_envs == 2
    assert dataset_reader("npz").__name__ == "NpzDataset"
    assert action_tokenizer_class("companding").__name__ == "CompandingActionTokenizer"


def test_what_is_missing_is_said_by_name(project):
    (project / "halves.py").write_text(
        "from kivla.processing import ActionTokenizer\n"
        "from kivla.training.data.episode_dataset import EpisodeDataset\n"
        "class Codes(ActionTokenizer):\n"
        "    kind = 'halves'\n"
        "    def encode_chunk(self, chunk): ...\n"
        "class Episodes(EpisodeDataset):\n"
        "    def read_text(self, episode, frame): ...\n"
        "class World:\n"
        "    cameras, action_dim, num_envs = ['front'], 2, 1\n"
        "    def __init__(self, num_envs): ...\n"
        "    def reset(self, seed, options=None): ...\n"
    )
    with pytest.raises(TypeError, match=r"halves\.Codes cannot .*lacks decode_codes, from_dict, max_tokens, to_dict"):
        action_tokenizer_class("halves:Codes")
    with pytest.raises(TypeError, match=r"halves\.Episodes cannot .*lacks read_images, read_vectors\."):
        dataset_reader("halves:Episodes")
    with pytest.raises(TypeError, match=r"halves\.World cannot .*lacks fps, step, close\."):
        make_env("halves:World", 1)
    with pytest.raises(ValueError, match=r"there is no module 'no_such_module'"):
        make_env("no_such_module:World", 1)
    with pytest.raises(ValueError, match=r"halves has no 'Worlds'"):
        make_env("halves:Worlds", 1)
    del ACTION_TOKENIZERS["halves"]


def test_two_classes_cannot_share_a_kind():
    with pytest.raises(TypeError, match=r"kind = 'fast'.*FASTActionTokenizer"):

        class Other(ActionTokenizer):
            kind = "fast"


def test_observations_that_are_not_what_they_should_be_are_named():
    from kivla.simulation.rollout import rollout

    env = make_env(ENVIRONMENT, 2)
    observe, info = env._observe, env._info
    env._observe = lambda: {"images": {"front": observe()["images"]["front"].astype(float)}}
    env._info = lambda: {name: values for name, values in info().items() if name != "success"}
    with pytest.raises(
        ValueError, match=r"no 'state'; info has no 'success'; .*'front'\] must be uint8 \(2, .*float64"
    ):
        rollout(None, env, [0, 1], replan_every=1, max_steps=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("state_encoding: words\n", "state_encoding must be"),
        ("recipe: x\n", "unknown name 'recipe'"),
        ("stages: []\n", "at least one stage"),
        ("stages: [{trains: backbone}]\n", r"write \[backbone\]"),
        ("stages: [{trains: [backbone], flow_loss_wieght: 0}]\n", "Did you mean flow_loss_weight"),
        ("stages: [{trains: [expert], flow_loss_weight: zero}]\n", "flow_loss_weight must be a number, got 'zero'"),
        ("stages: [{share: 1}]\n", "stage 1 lacks 'trains'"),
        ("stages: [{trains: [expert], learning_rates: {expert: fast}}]\n", "could not convert string to float: 'fast'"),
        ("action_tokenizer: none\nstages: [{trains: [new_tokens, expert]}]\n", '"none" has no new_tokens to train'),
        ("stages: [", "not valid YAML"),
    ],
)
def test_a_recipe_that_is_none_says_what_is_wrong(tmp_path, change, message):
    file = tmp_path / "recipe.yaml"
    whole = "" if change.startswith("stages") else "stages: [{trains: [expert]}]\n"
    file.write_text(f"description: mine\n{whole}{change}")
    with pytest.raises(ValueError, match=message) as error:
        get_recipe(str(file))
    assert str(file) in str(error.value)


def test_a_warm_up_of_ones_own(tmp_path):
    file = tmp_path / "recipe.yaml"
    stages = "[{trains: [new_tokens, expert], learning_rates: {new_tokens: 1e-3}}, {trains: [backbone, expert]}]"
    file.write_text(f"description: mine\nstages: {stages}\n")
    warm_up, rest = get_recipe(str(file)).stages
    given = {"new_token_learning_rate": None, "projector_learning_rate": 2.0, "expert_learning_rate": 3.0}
    assert warm_up.rate_arguments(**given) == {
        **given,
        "new_token_learning_rate": 1e-3,
        "projector_learning_rate": None,
    }
    assert rest.rate_arguments(**given) == given


def test_a_dataset_of_ones_own_checks_what_it_is_given(tmp_path):
    class Broken(EpisodeDataset):
        def __init__(self, vectors, image, **options):
            self.given, self.image = vectors, image
            selection = {"episodes": None, "cameras": None, **options}
            super().__init__("mine", 3, robot=None, lengths={7: 4}, all_cameras=["front"], fps=5, **selection)

        def read_vectors(self, episode):
            return self.given

        def read_images(self, episode, frame):
            return [self.image]

        def read_text(self, episode, frame):
            return "go"

    good, image = {"actions": np.zeros((4, 2))}, np.zeros((8, 8, 3), np.uint8)
    assert len(Broken(good, image)) == 4
    for vectors, message in (
        ({"state": np.zeros((4, 2))}, "must return actions"),
        ({"actions": np.zeros((3, 2))}, r"must be \(4, D\), got shape \(3, 2\)"),
        ({"actions": np.full((4, 2), np.nan)}, "NaN or infinite at frame 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Broken(vectors, image)
    with pytest.raises(ValueError, match=r"must be uint8 .*got float64 \(8, 8, 3\)"):
        Broken(good, image / 2)[0]
    with pytest.raises(ValueError, match=r"mine has no episode 3\. It has: \[7\]"):
        Broken(good, image, episodes=[3])
    with pytest.raises(ValueError, match=r"mine has no camera 'top'"):
        Broken(good, image, cameras=["top"])


@pytest.mark.slow  # a process of its own
@pytest.mark.parametrize(("plugin", "name"), [("my_family", "my_family"), ("stranger_family", "stranger")])
def test_one_entry_in_the_table_runs_the_contract_for_another_vlm_family(project, plugin, name):
    """The second is of a type that transformers does not know."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", plugin, "-p", "no:cacheprovider", "-k", name]
    root = Path(__file__).parents[1]
    tests = ("modeling_kivla/test_contract.py", "modeling_kivla/test_new_tokens.py", "test_families.py")
    result = subprocess.run(
        [*command, *(f"tests/{file}" for file in tests)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert "skipped" not in result.stdout.splitlines()[-1]


SAVE = """
import sys
from stranger_vlm import StrangerConfig, StrangerForConditionalGeneration
from tests.helpers.families import text
StrangerConfig.register_for_auto_class()
StrangerForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
StrangerForConditionalGeneration(StrangerConfig(text_config=text("llama"))).save_pretrained(sys.argv[1])
"""
BUILD = """
import sys
from kivla import KIVLAForActionPrediction
vlm, policy = sys.argv[1:]
sizes = {"chunk_size": 5, "max_action_dim": 3, "expert_config": {"hidden_size": 32, "intermediate_size": 48}}
KIVLAForActionPrediction.from_vlm(vlm, trust_remote_code=True, **sizes).save_pretrained(policy)
"""
LOAD = """
import sys
import torch
from kivla import KIVLAForActionPrediction
try:
    KIVLAForActionPrediction.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "'stranger' is no type of model" in str(error) and "trust_remote_code=True" in str(error), error
else:
    raise AssertionError("code was run that nobody trusted")
model = KIVLAForActionPrediction.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert type(model.vlm).__module__.startswith("transformers_modules")
tokens = torch.tensor([[200] * 4 + [20, 21]])
chunk = model.sample_actions(input_ids=tokens, pixel_values=torch.randn(1, 3, 8, 8), num_steps=2)
assert chunk.shape == (1, 5, 3) and chunk.isfinite().all()
"""


@pytest.mark.slow  # three processes of their own
def test_a_vlm_that_brings_its_code_along_goes_on_doing_so_in_the_policy(project, tmp_path):
    root, vlm, policy = Path(__file__).parents[1], str(tmp_path / "vlm"), str(tmp_path / "policy")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    for script, arguments, path in (
        (SAVE, [vlm], f"{project}:{root}"),
        (BUILD, [vlm, policy], ""),
        (LOAD, [policy], ""),
    ):
        result = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-3000:]

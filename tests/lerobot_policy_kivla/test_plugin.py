"""The LeRobot plugin: LeRobot's naming rules on its files, and, given a Python with LeRobot, the real programs.

The second part needs `KIVLA_LEROBOT_PYTHON`, see `lerobot_policy_kivla/README.md`.
"""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

from kivla import KIVLAForActionPrediction, KIVLAProcessor
from tests.helpers.policies import DATASET, dataset, save_policy

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "lerobot_policy_kivla"
CHECKS = (
    "discovery",
    "export",
    "same_chunks_as_the_pipeline",
    "acting_by_tokens",
    "weights_of_half_the_size",
    "without_a_seed_torch_decides",
    "one_action_at_a_time",
    "a_history",
    "on_a_robot",
    "one_of_several_robots",
    "names_of_cameras",
    "a_missing_camera",
    "real_time_chunking",
    "refusals",
    "same_loss_as_without_lerobot",
    "gathered_weights",
    "to_the_hub_and_back",
    "lerobot_eval",
    "lerobot_train",
)


def definitions(module: str) -> dict[str, ast.AST]:
    """Classes and functions at the top of a file of the plugin, by name."""
    tree = ast.parse((PLUGIN / f"{module}.py").read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def imported(file: Path) -> set[str]:
    """Names of the packages that a file imports."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    return {name.partition(".")[0] for name in names}


# -------------------------------------------------------------------------------------------------- LeRobot's rules
def test_the_name_of_the_distribution_is_what_is_imported():
    """`register_third_party_plugins` imports every distribution whose name begins so, by that very name."""
    settings = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))
    name = settings["project"]["name"]
    assert name.startswith("lerobot_policy_")
    assert settings["tool"]["setuptools"]["packages"] == [name]
    folder = PLUGIN / settings["tool"]["setuptools"]["package-dir"][name]
    assert (folder / "__init__.py").is_file()
    assert {"kivla", "lerobot"} <= {
        requirement.partition(">")[0] for requirement in settings["project"]["dependencies"]
    }


def test_names_that_lerobot_derives():
    """Of a config class XConfig in configuration_x.py, registered as "x": XPolicy and make_x_pre_post_processors."""
    (decorated,) = (n for n in definitions("configuration_kivla").values() if isinstance(n, ast.ClassDef))
    registered = [d.args[0].value for d in decorated.decorator_list if isinstance(d, ast.Call)]
    assert registered == ["kivla"]
    assert decorated.name.endswith("Config")
    policy = definitions("modeling_kivla")[decorated.name.removesuffix("Config") + "Policy"]
    attributes = {n.targets[0].id: n.value for n in policy.body if isinstance(n, ast.Assign)}
    assert attributes["config_class"].id == decorated.name and attributes["name"].value == registered[0]
    methods = {node.name for node in policy.body if isinstance(node, ast.FunctionDef)}
    assert methods >= {"forward", "select_action", "predict_action_chunk", "reset", "get_optim_params"}
    make = definitions("processor_kivla")[f"make_{registered[0]}_pre_post_processors"]
    assert [argument.arg for argument in make.args.args][:2] == ["config", "dataset_stats"]


def test_importing_the_plugin_registers_the_config():
    tree = ast.parse((PLUGIN / "__init__.py").read_text(encoding="utf-8"))
    assert [node.module for node in tree.body if isinstance(node, ast.ImportFrom)] == ["configuration_kivla"]


def test_kivla_does_without_lerobot():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = settings["tool"]["setuptools"]["package-dir"].values()
    assert "lerobot_policy_kivla" not in folders
    for folder in folders:
        for file in (ROOT / folder).glob("*.py"):
            assert "lerobot" not in imported(file), file


@pytest.mark.parametrize("left", [0, 1, 3, 6])
@pytest.mark.parametrize("repeats", [True, False])
def test_what_lerobot_pads_is_taken_off(left, repeats):
    """It repeats the last action, or fills up with zeros, to a fixed length."""
    file = importlib.util.spec_from_file_location("rest_of_chunk", PLUGIN / "rest_of_chunk.py")
    rest_of_chunk = importlib.util.module_from_spec(file)
    file.loader.exec_module(rest_of_chunk)
    actions = np.random.default_rng(left).normal(size=(left, 4)).astype(np.float32)
    padding = actions[-1:] if repeats and left else np.zeros((1, 4), np.float32)
    padded = np.concatenate([actions, *[padding] * (6 - left)])
    np.testing.assert_array_equal(rest_of_chunk.without_padding(padded), actions)


# -------------------------------------------------------------------------------------------------- the real LeRobot
def test_every_check_is_run():
    tree = ast.parse((Path(__file__).parent / "in_lerobot.py").read_text(encoding="utf-8"))
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert tuple(name.id for name in assigned["CHECKS"].elts) == CHECKS


def write_work(folder: Path) -> None:
    """What `in_lerobot.py` starts from."""
    save_policy(folder)
    KIVLAForActionPrediction.from_pretrained(folder / "policy").save_pretrained(folder / "two_cameras")
    two = KIVLAProcessor.from_pretrained(folder / "policy", cameras=["front", "observation.images.wrist"])
    two.save_pretrained(folder / "two_cameras")
    KIVLAForActionPrediction.from_pretrained(folder / "policy").save_pretrained(folder / "history")
    KIVLAProcessor.from_pretrained(folder / "policy", history=2).save_pretrained(folder / "history")
    examples = [dataset()[i] for i in (0, 70, 140)]
    images = np.stack([example["images"][0] for example in examples])
    images[0, :16, :16] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)  # every value of a pixel
    np.savez(
        folder / "observations.npz",
        images=images,
        state=np.stack([example["state"] for example in examples]),
        texts=[example["text"] for example in examples],
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, str]:
    python = os.environ.get("KIVLA_LEROBOT_PYTHON")
    if python is None:
        pytest.skip("KIVLA_LEROBOT_PYTHON does not name a Python with LeRobot (see lerobot_policy_kivla/README.md)")
    work = tmp_path_factory.mktemp("lerobot")
    sources = work / "sources"  # builds write into them
    leave_out = shutil.ignore_patterns(".*", "outputs", "tests", "benchmarks", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, sources, ignore=leave_out)
    site = str(work / "site")
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([python, *install, str(sources), str(sources / PLUGIN.name)], check=True, cwd=work)
    write_work(work)
    result = subprocess.run(
        [python, str(Path(__file__).parent / "in_lerobot.py"), str(work), str(DATASET)],
        env={**os.environ, "PYTHONPATH": site, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf")},
        cwd=work,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_in_lerobot(results, check):
    assert results[check] == "ok", results[check]

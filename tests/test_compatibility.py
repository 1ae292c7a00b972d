"""What an earlier version saved still loads and acts the same, and what it named is still there under its name.

`tests/data/compatibility/make.py` says what was saved, and how.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kivla import KIVLAForActionPrediction, KIVLAProcessor
from tests.data.compatibility.make import FOLDER, NEW_POLICY, answers, data_files, observations, tiny_vlm, train
from tests.helpers.public_names import public_names
from tests.helpers.tolerance import assert_close_relative
from tests.modeling_kivla.test_remote_code import without_kivla

NAMED = json.loads((FOLDER / "public_names.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected():
    return np.load(FOLDER / "expected.npz")


@pytest.fixture
def saved(tmp_path, monkeypatch) -> Path:
    """The folder with `policy/` and `adapter/`, whose base is "policy": it is the working folder."""
    with tarfile.open(FOLDER / "saved.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same_weights(folder: Path, state: dict) -> None:
    """Those of the saved file, bit for bit; beside them only what is tied to one of these."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        assert torch.equal(state[name], weight), f"{name} is not what was saved"
    for name in state.keys() - weights.keys():
        assert any(torch.equal(state[name], weight) for weight in weights.values()), f"{name} was not saved"


def test_a_policy_saved_earlier_acts_the_same(saved, expected):
    model, info = KIVLAForActionPrediction.from_pretrained("policy", output_loading_info=True)
    assert not any(info.values()), info
    assert_same_weights(saved / "policy", model.state_dict())
    found = answers("policy")
    assert_close_relative(found["flow"], expected["policy_flow"], what="actions of the expert")
    np.testing.assert_allclose(found["tokens"], expected["policy_tokens"], rtol=1e-5, err_msg="decoded action tokens")


def test_an_adapter_saved_earlier_acts_the_same(saved, expected):
    found = answers("adapter")
    assert_close_relative(found["flow"], expected["adapter_flow"], what="actions of the expert")
    np.testing.assert_allclose(found["tokens"], expected["adapter_tokens"], rtol=1e-5, err_msg="decoded action tokens")


def test_a_processor_saved_earlier_keeps_its_settings(saved):
    settings = json.loads((saved / "policy" / "processor_config.json").read_text(encoding="utf-8"))
    processor = KIVLAProcessor.from_pretrained("policy")
    processor.save_pretrained("again")
    again = json.loads((saved / "again" / "processor_config.json").read_text(encoding="utf-8"))
    assert {name: again.get(name) for name in settings} == settings
    assert set(NAMED["processor_settings"]) <= set(settings)


@pytest.mark.slow
def test_it_acts_the_same_where_kivla_is_not_installed(saved, expected):
    """By the code that was saved with it; and, saved again, by today's."""
    np.save("frames.npy", observations(), allow_pickle=True)
    KIVLAForActionPrediction.from_pretrained("policy").save_pretrained("again")
    KIVLAProcessor.from_pretrained("policy").save_pretrained("again")
    for folder in ("policy", "again"):
        found = without_kivla(saved / folder, saved / "frames.npy", saved / f"found_{folder}")
        for way in ("pipeline", "model"):
            assert_close_relative(found[way], expected["policy_flow"], what=f"{folder}, {way}")
        np.testing.assert_allclose(found["tokens"], expected["policy_tokens"], rtol=1e-5, err_msg=folder)
        assert_same_weights(saved / "policy", load_file(saved / f"found_{folder}_again" / "model.safetensors"))


def test_training_writes_the_files_that_it_wrote(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_vlm(Path("vlm"))
    train(Path("policy"), vlm="vlm", **NEW_POLICY)
    lost = set(NAMED["files"]["policy"]).difference(data_files(Path("policy")))
    assert not lost, f"no longer written: {sorted(lost)}"


@pytest.fixture(scope="module")
def names():
    return json.loads(json.dumps(public_names()))


# (package, name) -> where it is now; `from kivla import name` is as it was
MOVED = {("kivla.modeling_kivla", "ChunkExecutor"): "kivla.acting"}


@pytest.mark.parametrize("package", NAMED["exports"])
def test_no_exported_name_is_lost(names, package):
    lost = set(NAMED["exports"][package]).difference(names["exports"].get(package, ()))
    lost = {name for name in lost if name not in names["exports"].get(MOVED.get((package, name)), ())}
    assert not lost, f"{package} no longer exports {sorted(lost)}"


def test_no_parameter_is_lost(names):
    """Nor has another default, nor another place among those that were there. New ones are fine."""
    found = names["signatures"]
    assert not (lost := sorted(NAMED["signatures"].keys() - found.keys())), f"gone: {lost}"
    for name, parameters in NAMED["signatures"].items():
        kept = [parameter for parameter in found[name] if parameter in parameters]
        assert kept == parameters, f"{name}{tuple(parameters)} became {tuple(found[name])}"


RANGES_TOO = ("episodes", "eval_episodes")  # numbers then; now 0-49 and files as well
REWRITTEN = {"study"}  # compares recipes under several conditions now: other options, other defaults (CHANGELOG.md)


@pytest.mark.parametrize("command", sorted(NAMED["commands"].keys() - REWRITTEN))
def test_no_option_is_lost(names, command):
    """Nor has another default, or a type that takes less; one that was required may have become optional."""
    assert command in names["commands"], f"there is no command {command}"
    found = names["commands"][command]
    for name, option in NAMED["commands"][command].items():
        takes_more = {**option, "type": "str"} if name in RANGES_TOO else option
        bare = {**option, "nargs": "?"} if option["type"] == "string_to_bool" else option  # a switch without a word
        as_before = {**found.get(name, {}), "required": option["required"]} if option["required"] else found.get(name)
        assert as_before in (option, takes_more, bare), f"kivla {command} --{name}"
    assert not [new for new in found.keys() - NAMED["commands"][command].keys() if found[new]["required"]]
    assert names["positional"][command] == NAMED["positional"][command]


@pytest.mark.parametrize("kind", ["KIVLAConfig", "KIVLAExpertConfig", "KIVLATrainingArguments"])
def test_no_field_is_lost(names, kind):
    """Nor has another default."""
    for name, default in NAMED[kind].items():
        assert names[kind].get(name) == default, f"{kind}.{name}"

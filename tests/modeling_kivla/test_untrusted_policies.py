"""What a damaged or hostile policy may not do."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from kivla import KIVLAForActionPrediction
from tests.training.policies import save_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def copy(policy, tmp_path):
    return shutil.copytree(policy, tmp_path / "copy")


class Attack:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_pickle_is_not_executed(copy, tmp_path):
    """A folder with pickled weights only."""
    (copy / "model.safetensors").unlink()
    torch.save({"weights": Attack(tmp_path / "attacked")}, copy / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"pytorch_model\.bin|[Ww]eights only|weights_only"):
        KIVLAForActionPrediction.from_pretrained(copy)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("size", [0, 7, 100, 50_000])
def test_weights_that_are_cut_off(size, copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises((ValueError, OSError), match=r"copy"):
        KIVLAForActionPrediction.from_pretrained(copy)


def test_a_header_that_announces_more_than_there_is(copy):
    file = copy / "model.safetensors"
    file.write_bytes((1 << 60).to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises((ValueError, OSError), match=r"copy"):
        KIVLAForActionPrediction.from_pretrained(copy)


def test_a_weight_of_another_shape(copy):
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if name.endswith("action_in_proj.weight"))
    weights[name] = weights[name][:, :-1].contiguous()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="cannot be loaded as a policy"):
        KIVLAForActionPrediction.from_pretrained(copy)


@pytest.mark.parametrize(
    "change", [{"chunk_size": 10**9}, {"max_action_dim": "x"}, {"vlm_config": 3}, {"num_flow_samples": 1e30}], ids=str
)
def test_a_config_that_cannot_be(change, copy):
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError):
        KIVLAForActionPrediction.from_pretrained(copy)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_vlm_of_endless_depth(part, copy):
    """It would be built layer by layer before any weights are looked at."""
    file = copy / "config.json"
    config = json.loads(file.read_text())
    config["vlm_config"][part]["num_hidden_layers"] = 20_000_000_000
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="at most 4096 layers"):
        KIVLAForActionPrediction.from_pretrained(copy)

"""What a damaged or hostile policy may not do."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from kivla import KIVLAForActionPrediction
from tests.fuzz.harness import peak_bytes
from tests.helpers.policies import save_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def copy(policy, tmp_path):
    return shutil.copytree(policy, tmp_path / "copy")


def change_config(copy, *path, **changes):
    """Changes entries of a part of the config; None removes one."""
    file = copy / "config.json"
    config = json.loads(file.read_text())
    part = config
    for name in path:
        part = part[name]
    part.update(changes)
    for name in [name for name, value in changes.items() if value is None]:
        del part[name]
    file.write_text(json.dumps(config))


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
    with pytest.raises(ValueError, match=r"action_in_proj.weight: \(.*\) in the files, \(.*\) by the config"):
        KIVLAForActionPrediction.from_pretrained(copy)


@pytest.mark.parametrize(
    "change", [{"chunk_size": 10**9}, {"max_action_dim": "x"}, {"vlm_config": 3}, {"num_flow_samples": 1e30}], ids=str
)
def test_a_config_that_cannot_be(change, copy):
    change_config(copy, **change)
    with pytest.raises(ValueError):
        KIVLAForActionPrediction.from_pretrained(copy)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("vlm_config", "text_config"), "num_hidden_layers"),
        (("vlm_config", "vision_config"), "num_hidden_layers"),
        (("vlm_config", "text_config"), "num_labels"),
        (("expert_config",), "num_labels"),
        ((), "num_labels"),
    ],
    ids=str,
)
def test_a_config_without_end(path, name, copy):
    """It would be built layer by layer, or label by label, before any weights are looked at."""
    change_config(copy, *path, **{name: 20_000_000_000})
    with pytest.raises(ValueError, match=f"{name} must be at most 4096"):
        KIVLAForActionPrediction.from_pretrained(copy)


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (("vlm_config",), {"vision_config": None}),  # the library's default has 400M weights
        (("vlm_config", "text_config"), {"vocab_size": 10_000_000_000}),
        (("vlm_config", "text_config"), {"hidden_size": 100_000_000}),
        (("vlm_config", "vision_config"), {"image_size": 10_000_000}),
        (("expert_config",), {"intermediate_size": 1_000_000_000}),
    ],
    ids=str,
)
def test_a_config_larger_than_the_weights(path, changes, copy):
    """No memory is taken for weights that are not in the files."""
    change_config(copy, *path, **changes)
    before = peak_bytes()
    with pytest.raises(ValueError, match="is not a whole policy"):
        KIVLAForActionPrediction.from_pretrained(copy)
    assert peak_bytes() - before < 200_000 * 1024


def test_a_vlm_without_layers(copy):
    change_config(copy, "vlm_config", "text_config", num_hidden_layers=0)
    with pytest.raises(ValueError, match="has no layers"):
        KIVLAForActionPrediction.from_pretrained(copy)


def test_a_config_too_wide_to_probe(copy):
    change_config(copy, "vlm_config", "text_config", hidden_size=10**6, intermediate_size=10**9)
    change_config(copy, kv_layers=None)
    with pytest.raises(ValueError, match="values wide, all together"):
        KIVLAForActionPrediction.from_pretrained(copy)


def test_a_weight_that_is_missing(copy):
    """The library would draw it at random, with a warning, and the robot would move with it."""
    weights = load_file(copy / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("action_out_proj.weight"))]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 of its weights .*action_out_proj.weight: not in the files"):
        KIVLAForActionPrediction.from_pretrained(copy)


def test_weights_of_another_size_are_drawn_anew_on_request_alone(copy):
    change_config(copy, max_action_dim=9)
    with pytest.raises(ValueError, match="3 of its weights are missing or of another size"):
        KIVLAForActionPrediction.from_pretrained(copy)
    model = KIVLAForActionPrediction.from_pretrained(copy, ignore_mismatched_sizes=True)
    assert model.expert.action_in_proj.weight.shape[1] == 9


def test_an_argument_that_no_model_takes(copy):
    """Not blamed on the files."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rate'"):
        KIVLAForActionPrediction.from_pretrained(copy, learning_rate=1e-4)

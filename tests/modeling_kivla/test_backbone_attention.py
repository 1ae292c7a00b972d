"""How the text decoder's attention is recorded, and that the decoder takes no other way for it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction, UnsupportedBackboneError, backbone_attention
from kivla.modeling_kivla.backbone_attention import PrefixRecorder, RecordedImplementation
from kivla.modeling_kivla.backbone_probe import probe_backbone, run_once_if_nothing_is_recorded
from tests.helpers.families import FAMILIES


def test_the_name_of_a_recorded_implementation_is_also_the_one_without_our_prefix():
    """Sparse decoders ask `in ("eager", "sdpa")`, and would else leave their mask to a kernel that is not there."""
    name = RecordedImplementation("kivla_sdpa")
    assert name in ("eager", "sdpa") and name == "sdpa" and name == "kivla_sdpa"
    assert not (name != "sdpa")  # noqa: SIM202 (the other operator)
    assert name not in ("eager", "flash_attention_2") and name != "eager"
    assert ALL_ATTENTION_FUNCTIONS[name] is ALL_ATTENTION_FUNCTIONS["kivla_sdpa"]
    assert ALL_ATTENTION_FUNCTIONS[name] is not ALL_ATTENTION_FUNCTIONS["sdpa"]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda name: pickle.loads(pickle.dumps(name))])
def test_copies_of_the_name_are_such_names(copied):
    name = copied(RecordedImplementation("kivla_eager"))
    assert name == "eager" and str(name) == "kivla_eager" and type(str(name)) is str


def test_while_measuring_a_layer_that_runs_again_is_not_taken_for_one_without_keys():
    class Mixer(nn.Module):
        def __init__(self, layer_idx, recorder=None):
            super().__init__()
            self.layer_idx, self.recorder, self.calls = layer_idx, recorder, 0

        def forward(self, x):
            self.calls += 1
            if self.recorder is not None:
                self.recorder.record(self, x, x, x, None)
            return x + self.layer_idx

    recorder = PrefixRecorder(layers=None)
    attention = [Mixer(i, recorder) for i in range(3)]
    linear = [Mixer(i) for i in (7, 8)]
    run_once_if_nothing_is_recorded(nn.ModuleList(attention), recorder)
    run_once_if_nothing_is_recorded(nn.ModuleList(linear), recorder)
    x = torch.zeros(2, 4, 1, 8)
    for layer in (0, 1, 1, 2):
        attention[layer](x)
    assert sorted(recorder.key_values) == [0, 1, 2] and attention[1].calls == 2
    assert torch.equal(linear[0](x), linear[1](x)) and linear[1].calls == 0, "one of its kind is enough"


@pytest.mark.parametrize(("name", "release"), [("minimax_m3_vl", "5.22.1"), ("llama4", "5.24.0")])
def test_what_a_release_of_transformers_does_wrongly_is_refused(name, release, monkeypatch):
    """Measuring it, and loading a policy that was made with another one."""
    if name not in FAMILIES:
        pytest.skip("refused in this transformers")
    vlm_config = FAMILIES[name].config()
    expert = {"hidden_size": 16, "intermediate_size": 16}
    config = KIVLAConfig(vlm_config=vlm_config, expert_config=expert)
    monkeypatch.setattr(backbone_attention.transformers, "__version__", release)
    for make in (lambda: KIVLAForActionPrediction(config), lambda: probe_backbone(vlm_config)):
        with pytest.raises(UnsupportedBackboneError, match=f"'{name}' needs another transformers: {release} .*newer"):
            make()

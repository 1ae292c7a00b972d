"""transformers' own common tests, run on policies of several families, with plain and with training batches.

`make test-slow` runs them. What does not apply is in `exemptions.py`, each with its reason; an entry that would pass is
a failure, so that the list cannot go stale.
"""

import copy
import unittest
from functools import cache

import pytest
import torch

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from tests.helpers.families import FAMILIES, VOCAB_SIZE, collate, drop_suffix, make_example
from tests.library.exemptions import exempt
from tests.library.sources import library_module

pytestmark = pytest.mark.slow
common = library_module("test_modeling_common")

# Bidirectional prompt; sliding windows; M-RoPE; chat template; plain Llama; mixture of experts.
NAMES = ("paligemma", "gemma3", "qwen2_5_vl", "smolvlm", "llava", "qwen3_vl_moe")
CHUNK, WIDTH = 5, 3


@cache
def _config(name: str) -> KIVLAConfig:
    expert = {"hidden_size": 32, "intermediate_size": 48}
    vlm_config = FAMILIES[name].config()
    return KIVLAConfig(vlm_config=vlm_config, expert_config=expert, chunk_size=CHUNK, max_action_dim=WIDTH)


class PolicyTester:
    """What the library's mixins ask about a model: sizes, a config, a batch."""

    is_training = True
    batch_size = 2

    def __init__(self, name: str, kind: str):
        self.family, self.kind = FAMILIES[name], kind
        self.seq_length = self.prepare_config_and_inputs_for_common()[1]["input_ids"].shape[1]
        text = self.get_config().get_text_config()
        self.num_hidden_layers, self.hidden_size = text.num_hidden_layers, text.hidden_size
        self.num_attention_heads, self.vocab_size = text.num_attention_heads, VOCAB_SIZE

    def get_config(self) -> KIVLAConfig:
        return copy.deepcopy(_config(self.family.name))

    def prepare_config_and_inputs_for_common(self) -> tuple[KIVLAConfig, dict]:
        torch.manual_seed(0)
        examples = [make_example(self.family, text_length=6 - 2 * i, seed=i) for i in range(self.batch_size)]
        if self.kind == "plain":
            batch = collate(self.family, [drop_suffix(example) for example in examples], "left")
            del batch["expert_attention_mask"]
            return self.get_config(), batch
        draw = torch.Generator().manual_seed(7)
        batch = collate(self.family, examples)
        shape = (self.batch_size, CHUNK, WIDTH)
        batch |= {"actions": torch.randn(shape, generator=draw), "noise": torch.randn(shape, generator=draw)}
        return self.get_config(), batch | {"timestep": torch.rand(self.batch_size, generator=draw)}


def _tests_of(name: str, kind: str) -> type[unittest.TestCase]:
    class PolicyTest(common.ModelTesterMixin, common.GenerationTesterMixin, unittest.TestCase):
        all_model_classes = (KIVLAForActionPrediction,)
        _is_composite = True
        test_torch_exportable = False

        def setUp(self):
            self.model_tester = PolicyTester(name, kind)

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class)
            if return_labels and "labels" not in inputs:
                inputs["labels"] = inputs["input_ids"].clone()
            return inputs

    exempt(PolicyTest, kind, name, f"{name}:{kind}")
    PolicyTest.__name__ = PolicyTest.__qualname__ = f"Test_{name}_{kind}"
    return PolicyTest


for _name in NAMES:
    for _kind in ("plain", "training"):
        globals()[f"Test_{_name}_{_kind}"] = _tests_of(_name, _kind)

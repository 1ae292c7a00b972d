"""transformers' own common test of configs, run on policies of several families and on the expert's config."""

import json
from unittest import TestCase

import pytest

from kivla.modeling_kivla import KIVLAConfig, KIVLAExpertConfig
from tests.helpers.families import FAMILIES
from tests.library.sources import library_module

pytestmark = pytest.mark.slow
common = library_module("test_configuration_common")


class PolicyTester:
    """What the library's tester asks about a policy."""

    def __init__(self, name: str):
        self.name = name

    def get_config(self) -> KIVLAConfig:
        return KIVLAConfig(vlm_config=FAMILIES[self.name].config(), expert_config={"hidden_size": 32}, chunk_size=5)


class PolicyConfigTester(common.ConfigTester):
    def check_config_can_be_init_without_params(self):
        """There is no policy without a VLM."""
        with pytest.raises(ValueError, match="needs `vlm_config`"):
            self.config_class()


@pytest.mark.parametrize("name", ["paligemma", "gemma3", "qwen2_5_vl", "smolvlm", "llava", "qwen3_vl_moe"])
def test_policy(name):
    case = TestCase()
    case.model_tester = PolicyTester(name)
    values = json.loads(case.model_tester.get_config().to_json_string(use_diff=False))
    values = {key: values[key] for key in ("vlm_config", "expert_config", "chunk_size", "kv_layers")}
    PolicyConfigTester(case, config_class=KIVLAConfig, has_text_modality=False, **values).run_common_tests()


def test_expert():
    values = {"common_properties": ["hidden_size", "num_attention_heads"], "hidden_size": 32, "layer_stride": 2}
    tester = common.ConfigTester(TestCase(), config_class=KIVLAExpertConfig, has_text_modality=False, **values)
    tester.run_common_tests()

"""How the text decoder's attention is recorded, and that the decoder takes no other way for it."""

import copy
import pickle

import pytest
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kivla.modeling_kivla.backbone_attention import RecordedImplementation


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

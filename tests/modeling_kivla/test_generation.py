"""Every way of `generate` gives what the untouched VLM gives."""

import copy

import pytest
import torch

from kivla import KIVLAForActionPrediction
from tests.helpers.families import FAMILIES, build_model, collate, drop_suffix, each_family, make_example
from tests.modeling_kivla.test_contract import _shared_policy

WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "without cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "assisted": {},
}


def pair(name: str, seed: int = 0):
    vlm = build_model(FAMILIES[name], seed)
    config = copy.deepcopy(_shared_policy(name).config)
    return vlm, KIVLAForActionPrediction(config, vlm=copy.deepcopy(vlm)).eval()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["paligemma", "qwen2_5_vl", "llava"])
def test_as_the_untouched_vlm(name, way):
    vlm, model = pair(name)
    rows = 1 if way in ("prompt lookup", "assisted") else 2
    examples = [drop_suffix(make_example(FAMILIES[name], text_length=6 - 2 * i, seed=i)) for i in range(rows)]
    prompts = collate(FAMILIES[name], examples, "left")
    del prompts["expert_attention_mask"]
    options = {"max_new_tokens": 6, "do_sample": False, **WAYS[way]}
    options |= {"return_dict_in_generate": True, "output_scores": way != "prompt lookup"}
    assistants = pair(name, seed=1) if way == "assisted" else (None, None)
    wanted = vlm.generate(**prompts, **options, assistant_model=assistants[0])
    found = model.generate(**prompts, **options, assistant_model=assistants[1])
    assert torch.equal(found.sequences, wanted.sequences)
    if way in ("greedy", "beams"):
        arguments = (wanted.sequences, wanted.scores, wanted.get("beam_indices"))
        expected = vlm.compute_transition_scores(*arguments, normalize_logits=True)
        assert torch.equal(model.compute_transition_scores(*arguments, normalize_logits=True), expected)


@each_family
def test_again_and_again(name):
    """The library puts hooks on layers the first time that hidden states are asked for: once, and not in every call."""
    model = _shared_policy(name)
    prompt = collate(FAMILIES[name], [drop_suffix(make_example(FAMILIES[name]))], "left")
    del prompt["expert_attention_mask"]
    options = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, "output_hidden_states": True}

    def said():
        with torch.no_grad():
            return model.generate(**prompt, **options)

    first, hooks = said(), sum(len(module._forward_hooks) for module in model.modules())
    second = said()
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert torch.equal(second.sequences, first.sequences)
    assert len(second.hidden_states[0]) == len(first.hidden_states[0])

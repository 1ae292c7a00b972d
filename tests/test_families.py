"""The table of tiny families is itself sound: every model builds and learns, and padding changes nothing."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from kivla.modeling_kivla.backbone_probe import probe_backbone
from tests.helpers.families import (
    FAMILIES,
    FAST,
    REFUSED,
    build_model,
    collate,
    drop_suffix,
    each_family,
    make_example,
    split_images,
)
from tests.helpers.families.mechanisms import mechanisms
from tests.helpers.tolerance import assert_close_relative


def vlm_inputs(batch):
    return {name: tensor for name, tensor in batch.items() if name != "expert_attention_mask"}


@pytest.fixture
def family(name):
    return FAMILIES[name]


@pytest.fixture
def examples(family):
    shapes = [(2, 6, 5), (1, 3, 4), (int(family.needs_an_image), 9, 2)]  # images, text tokens, suffix tokens
    return [make_example(family, *shape, seed=seed) for seed, shape in enumerate(shapes)]


@each_family
@torch.no_grad()
def test_an_example_gives_the_same_logits_alone_and_in_a_padded_batch(family, examples):
    model = build_model(family)
    alone = [model(**vlm_inputs(example)).logits[0] for example in examples]
    for training in (False, True):
        model.train(training)
        for side in ("right", "left"):
            batch = collate(family, examples, padding_side=side)
            logits = model(**vlm_inputs(batch)).logits
            for row, expected in enumerate(alone):
                actual = logits[row, batch["attention_mask"][row].bool()]
                assert_close_relative(actual, expected, what=f"logits of example {row}, padded {side}")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.needs_an_image])
def test_what_needs_an_image_does_not_run_on_text(family):
    with pytest.raises((TypeError, ValueError), match=r"pixel_values"):
        build_model(family)(**vlm_inputs(make_example(family, num_images=0)))


@each_family
def test_every_text_weight_learns_from_a_batch(family, examples):
    model = build_model(family).train()
    model(**vlm_inputs(collate(family, examples))).loss.backward()
    last = ("o_proj.weight", "o_proj.linear.weight", "out_proj.weight", "self_attn.dense.weight")
    layers = {name: p for name, p in model.get_decoder().named_parameters() if name.endswith(last)}
    without = [name for name, p in layers.items() if p.grad is None or not p.grad.any()]
    assert layers
    assert not without


@each_family
@torch.no_grad()
def test_outputs_depend_on_every_image_and_on_the_text(family):
    model = build_model(family)
    example = vlm_inputs(make_example(family, num_images=2))
    last = model(**example).logits[0, -1]

    other_text = example["input_ids"].clone()
    other_text[0, -3] = 10 if other_text[0, -3] != 10 else 11
    assert (model(**example | {"input_ids": other_text}).logits[0, -1] - last).abs().max() > 1e-2

    for changed in (0, 1):
        images = split_images(family, example[family.image_argument], family.image_argument, 2)
        images[changed].neg_()  # a view of the example
        assert (model(**example).logits[0, -1] - last).abs().max() > 1e-3
        images[changed].neg_()


@each_family
def test_dropping_the_suffix_keeps_the_prefix(family):
    example = make_example(family, num_images=1, text_length=6, suffix_length=5)
    prefix = drop_suffix(example)
    assert torch.equal(prefix["input_ids"], example["input_ids"][example["expert_attention_mask"]][None])
    assert prefix["input_ids"].shape[1] == len(family.image_tokens) + 6
    assert "labels" not in prefix


@pytest.mark.slow
@each_family
def test_a_tiny_model_has_every_mechanism_of_the_released_ones(name):
    """As far as their configuration's defaults tell, whose sizes are mostly those of a released model."""
    tiny, released = (
        mechanisms(config, probe_backbone(config))
        for config in (FAMILIES[name].config(), FAMILIES[name].published_config())
    )
    assert released <= tiny, f"the tiny {name} lacks {sorted(released - tiny)}"


@pytest.mark.parametrize("name", REFUSED)
def test_refused_configurations_build_exactly_when_they_say_so(name):
    refused = REFUSED[name]
    if refused.is_vlm:
        with torch.device("meta"):
            assert AutoModelForImageTextToText.from_config(refused.config())
    else:
        with pytest.raises(ValueError, match="Unrecognized configuration class"):
            AutoModelForImageTextToText.from_config(refused.config())


@pytest.mark.slow  # measures them all
def test_the_fast_lane_has_every_mechanism():
    found = {}
    for name, family in FAMILIES.items():
        config = family.config()
        found[name] = mechanisms(config, probe_backbone(config))
        if family.images_in_rows:
            found[name].add("images in rows")
    lacking = set().union(*found.values()) - FAST.keys()
    assert not lacking, f"no family of the fast lane has {lacking}: name one in tests/helpers/families/lanes.py"
    wrong = {mechanism: name for mechanism, name in FAST.items() if mechanism not in found.get(name, {mechanism})}
    assert not wrong, f"these families have no such mechanism: {wrong}"

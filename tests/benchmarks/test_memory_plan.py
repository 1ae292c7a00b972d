"""The plan of a step's memory is what the step takes."""

import pytest

from benchmarks.memory_plan import WAYS, Size, batch_of, build, measure, with_lora
from kivla.training.memory_plan import Part, StepShape, Training, plan_memory, step_shape


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("way", WAYS)
def test_a_small_step_takes_what_is_planned(way, checkpointing):
    """Within 10 %: beside so small a model the blocks of the cross-entropy and the like are not nothing."""
    planned, measured = measure(Size(128, 2, 1024, 112), checkpointing, way)
    assert planned.peak == pytest.approx(measured, rel=0.1)


def test_checkpointing_leaves_a_shared_vocabulary_one_gradient():
    """Not three: that of the output layer, that of the embedding, and their sum."""
    planned, measured = measure(Size(64, 2, 16384, 56, batch_size=1, shares=True), checkpointing=True)
    assert planned.peak == pytest.approx(measured, rel=0.1)


def test_a_batch_says_its_shape():
    size = Size(64, 1, 64, 56)
    model = build(size)
    assert step_shape(model, batch_of(size), 7) == StepShape(size.shape.example, 7, size.shape.patches)


def test_what_rests_and_what_is_shared_out():
    size = Size(64, 2, 512, 56)
    model = build(size)
    full = plan_memory(model, size.shape, Training())
    halves = plan_memory(model, size.shape, Training(devices=2))
    for part in ("weights", "gradients", "moments"):
        assert getattr(halves, part) == getattr(full, part) / 2
    assert halves.copies > 0 and halves.activations == full.activations
    waits = plan_memory(model, size.shape, Training(accumulates=True))
    assert full.peak < waits.peak <= full.peak + full.gradients
    model.vlm.requires_grad_(False)
    frozen = plan_memory(model, size.shape, Training())
    assert frozen.vision == frozen.text == Part() and frozen.logits == frozen.head == 0
    assert frozen.expert.activations > full.expert.activations  # it alone keeps the keys and values that it reads
    assert frozen.weights == full.weights and frozen.gradients < full.gradients / 2
    lora = plan_memory(model, size.shape, Training(), adapter_size=1000)
    assert lora.gradients == frozen.gradients + 4000 and lora.text.activations == full.text.activations


def test_a_policy_that_peft_has_wrapped_is_planned_as_without():
    """The expert is trained in full; of the text, low-rank activations come to what there was."""
    size, rank = Size(64, 2, 512, 56), 4
    plain = plan_memory(build(size), size.shape, Training())
    wrapped = with_lora(build(size), rank)
    planned = plan_memory(wrapped.get_base_model(), size.shape, Training(), wrapped.parameters())
    assert planned.expert.activations == plain.expert.activations
    layers = [module for module in wrapped.get_base_model().get_decoder().modules() if hasattr(module, "lora_A")]
    tokens = size.shape.batch_size * (size.shape.example.prompt + size.shape.example.learned)
    assert planned.text.activations == plain.text.activations + tokens * rank * len(layers) * 4

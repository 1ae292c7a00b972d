"""The plan of a step's memory is what the step takes."""

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.memory_plan import Size, batch_of, build, measure
from kivla.training.memory_plan import StepShape, Training, plan_memory, step_shape


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_a_small_step_takes_what_is_planned(checkpointing):
    """Within 15 %: beside so small a model the blocks of the cross-entropy and the like are not nothing."""
    planned, measured = measure(Size(128, 2, 1024, 112), checkpointing)
    assert planned.peak == pytest.approx(measured, rel=0.15)


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
    assert waits.peak - full.peak == pytest.approx(full.gradients - full.head)
    model.vlm.requires_grad_(False)
    frozen = plan_memory(model, size.shape, Training())
    assert frozen.vision == frozen.text == frozen.logits == frozen.head == 0 and frozen.expert == full.expert
    assert frozen.weights == full.weights and frozen.gradients < full.gradients / 2
    lora = plan_memory(model, size.shape, Training(), adapter_size=1000)
    assert lora.gradients == frozen.gradients + 4000 and lora.text == full.text


def test_a_policy_that_peft_has_wrapped_is_planned_as_without():
    """The expert is trained in full; of the text, low-rank activations come to what there was."""
    size, rank = Size(64, 2, 512, 56), 4
    plain = plan_memory(build(size), size.shape, Training())
    model = build(size)
    decoder = model.get_decoder()
    layers = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    experts = [name for name, module in model.expert.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(
        r=rank,
        target_modules=[f"{_path(model, decoder)}.{name}" for name in layers],
        modules_to_save=[f"expert.{name}" for name in experts],
    )
    wrapped = get_peft_model(model, config)
    planned = plan_memory(wrapped.get_base_model(), size.shape, Training(), wrapped.parameters())
    assert planned.expert == plain.expert
    tokens = size.shape.batch_size * (size.shape.example.prompt + size.shape.example.learned)
    assert planned.text == plain.text + tokens * rank * len(layers) * 4


def _path(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)

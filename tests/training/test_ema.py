"""The average of the weights: its values, where it is used, and that it survives."""

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Subset
from transformers import TrainerCallback

from kivla import KIVLAForActionPrediction, KIVLATrainingArguments
from kivla.training.ema import WeightAverage
from kivla.training.lora import lora_config
from tests.helpers.policies import dataset, make_policy, make_trainer
from tests.helpers.tolerance import assert_close_relative


class Recorder(TrainerCallback):
    """The weights before the first and after every step."""

    def __init__(self):
        self.weights = []

    def _note(self, model):
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._note(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._note(model)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(folder, max_steps=4, ema_decay=0.75, save_strategy="steps", save_steps=2)
    trainer.add_callback(recorder := Recorder())
    trainer.train()
    return folder / "run", trainer, recorder.weights


def expected_average(weights: list[dict], decay: float) -> dict[str, torch.Tensor]:
    average = {name: value.double() for name, value in weights[0].items()}
    for later in weights[1:]:
        average = {name: decay * average[name] + (1 - decay) * later[name].double() for name in average}
    return average


def assert_average(found: dict, expected: dict):
    for name, value in found.items():
        assert_close_relative(value, expected[name], roundings=16, what=name)


def test_values_by_hand():
    layer = nn.Linear(1, 1)
    layer.bias.requires_grad_(False)
    nn.init.constant_(layer.weight, 1.0)
    average = WeightAverage(layer, 0.9)
    for weight in (2.0, 3.0):
        nn.init.constant_(layer.weight, weight)
        average.update()
    with average.in_place():  # 0.9 · (0.9 · 1 + 0.1 · 2) + 0.1 · 3
        assert layer.weight.item() == pytest.approx(1.29)
    assert layer.weight.item() == 3.0


def test_bfloat16_weights_are_averaged_in_float32():
    """In bfloat16, 1 + 0.001 · 0.5 would be 1 for ever."""
    layer = nn.Linear(1, 1, dtype=torch.bfloat16)
    nn.init.ones_(layer.weight)
    average = WeightAverage(layer, 0.999)
    nn.init.constant_(layer.weight, 1.5)
    for _ in range(1000):
        average.update()
    with average.in_place():
        assert layer.weight.item() == pytest.approx(1.5 - 0.5 * 0.999**1000, abs=0.004)
    assert layer.weight.item() == 1.5


def test_the_trainer_averages_after_every_step(trained):
    folder, trainer, weights = trained
    assert_average(trainer.average.weights, expected_average(weights, 0.75))
    assert_average(load_file(folder / "checkpoint-2" / "ema.safetensors"), expected_average(weights[:3], 0.75))


def test_checkpoints_have_the_weights_and_the_saved_model_the_average(trained):
    folder, trainer, weights = trained
    trainer.save_model()
    model = KIVLAForActionPrediction.from_pretrained(folder)
    assert_average(dict(model.named_parameters()), expected_average(weights, 0.75))
    in_checkpoint = KIVLAForActionPrediction.from_pretrained(folder / "checkpoint-4")
    for (name, raw), (_, now) in zip(in_checkpoint.named_parameters(), trainer.model.named_parameters(), strict=True):
        assert torch.equal(raw, weights[-1][name]), name
        assert torch.equal(now, weights[-1][name]), f"saving changed {name}"


def test_evaluation_is_of_the_average(trained, tmp_path):
    folder, trainer, _ = trained
    trainer.args.sample_in_eval = False
    metrics = trainer.evaluate()
    few = Subset(dataset(), [0, 1])
    assert trainer.predict(few).metrics["test_loss"] == trainer.evaluate(few)["eval_loss"]
    trainer.save_model(str(tmp_path / "saved"))
    model = KIVLAForActionPrediction.from_pretrained(tmp_path / "saved")
    saved = make_trainer(tmp_path, model, trainer.processing_class, sample_in_eval=False)
    assert metrics["eval_loss"] == saved.evaluate()["eval_loss"]
    raw = KIVLAForActionPrediction.from_pretrained(folder / "checkpoint-4")
    raw = make_trainer(tmp_path, raw, trainer.processing_class, sample_in_eval=False)
    assert metrics["eval_loss"] != raw.evaluate()["eval_loss"]


def test_resuming_with_and_without_an_average_is_refused(trained, tmp_path):
    folder, _, _ = trained
    with pytest.raises(ValueError, match=r"training\.ema_decay: was 0\.75, is None"):
        make_trainer(tmp_path, max_steps=6).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    plain = make_trainer(tmp_path / "plain", max_steps=1, save_strategy="steps", save_steps=1)
    plain.train()
    averaged = make_trainer(tmp_path / "plain", max_steps=2, ema_decay=0.9)
    with pytest.raises(ValueError, match=r"training\.ema_decay: was None, is 0\.9"):
        averaged.train(resume_from_checkpoint=True)


def test_lora_averages_what_is_trained(tmp_path):
    model, processor = make_policy(tmp_path / "vlm")
    model.resize_token_embeddings(processor.vocab_size)
    model = get_peft_model(model, lora_config(model, processor, rank=2))
    settings = {"max_steps": 3, "ema_decay": 0.5, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(tmp_path, model, processor, **settings)
    trainer.add_callback(recorder := Recorder())
    trainer.train()
    average = expected_average(recorder.weights, 0.5)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainer.average.weights.keys() == trained and len(trained) < len(average)
    trainer.take_average()
    assert_average({name: p for name, p in model.named_parameters() if name in trained}, average)
    assert trainer.average is None


@pytest.mark.parametrize("decay", [0.0, 1.0, 99.0])
def test_no_decay_outside_0_and_1(tmp_path, decay):
    with pytest.raises(ValueError, match="ema_decay lies between 0 and 1"):
        KIVLATrainingArguments(str(tmp_path), ema_decay=decay)

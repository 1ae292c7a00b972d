"""What is not finite never reaches the weights, and is named; jumps and dead experts are noticed, and nothing else."""

import copy
import logging
import math

import numpy as np
import pytest
import torch
from torch.utils.data import Subset
from transformers import TrainerCallback

from kivla import KIVLATrainingArguments
from kivla.modeling_kivla.flow_matching import sample_flow_time
from kivla.simulation import make_questions
from kivla.training.data.mixture import Mixture
from kivla.training.data.vlm.dataset import VLMDataset
from kivla.training.loss_watch import NonFiniteError, dead_expert_of, name_examples, spike_of
from tests.helpers.fixed_noise import FixedNoiseCollator
from tests.helpers.policies import dataset, make_policy, make_trainer

POISONED = 7


class Poison(FixedNoiseCollator):
    """The loss of item 7 is NaN."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        frame = dataset()[POISONED]
        for i, example in enumerate(examples):
            if (example["episode_index"], example["frame_index"]) == (frame["episode_index"], frame["frame_index"]):
                batch["noise"][i] = math.nan
        return batch


class States(TrainerCallback):
    """Whether a step changes weights, optimiser and average."""

    def __init__(self, trainer):
        self.trainer, self.before, self.changed = trainer, [], []

    def _state(self) -> list[list[torch.Tensor]]:
        optimizer = self.trainer.optimizer.state_dict()["state"]
        kept = [torch.as_tensor(value) for state in optimizer.values() for value in state.values()]
        parts = (self.trainer.model.state_dict().values(), kept, self.trainer.average.weights.values())
        return [[value.clone() for value in part] for part in parts]

    def changes(self) -> list[bool]:
        return [
            len(before) != len(now) or not all(map(torch.equal, before, now))
            for before, now in zip(self.before, self._state(), strict=True)
        ]

    def on_step_begin(self, args, state, control, **kwargs):
        self.before = self._state()

    def on_step_end(self, args, state, control, **kwargs):
        self.changed.append(self.changes())


SETTINGS = {
    "max_steps": 5,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "train_sampling_strategy": "sequential",  # item 7 comes in the fourth batch, which is in the second step
    "ema_decay": 0.5,
    "logging_steps": 1,
}


def test_nan_stops_the_run_and_is_named(tmp_path):
    trainer = make_trainer(tmp_path, collator=Poison, **SETTINGS)
    trainer.add_callback(states := States(trainer))
    with pytest.raises(NonFiniteError) as error:
        trainer.train()
    message = str(error.value)
    assert message.startswith("The loss is nan in step 2. In this batch: ")
    assert message.count("episode") == 2, "only the batch with the NaN, not the whole step"
    for item in (6, 7):
        frame = dataset()[item]
        assert f"lerobot_v3_metaworld episode {frame['episode_index']} frame {frame['frame_index']}" in message
    assert states.changed == [[True] * 3], "one step, before"
    assert states.changes() == [False] * 3, "the step with NaN"


def test_nan_is_skipped_if_wanted(tmp_path, caplog):
    trainer = make_trainer(tmp_path, collator=Poison, on_nonfinite="skip", max_grad_norm=0, **SETTINGS)
    trainer.add_callback(states := States(trainer))
    trainer.train()
    assert states.changed == [[True] * 3, [False] * 3, [True] * 3, [True] * 3, [True] * 3]
    assert "The loss is nan in step 2" in caplog.text and "The step is skipped" in caplog.text
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry.get("skipped_steps", 0) for entry in logs] == [0, 1, 1, 1, 1]
    assert [math.isfinite(entry["loss"]) for entry in logs] == [True, False, True, True, True]
    assert all(math.isfinite(entry["flow_loss"]) for entry in logs if "flow_loss" in entry)
    assert all(torch.isfinite(weight).all() for weight in trainer.model.state_dict().values())
    good = [entry["loss"] for entry in logs if math.isfinite(entry["loss"])]
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(np.mean(good))


def test_skipped_steps_do_not_dilute_the_logged_loss(tmp_path):
    together = make_trainer(tmp_path / "a", collator=Poison, on_nonfinite="skip", **{**SETTINGS, "logging_steps": 4})
    together.train()
    single = make_trainer(tmp_path / "b", collator=Poison, on_nonfinite="skip", **SETTINGS)
    single.train()
    for name in ("loss", "token_loss"):
        losses = [entry[name] for entry in single.state.log_history[:4] if math.isfinite(entry.get(name, math.nan))]
        assert len(losses) == 3
        assert together.state.log_history[0][name] == pytest.approx(np.mean(losses), rel=0.02)


def test_an_infinite_gradient_of_a_finite_loss(tmp_path):
    trainer = make_trainer(tmp_path, **SETTINGS)
    weight = next(trainer.model.expert.parameters())
    weight.register_hook(lambda gradient: gradient + math.inf)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(NonFiniteError, match=r"losses are finite here, the gradient is (inf|nan) in step 1\. In these"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_too_many_in_a_row_are_an_error(tmp_path):
    trainer = make_trainer(tmp_path, on_nonfinite="skip", **{**SETTINGS, "max_steps": 20})
    next(trainer.model.expert.parameters()).register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NonFiniteError, match="10th step in a row"):
        trainer.train()
    assert trainer.state.global_step == 9


def test_unknown_policy(tmp_path):
    with pytest.raises(ValueError, match='on_nonfinite is "stop" or "skip"'):
        KIVLATrainingArguments(str(tmp_path), on_nonfinite="ignore")


def test_examples_by_name():
    questions = VLMDataset(make_questions(2, seed=0))
    mixture = Mixture([Subset(dataset(), range(100, 120)), questions], [1, 1], 40, seed=0)
    for index in range(40):
        example = mixture[index]
        origin = {"index": index, **{n: example[n] for n in ("episode_index", "frame_index") if n in example}}
        name = name_examples(mixture, [origin])
        if "episode_index" in example:
            episode, frame = example["episode_index"], example["frame_index"]
            assert name.endswith(f"lerobot_v3_metaworld episode {episode} frame {frame}")
        else:
            row = int(name.removeprefix("VLMDataset row "))
            assert (questions[row]["text"], questions[row]["response"]) == (example["text"], example["response"])


# ------------------------------------------------------------------------------------------------- spikes, dead experts
def test_spikes_are_noticed():
    rng = np.random.default_rng(0)
    steady = list(2 + 0.1 * rng.standard_normal(60))
    assert "jumped to 4, " in spike_of([*steady, 4.0])
    assert spike_of([*steady, 2.3]) is None
    assert spike_of([*steady, 0.1]) is None, "downwards is welcome"
    assert spike_of([*steady[:10], 400.0]) is None, "too few to know what is usual"
    assert spike_of([*([2.0] * 30), 2.05]) is None, "constant losses have no deviation"
    assert spike_of([*([2.0] * 30), 2.2]) is not None
    assert spike_of([*steady, 50.0, 60.0, 2.0]) is None, "a spike does not hide in earlier ones, nor make more"
    assert spike_of([*steady, 50.0, 60.0]) is not None


def test_ordinary_noise_is_no_spike():
    rng = np.random.default_rng(1)
    falling = 3 * np.exp(-np.arange(5000) / 800) + 1
    losses = list(falling * rng.lognormal(0, 0.2, 5000))
    alarms = [i for i in range(1, 5001) if spike_of(losses[max(0, i - 51) : i])]
    assert len(alarms) <= 5, f"{len(alarms)} false alarms in 5,000 logged losses"


@pytest.mark.parametrize("spread", [0.05, 0.3, 0.7, 1.0, 1.4, 3.0])
def test_an_expert_that_sees_its_own_input_alone_is_alive(spread):
    """What the rule of the dead expert rests on. The best velocity, given the noisy chunk of Gaussian actions alone."""
    generator = torch.Generator().manual_seed(0)
    noise, actions = torch.randn(2, 400_000, generator=generator)
    actions, velocity = spread * actions, noise - spread * actions
    time = sample_flow_time(400_000, 1.5, 1.0, 0.999, 0.001, torch.device("cpu"))
    noisy = time * noise + (1 - time) * actions
    gain = (time - (1 - time) * spread**2) / (time**2 + (1 - time) ** 2 * spread**2)
    flow_loss = (velocity - gain * noisy).square().mean().item()
    of_mean = (velocity - velocity.mean()).square().mean().item()
    assert flow_loss < 0.82 * of_mean
    assert dead_expert_of([(flow_loss, of_mean)] * 10) is None
    assert dead_expert_of([(of_mean, of_mean)] * 10) is not None


def test_a_dead_expert_is_one_for_ten_log_entries():
    assert dead_expert_of([(1.4, 1.4)] * 9) is None
    assert dead_expert_of([(0.5, 1.4)] * 90 + [(1.4, 1.4)] * 10) is not None
    assert dead_expert_of([(0.5, 1.4)] * 2 + [(1.4, 1.4)] * 8) is None


def test_the_loss_of_the_mean_velocity_is_logged(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, train_sampling_strategy="sequential", per_device_train_batch_size=40)
    trainer.train()
    batch = trainer.data_collator([dataset()[i] for i in range(40)])
    variance = sum(
        batch["actions"][..., d][mask].double().var(correction=0).item() * mask.sum().item()
        for d, mask in enumerate(batch["action_mask"].unbind(-1))
        if mask.any()
    ) / int(batch["action_mask"].sum())
    assert trainer.state.log_history[0]["mean_velocity_flow_loss"] == pytest.approx(1 + variance, rel=1e-5)


@pytest.mark.parametrize(("rate", "warns"), [(0.0, True), (5e-3, False)])
def test_a_dead_expert_is_told_from_a_live_one(tmp_path, caplog, monkeypatch, rate, warns):
    monkeypatch.setattr("kivla.training.loss_watch.DEAD_EXPERT_STEPS", 20)
    settings = {"max_steps": 32, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
    model, processor = make_policy(tmp_path / "vlm")
    trainer = make_trainer(tmp_path, model, processor, expert_learning_rate=rate, **settings)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert caplog.text.count("the action expert learns nothing") == warns

"""Training with delays (`rtc_max_delay`): what is learned is counted right, however a batch is split."""

import numpy as np
import pytest
import torch

from kivla.training.evaluation.evaluation_step import EvaluationStep
from tests.helpers.fixed_noise import FixedNoiseCollator
from tests.helpers.policies import CHUNK, losses, make_policy, make_trainer

MAX_DELAY = 4


class FixedDelayCollator(FixedNoiseCollator):
    """Gives every example its own fixed delay, too."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        delays = [(example["episode_index"] + example["frame_index"]) % (MAX_DELAY + 1) for example in examples]
        batch["delay"] = torch.tensor(delays)
        return batch


def delayed_trainer(folder, **arguments):
    model, processor = make_policy(folder / "vlm", rtc_max_delay=MAX_DELAY, num_flow_samples=arguments.pop("draws", 1))
    return make_trainer(folder, model, processor, **arguments)


def test_accumulating_gradients_changes_nothing(tmp_path):
    runs = []
    for name, size, steps in (("whole", 8, 1), ("split", 2, 4)):
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 3}
        trainer = delayed_trainer(tmp_path / name, collator=FixedDelayCollator, **arguments)
        trainer.train()
        runs.append(trainer)
    np.testing.assert_allclose(losses(runs[0]), losses(runs[1]), rtol=1e-4)
    step = runs[0].args.learning_rate  # as far as Adam moves a weight
    for (name, a), (_, b) in zip(runs[0].model.named_parameters(), runs[1].model.named_parameters(), strict=True):
        assert (a - b).abs().max() <= 0.02 * step, name


def test_the_logged_loss_is_the_mean_over_what_is_learned(tmp_path, monkeypatch):
    """Two noise draws, delays that the trainer draws itself."""
    trainer = delayed_trainer(tmp_path, draws=2, max_steps=2)
    seen = []
    forward = trainer.model._flow

    def watched(prefix, actions, action_mask, state, draws, num_supervised):
        velocity, loss = forward(prefix, actions, action_mask, state, draws, num_supervised)
        kept = action_mask.repeat(2, 1, 1) & (torch.arange(CHUNK)[:, None] >= draws[2][:, None, None])
        seen.append((float(loss.detach()), float(num_supervised), int(kept.sum())))
        return velocity, loss

    monkeypatch.setattr(trainer.model, "_flow", watched)
    trainer.train()
    logged = [entry["flow_loss"] for entry in trainer.state.log_history if "flow_loss" in entry]
    assert len(seen) == len(logged) == 2
    for (loss, counted, kept), log in zip(seen, logged, strict=True):
        assert counted == pytest.approx(kept / 2), "values that are given were counted as learned"
        assert log == pytest.approx(loss, rel=1e-5)


def test_the_same_seed_draws_the_same_delays(tmp_path):
    arguments = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    first = delayed_trainer(tmp_path / "first", **arguments)
    first.train()
    again = delayed_trainer(tmp_path / "again", **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "first" / "run" / "checkpoint-3"))
    assert losses(again) == losses(first), "resuming drew other delays"


def test_evaluation_weighs_examples_by_what_is_learned_of_them(tmp_path):
    trainer = delayed_trainer(tmp_path)
    measure = EvaluationStep(trainer.model.eval(), trainer.processing_class, samples=False)
    batch = next(iter(trainer.get_eval_dataloader()))
    torch.manual_seed(0)
    sums, *_ = measure(batch)
    values = sums["action_values"]
    assert (values <= batch["action_mask"].sum((1, 2))).all() and values.sum() < batch["action_mask"].sum()
    metrics = trainer.evaluate()
    assert metrics["eval_flow_loss"] == trainer.evaluate()["eval_flow_loss"], "evaluation is not deterministic"

"""KIVLATrainer: both losses fall, nothing depends on how a batch is split, and a run can be stopped and resumed."""

import numpy as np
import pytest
import torch

from kivla import KIVLACollator, KIVLAForActionPrediction, KIVLAProcessor
from tests.helpers.fixed_noise import FixedNoiseCollator
from tests.helpers.policies import CHUNK, dataset, losses, make_policy, make_trainer
from tests.helpers.tolerance import assert_close_relative

SHORT_RUN = {
    "max_steps": 100,
    "save_strategy": "steps",
    "save_steps": 60,
    "per_device_train_batch_size": 8,
    "learning_rate": 2e-3,
    "expert_learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
}


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """A hundred steps, with a checkpoint after sixty."""
    folder = tmp_path_factory.mktemp("short_run")
    trainer = make_trainer(folder, **SHORT_RUN)
    trainer.train()
    return folder, trainer


def test_both_losses_fall(short_run):
    _, trainer = short_run
    history = np.array(losses(trainer))
    before, after = history[:5].mean(0), history[-5:].mean(0)
    assert after[0] < 0.8 * before[0], f"token loss {before[0]:.3f} -> {after[0]:.3f}"
    assert after[1] < 0.6 * before[1], f"flow loss {before[1]:.3f} -> {after[1]:.3f}"


def test_log_has_every_metric(short_run):
    _, trainer = short_run
    entry = trainer.state.log_history[0]
    names = {"loss", "token_loss", "flow_loss", "token_accuracy", "action_token_accuracy"}
    assert names | {"backbone_grad_norm", "expert_grad_norm", "grad_norm"} <= set(entry)
    assert entry["loss"] == pytest.approx(entry["token_loss"] + entry["flow_loss"], rel=1e-4)
    norms = entry["backbone_grad_norm"], entry["expert_grad_norm"]
    assert entry["grad_norm"] == pytest.approx(np.hypot(*norms), rel=1e-4)


def test_same_seed_same_losses_and_resuming_changes_nothing(short_run, tmp_path):
    folder, trainer = short_run
    again = make_trainer(tmp_path, **SHORT_RUN)
    again.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-60"))
    assert losses(again) == losses(trainer), "resuming at step 60 gave other losses than not stopping"
    for (name, a), (_, b) in zip(trainer.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name

    fresh = make_trainer(tmp_path / "fresh", **{**SHORT_RUN, "max_steps": 5})
    fresh.train()
    assert losses(fresh) == losses(trainer)[:5], "the same seed gave other losses"


def test_checkpoint_holds_model_and_processor(short_run):
    folder, trainer = short_run
    checkpoint = folder / "run" / "checkpoint-60"
    model, processor = KIVLAForActionPrediction.from_pretrained(checkpoint), KIVLAProcessor.from_pretrained(checkpoint)
    assert processor.to_dict() == trainer.processing_class.to_dict()
    assert model.get_input_embeddings().weight.shape[0] >= processor.vocab_size


def test_evaluation_in_robot_units(short_run):
    _, trainer = short_run
    metrics = trainer.evaluate()
    mean = dataset().statistics["actions"]["mean"]
    errors = [np.abs(mean - e["actions"])[~e["action_is_pad"]] for e in (dataset()[i] for i in range(len(dataset())))]
    assert metrics["eval_mean_action_mae"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)
    assert metrics["eval_times_better_than_mean"] > 1.2, metrics
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_token_loss"] + metrics["eval_flow_loss"])
    per_dimension = [metrics[f"eval_action_mae_{i}"] for i in range(4)]
    assert metrics["eval_action_mae"] == pytest.approx(np.mean(per_dimension), rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == metrics["eval_loss"], "evaluation is not deterministic"


def test_evaluation_does_not_disturb_training(tmp_path):
    plain = make_trainer(tmp_path / "plain")
    plain.train()
    watched = make_trainer(tmp_path / "watched", eval_strategy="steps", eval_steps=2, eval_num_steps=2)
    watched.train()
    assert losses(watched) == losses(plain)


def test_accumulating_gradients_changes_nothing(tmp_path):
    runs = []
    for name, size, steps in (("whole", 8, 1), ("split", 4, 2)):
        trainer = make_trainer(
            tmp_path / name,
            collator=FixedNoiseCollator,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=4,
        )
        trainer.train()
        runs.append(trainer)
    np.testing.assert_allclose(losses(runs[0]), losses(runs[1]), rtol=1e-4)  # relative to each loss
    step = runs[0].args.learning_rate  # as far as Adam moves a weight
    for (name, a), (_, b) in zip(runs[0].model.named_parameters(), runs[1].model.named_parameters(), strict=True):
        assert (a - b).abs().max() <= 0.02 * step, name


def test_learning_rates_of_the_two_parts(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e-4, expert_learning_rate=5e-4, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == sum(1 for _ in trainer.model.parameters())
    for name, parameter in trainer.model.named_parameters():
        assert rate[id(parameter)] == (5e-4 if name.startswith("expert.") else 1e-4), name


def test_mixed_batch_of_the_three_kinds(tmp_path):
    """Each example's losses are the same as alone, and the batch's are their means over supervised positions."""
    model, processor = make_policy(tmp_path)
    robot, action_only = dataset()[0], {**dataset()[60], "text": ""}
    question = {"images": robot["images"], "text": "what is it?", "response": "a drawer"}
    model.resize_token_embeddings(processor.vocab_size)
    collator, noise = KIVLACollator(processor), torch.randn(3, CHUNK, 5)
    time = torch.tensor([0.2, 0.5, 0.9])

    def outputs(examples, rows):
        with torch.no_grad():
            batch = collator(examples)
            draws = {"noise": noise[rows], "timestep": time[rows]} if "actions" in batch else {}
            return batch, model(**batch, **draws)

    examples = [robot, action_only, question]
    batch, together = outputs(examples, [0, 1, 2])
    singles = [outputs([example], [i]) for i, example in enumerate(examples)]
    assert singles[2][1].flow_loss is None, "VLM data has no flow loss"
    tokens = [int((b["labels"] != -100).sum()) for b, _ in singles]
    values = [int(b["action_mask"].sum()) for b, _ in singles[:2]]
    token_loss = sum(n * out.token_loss for n, (_, out) in zip(tokens, singles, strict=True)) / sum(tokens)
    flow_loss = sum(n * out.flow_loss for n, (_, out) in zip(values, singles, strict=False)) / sum(values)
    assert_close_relative(together.token_loss, token_loss, what="token loss")
    assert_close_relative(together.flow_loss, flow_loss, what="flow loss")
    assert not batch["action_mask"][2].any()


def test_disagreeing_model_and_processor(tmp_path):
    model, processor = make_policy(tmp_path)
    processor.chunk_size = 9
    with pytest.raises(ValueError, match="chunk_size is 6 in the model's config, 9 in the processor"):
        make_trainer(tmp_path, model, processor)


def test_example_without_text(tmp_path):
    _, processor = make_policy(tmp_path)
    with pytest.raises(ValueError, match=r"has no `text`; it has \['images'\]"):
        KIVLACollator(processor)([{"images": []}])

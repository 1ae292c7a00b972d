"""Trainer.predict and compute_metrics: predicted and true chunks in robot units, and whose words they follow."""

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from kivla import ActionPredictionPipeline, BinningActionTokenizer, KIVLAProcessor, KIVLATrainer, KIVLATrainingArguments
from tests.helpers.policies import CHUNK, SIZES, awaken, dataset, make_policy, make_trainer

# The ends of episodes: with padded steps.
SOME = [0, 7, *np.flatnonzero([dataset()[i]["action_is_pad"].any() for i in range(len(dataset()))])[:6]]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("predict"), eval_num_steps=2, per_device_eval_batch_size=3)
    awaken(trainer.model)
    trainer.eval_dataset = Subset(dataset(), SOME)
    return trainer


def test_what_is_predicted(trainer):
    output = trainer.predict(trainer.eval_dataset)
    examples = [dataset()[i] for i in SOME]
    true = np.stack([np.where(e["action_is_pad"][:, None], np.nan, e["actions"]) for e in examples])
    assert output.predictions.shape == output.label_ids.shape == true.shape == (len(SOME), CHUNK, 4)
    assert np.isnan(true).any() and np.isfinite(output.predictions).all()
    largest = np.nanmax(np.abs(true))
    np.testing.assert_allclose(output.label_ids, true, rtol=0, atol=1e-6 * largest)
    error = np.nanmean(np.abs(output.predictions - output.label_ids))
    assert output.metrics["test_action_mae"] == pytest.approx(error, rel=1e-5)
    assert {"test_loss", "test_token_loss", "test_runtime"} <= set(output.metrics)


def _noise_of(model, monkeypatch) -> list[torch.Tensor]:
    """What `sample_actions` starts from, one entry for each call."""
    drawn, sample = [], model.sample_actions

    def recorded(noise, **inputs):
        drawn.append(noise)
        return sample(noise=noise, **inputs)

    monkeypatch.setattr(model, "sample_actions", recorded)
    return drawn


def _observations(examples) -> list[dict]:
    return [{name: example[name] for name in ("images", "text", "state")} for example in examples]


def test_observations_alone(trainer, monkeypatch):
    """Their chunks are those of the pipeline, from the same noise."""
    observations, drawn = _observations(dataset()[i] for i in SOME[:3]), _noise_of(trainer.model, monkeypatch)
    output = trainer.predict(observations)
    assert output.label_ids is None and "test_loss" not in output.metrics
    processor = trainer.processing_class
    inputs = ActionPredictionPipeline(model=trainer.model.eval(), processor=processor).preprocess(observations)[
        "inputs"
    ]
    chunks = trainer.model.sample_actions(**inputs, noise=drawn[0], num_steps=2)
    expected = processor.unnormalize_actions(chunks.numpy())
    np.testing.assert_allclose(output.predictions, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_compute_metrics(trainer):
    seen = []

    def mine(prediction):
        seen.append(prediction)
        return {"worst": np.nanmax(np.abs(prediction.predictions - prediction.label_ids)), "eval_named": np.float32(2)}

    trainer.compute_metrics = mine
    try:
        metrics = trainer.evaluate()
        output = trainer.predict(trainer.eval_dataset)
    finally:
        trainer.compute_metrics = None
    np.testing.assert_array_equal(seen[0].predictions, output.predictions)
    np.testing.assert_array_equal(seen[0].label_ids, output.label_ids)
    assert metrics["eval_worst"] == pytest.approx(np.nanmax(np.abs(output.predictions - output.label_ids)))
    assert metrics["eval_worst"] >= metrics["eval_action_mae"] and metrics["eval_named"] == 2.0
    assert type(metrics["eval_worst"]) is float, "metrics go into a JSON file"


@pytest.mark.parametrize("setting", [{"sample_in_eval": False}, {"prediction_loss_only": True}])
def test_metrics_of_chunks_that_are_not_sampled(tmp_path, setting):
    model, processor = make_policy(tmp_path)
    args = KIVLATrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", **setting)
    with pytest.raises(ValueError, match="compute_metrics gets the chunks that evaluation samples"):
        KIVLATrainer(model, args, processing_class=processor, compute_metrics=len)
    metrics = KIVLATrainer(model, args, processing_class=processor).evaluate(Subset(dataset(), SOME[:2]))
    assert "eval_loss" in metrics and "eval_action_mae" not in metrics


def test_several_robots_and_questions(tmp_path):
    """What an example does not have is NaN."""
    _, single = make_policy(tmp_path / "vlm")
    statistics = {"wide": single.statistics, "narrow": _narrowed(single.statistics)}
    robots = {name: {"statistics": values} for name, values in statistics.items()}
    processor = KIVLAProcessor.from_vlm(
        tmp_path / "vlm", action_tokenizer=BinningActionTokenizer(), robots=robots, **SIZES
    )
    model, _ = make_policy(tmp_path / "vlm")
    wide = {**dataset()[0], "robot": "wide"}
    narrow = {**wide, "robot": "narrow", "actions": wide["actions"][:, :2], "state": wide["state"][:2]}
    question = {"images": wide["images"], "text": "what is it?", "response": "a drawer"}
    args = KIVLATrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", eval_num_steps=1)
    output = KIVLATrainer(model, args, processing_class=processor).predict([wide, question, narrow])
    for name, chunks in (("predictions", output.predictions), ("label_ids", output.label_ids)):
        assert chunks.shape == (3, CHUNK, 4), name
        assert np.isfinite(chunks[0]).all() and np.isfinite(chunks[2, :, :2]).all(), name
        assert np.isnan(chunks[1]).all() and np.isnan(chunks[2, :, 2:]).all(), name
    np.testing.assert_allclose(output.label_ids[2, :, :2], wide["actions"][:, :2], rtol=0, atol=1e-6)
    only = KIVLATrainer(model, args, processing_class=processor, compute_metrics=len).predict([question])
    assert only.predictions is None and only.label_ids is None, "nothing of it acts, and compute_metrics is not called"


def _narrowed(statistics: dict) -> dict:
    return {name: {key: values[:2] for key, values in entries.items()} for name, entries in statistics.items()}


def test_chunks_that_do_not_decode(tmp_path, monkeypatch):
    model, processor = make_policy(tmp_path, flow_loss_weight=0.0)
    args = KIVLATrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none")
    trainer = KIVLATrainer(model, args, processing_class=processor)
    monkeypatch.setattr(type(processor.action_tokenizer), "max_tokens", lambda *sizes: 1)  # they cannot be finished
    output = trainer.predict(Subset(dataset(), [0, 1]))
    assert output.metrics["test_decoding_failures"] == 1.0 and "test_action_mae" not in output.metrics
    assert np.isnan(output.predictions).all() and np.isfinite(output.label_ids).all()


def instructed(swapped: bool = False) -> list[dict]:
    """The same picture and instruction, with one of two responses."""
    return [{**dataset()[0], "response": ("left", "right, and then up")[(i + swapped) % 2]} for i in range(2)]


@pytest.mark.parametrize("acts_by", ["flow", "tokens"])
def test_the_error_is_that_of_the_policys_own_words(tmp_path, acts_by, monkeypatch):
    """With other words in the data the policy acts as before; only the error after these words changes. Both are the
    pipeline's, which says its own words or is given some."""
    model, _ = make_policy(tmp_path / "vlm", flow_loss_weight=float(acts_by == "flow"))
    settings = {"statistics": dataset().statistics, "expert_reads_response": True, "responds_first": True}
    processor = KIVLAProcessor.from_vlm(
        tmp_path / "vlm", action_tokenizer=BinningActionTokenizer(), **settings, **SIZES
    )
    awaken(model)
    args = KIVLATrainingArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", per_device_eval_batch_size=4
    )
    trainer = KIVLATrainer(model, args, processing_class=processor)
    drawn = _noise_of(model, monkeypatch)
    outputs = [trainer.predict(instructed(swapped)) for swapped in (False, True)]
    np.testing.assert_array_equal(outputs[0].predictions, outputs[1].predictions)
    assert outputs[0].metrics["test_action_mae"] == outputs[1].metrics["test_action_mae"]

    pipe = ActionPredictionPipeline(model=model.eval(), processor=processor)

    def deployed(observations):
        inputs = pipe.preprocess(observations)
        if acts_by == "tokens":
            return np.stack([result["actions"] for result in pipe.postprocess(pipe._forward(inputs))])
        chunks = model.sample_actions(**inputs["inputs"], noise=drawn[0])
        return processor.unnormalize_actions(chunks.numpy())

    own = deployed(_observations(instructed()))
    np.testing.assert_allclose(outputs[0].predictions, own, rtol=0, atol=1e-5 * np.abs(own).max())
    for swapped, output in zip((False, True), outputs, strict=True):
        given = [
            {**observation, "response": example["response"]}
            for observation, example in zip(_observations(instructed(swapped)), instructed(swapped), strict=True)
        ]
        error = np.nanmean(np.abs(deployed(given) - output.label_ids))
        assert output.metrics["test_action_mae_given_response"] == pytest.approx(error, rel=1e-4)
    if acts_by == "flow":
        assert not np.allclose(deployed(given), own, atol=1e-3 * np.abs(own).max()), (
            "the expert does not read the words"
        )

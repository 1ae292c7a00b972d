"""The metrics as `evaluate` modules: by hand, against numpy, scipy and torch, and as the library uses any module."""

import json

import evaluate
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch.nn.functional import cross_entropy

from kivla import FASTActionTokenizer
from kivla.training.evaluation.metrics import (
    METRICS,
    ActionError,
    AnswerMatch,
    ChunkReconstruction,
    Smoothness,
    TokenAccuracy,
    load_metric,
)
from kivla.training.evaluation.right_answers import normalize_answer


@pytest.fixture(autouse=True)
def metrics_cache(tmp_path, monkeypatch):
    """Modules keep what was added in files: not in the user's cache."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


@pytest.fixture
def chunks():
    """Predictions, references, is_pad: 7 chunks of 6 steps and 3 dimensions, of which 1 to 6 are real."""
    rng = np.random.default_rng(0)
    is_pad = np.arange(6) >= np.array([6, 5, 1, 4, 6, 3, 2])[:, None]
    return rng.normal(size=(7, 6, 3)), rng.normal(size=(7, 6, 3)), is_pad


# The error of actions


def test_action_error_by_hand():
    # Errors: (3, 4), (1, -2) | (0, 2), padding
    predictions = [[[3, 4], [1, 0]], [[1, 3], [99, 99]]]
    references = [[[0, 0], [0, 2]], [[1, 1], [1, 1]]]
    result = ActionError().compute(predictions=predictions, references=references, is_pad=[[0, 0], [0, 1]])
    assert result["mae"] == pytest.approx(12 / 6)
    assert result["rmse"] == pytest.approx((34 / 6) ** 0.5)
    assert result["mae_per_dimension"] == pytest.approx([4 / 3, 8 / 3])
    assert result["mae_per_step"] == pytest.approx([9 / 4, 3 / 2])
    assert result["end_point_error"] == pytest.approx((5**0.5 + 2) / 2)


def test_action_error_is_that_of_numpy_and_scipy(chunks):
    predictions, references, is_pad = chunks
    result = ActionError().compute(predictions=predictions, references=references, is_pad=is_pad)
    error = np.ma.array(predictions - references, mask=np.repeat(is_pad[..., None], 3, axis=2))
    np.testing.assert_allclose(result["mae"], np.abs(error).mean())
    np.testing.assert_allclose(result["rmse"], np.sqrt((error**2).mean()))
    np.testing.assert_allclose(result["mae_per_dimension"], np.abs(error).mean((0, 1)))
    np.testing.assert_allclose(result["mae_per_step"], np.abs(error).mean((0, 2)))
    lasts = [np.flatnonzero(~pad)[-1] for pad in is_pad]
    ends = [[chunk[last] for chunk, last in zip(array, lasts, strict=True)] for array in (predictions, references)]
    np.testing.assert_allclose(result["end_point_error"], np.diag(cdist(*ends)).mean())


def test_what_is_padding_does_not_matter(chunks):
    predictions, references, is_pad = chunks
    changed = np.where(is_pad[..., None], 1e9, predictions)
    for metric in (ActionError(), Smoothness()):
        results = [metric.compute(predictions=p, references=references, is_pad=is_pad) for p in (predictions, changed)]
        assert results[0] == results[1]


def test_a_step_that_is_always_padding_has_no_error():
    chunk = np.ones((2, 3, 1))
    result = ActionError().compute(predictions=chunk, references=0 * chunk, is_pad=[[0, 0, 1], [0, 1, 1]])
    assert result["mae_per_step"] == [1.0, 1.0, None]


# Smoothness


def test_the_jerk_of_a_cubic_is_its_third_derivative():
    fps, seconds = 20.0, np.arange(8) / 20
    cubic = np.stack([2 * seconds**3 + seconds, -(seconds**3)], axis=1)  # third derivatives 12 and -6
    result = Smoothness(fps=fps).compute(predictions=[cubic], references=[0.5 * cubic])
    assert result["mean_squared_jerk"] == pytest.approx((12**2 + 6**2) / 2)
    assert result["reference_mean_squared_jerk"] == pytest.approx((6**2 + 3**2) / 2)
    assert result["jerk_ratio"] == pytest.approx(4)
    per_step = Smoothness().compute(predictions=[cubic], references=[0.5 * cubic])
    assert per_step["jerk_ratio"] == pytest.approx(4), "the ratio has no unit of time"


def test_jerk_counts_runs_of_four_real_steps(chunks):
    predictions, references, is_pad = chunks
    result = Smoothness(fps=1).compute(predictions=predictions, references=references, is_pad=is_pad)
    jerks = []
    for chunk, pad in zip(predictions, is_pad, strict=True):
        real = chunk[~pad]
        jerks += [real[t + 3] - 3 * real[t + 2] + 3 * real[t + 1] - real[t] for t in range(len(real) - 3)]
    assert result["mean_squared_jerk"] == pytest.approx(np.mean(np.square(jerks)))
    assert result["num_chunks"] == 4


def test_the_ratio_to_a_motion_without_jerk_is_undefined():
    line = np.arange(6.0)[None, :, None]
    result = Smoothness().compute(predictions=line**3, references=line)
    assert result["mean_squared_jerk"] == pytest.approx(36) and result["jerk_ratio"] is None


def test_jerk_that_is_rounding_only_is_none():
    line = np.linspace(0.1, 17.3, 12, dtype=np.float32).reshape(1, 12, 1)  # straight, but for float32
    result = Smoothness(fps=30).compute(predictions=line**2, references=line)
    assert result["reference_mean_squared_jerk"] > 0 and result["jerk_ratio"] is None


def test_jerk_needs_four_steps(chunks):
    predictions, references, _ = chunks
    with pytest.raises(ValueError, match="four real steps in a row, the longest chunk has 3"):
        Smoothness().compute(predictions=predictions[:, :3], references=references[:, :3])
    with pytest.raises(ValueError, match="fps is the number of actions per second"):
        Smoothness(fps=0)


# Tokens


def test_token_accuracy_is_that_of_torch():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 9), torch.randint(9, (50,))
    nll, correct = cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets
    kind = ["action" if target < 4 else "text" for target in targets]
    result = TokenAccuracy().compute(nll=nll, correct=correct, kind=kind)
    for prefix, chosen in {"": targets < 99, "action_token_": targets < 4, "text_token_": targets >= 4}.items():
        assert result[f"{prefix}accuracy"] == pytest.approx(correct[chosen].float().mean().item())
        expected = cross_entropy(logits[chosen], targets[chosen]).exp().item()
        assert result[f"{prefix}perplexity"] == pytest.approx(expected, rel=1e-5)


def test_a_kind_without_tokens_is_left_out():
    result = TokenAccuracy().compute(nll=[np.log(4), np.log(16)], correct=[1, 0], kind=["text", "text"])
    assert result["perplexity"] == pytest.approx(8) and result["text_token_accuracy"] == 0.5
    assert not any(name.startswith("action") for name in result)


@pytest.mark.parametrize(
    ("nll", "kind", "message"),
    [
        ([], [], "no tokens"),
        ([0.5, -0.5], ["text"] * 2, "that of token 1 is -0.5.*opposite sign"),
        ([np.nan], ["text"], "that of token 0 is nan"),
        ([np.inf], ["text"], "that of token 0 is inf"),
        ([0.5], ["image"], "no kind of token 'image'; the kinds are action, text"),
    ],
)
def test_bad_tokens(nll, kind, message):
    with pytest.raises(ValueError, match=message):
        TokenAccuracy().compute(nll=nll, correct=[True] * len(nll), kind=kind)


# What an action tokenizer loses


def test_chunk_reconstruction_is_what_the_tokenizer_says_of_itself():
    chunks = np.random.default_rng(0).uniform(-1, 1, (20, 8, 3)).cumsum(1) / 8
    tokenizer = FASTActionTokenizer.fit(chunks, vocab_size=256)
    codes = tokenizer.encode(chunks)
    result = ChunkReconstruction(vocab_size=256).compute(
        predictions=tokenizer.decode(codes, 8, 3), references=chunks, num_tokens=[len(code) for code in codes]
    )
    report = tokenizer.roundtrip_error(chunks)
    assert result["tokens_per_chunk"] == pytest.approx(report["tokens_mean"])
    assert result["max_tokens_per_chunk"] == report["tokens_max"]
    assert result["rmse"] == pytest.approx(report["rmse"], rel=1e-5)
    assert result["max_error"] == pytest.approx(report["max_error"], rel=1e-5)
    assert result["bits_per_value"] == pytest.approx(8 * report["tokens_mean"] / 24), "256 codes: 8 bits a token"


def test_bad_codes():
    chunk = np.zeros((2, 4, 1))
    with pytest.raises(ValueError, match="code of chunk 1 has 0 tokens"):
        ChunkReconstruction().compute(predictions=chunk, references=chunk, num_tokens=[3, 0])
    with pytest.raises(ValueError, match="at least two codes, got vocab_size=1"):
        ChunkReconstruction(vocab_size=1)
    result = ChunkReconstruction().compute(predictions=chunk, references=chunk, num_tokens=[3, 4])
    assert "bits_per_value" not in result


# Answers


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("The two T-shirts.", "2 t shirts"),
        ("  a\tred\nstar ", "red star"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("1,000 people", "1000 people"),
        ("red,green", "red green"),
        ("red, green", "red green"),
        ("3.5 m.", "3.5 m"),
        ("is it? (yes)", "is it yes"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("well its", "well its"),
        ("The", ""),
    ],
)
def test_answers_are_normalised_as_in_vqa(answer, normalized):
    assert normalize_answer(answer) == normalized


def test_one_true_answer():
    result = AnswerMatch().compute(predictions=["Two", "a cat", "red", "dog "], references=["2", "cat", "blue", "dog"])
    assert result == {"exact_match": 0.25, "short_answer_accuracy": 0.75}


@pytest.mark.parametrize(("count", "score"), [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (4, 1), (10, 1)])
def test_answers_of_several_people(count, score):
    people = ["The dog"] * count + ["cat"] * (10 - count)
    result = AnswerMatch().compute(predictions=["dog"], references=[people])
    assert result["short_answer_accuracy"] == pytest.approx(score)
    assert result["exact_match"] == 0
    assert AnswerMatch().compute(predictions=["The dog"], references=[people])["exact_match"] == (count > 0)


def test_bad_answers():
    with pytest.raises(ValueError, match="Question 1 has no reference"):
        AnswerMatch().compute(predictions=["a", "b"], references=[["a"], []])
    with pytest.raises(ValueError, match="no answers to measure"):
        AnswerMatch().compute(predictions=[], references=[])
    with pytest.raises(ValueError, match="expected format"):
        AnswerMatch().compute(predictions=[3], references=["3"])


# Bad chunks


def bad_chunks():
    good = np.zeros((2, 5, 3))
    not_a_number = good.copy()
    not_a_number[1, 2, 0] = np.nan
    return [
        (good[:, :4], good, None, r"Predictions have the shape \(2, 4, 3\), references \(2, 5, 3\)"),
        (good[..., :2], good, None, r"\(2, 5, 2\), references \(2, 5, 3\)"),
        (good[:1], good, None, "Mismatch in the number of predictions"),
        (good[0], good[0], None, "expected format"),
        ([good[0], good[1, :3]], good, None, r"predictions must be chunks of one shape.*\(3, 3\), \(5, 3\)"),
        (not_a_number, good, None, r"predictions must be finite.*\(1, 2, 0\)"),
        (good, good + np.inf, None, r"references must be finite.*\(0, 0, 0\)"),
        (good[:0], good[:0], None, "at least one value, got none"),
        (good[:, :0], good[:, :0], None, r"at least one value, got \(0, 0\)"),
        (good, None, None, "give both predictions and references"),
        (good, good, [[False] * 5, [True] * 5], "Chunk 1 is all padding"),
        (good, good, [[True] + [False] * 4] * 2, "Chunk 0 has padding in front of a real step"),
        (good, good, [[False] * 4] * 2, "one value for each of the 5 steps"),
    ]


@pytest.mark.parametrize("metric", [ActionError, Smoothness])
@pytest.mark.parametrize(("predictions", "references", "is_pad", "message"), bad_chunks())
def test_bad_chunks_are_refused(metric, predictions, references, is_pad, message):
    with pytest.raises(ValueError, match=message):
        metric().compute(predictions=predictions, references=references, is_pad=is_pad)


def test_a_metric_can_be_used_again_after_an_error(chunks):
    predictions, references, is_pad = chunks
    metric = ActionError(keep_in_memory=True)
    with pytest.raises(ValueError, match="finite"):
        metric.compute(predictions=predictions * np.nan, references=references)
    result = metric.compute(predictions=predictions, references=references, is_pad=is_pad)
    assert result == ActionError().compute(predictions=predictions, references=references, is_pad=is_pad)


# As modules of the library


@pytest.mark.parametrize("name", METRICS)
def test_modules_by_name(name):
    metric = load_metric(name, keep_in_memory=True)
    assert isinstance(metric, evaluate.Metric) and metric.name == name
    assert metric.description and metric.citation
    assert "Args:" in metric.inputs_description and "Returns:" in metric.inputs_description
    assert metric.inputs_description in metric.compute.__doc__


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no metric 'bleu'.*action_error, answer_match"):
        load_metric("bleu")


@pytest.mark.parametrize("metric", [ActionError, Smoothness])
def test_batches_and_examples_add_up(metric, chunks):
    predictions, references, is_pad = chunks
    expected = metric().compute(predictions=predictions, references=references, is_pad=is_pad)
    assert json.loads(json.dumps(expected)) == expected
    batches, single = metric(), metric()
    for rows in (slice(0, 4), slice(4, 7)):
        batches.add_batch(predictions=predictions[rows], references=references[rows], is_pad=is_pad[rows])
    for prediction, reference, pad in zip(predictions, references, is_pad, strict=True):
        single.add(prediction=prediction, reference=reference, is_pad=pad)
    assert batches.compute() == expected
    assert single.compute() == expected


def test_without_padding_every_step_is_real(chunks):
    predictions, references, _ = chunks
    metric = ActionError()
    metric.add_batch(predictions=predictions[:4], references=references[:4])
    for prediction, reference in zip(predictions[4:], references[4:], strict=True):
        metric.add(prediction=prediction, reference=reference)
    result = metric.compute()
    assert result["mae"] == pytest.approx(np.abs(predictions - references).mean())
    assert result == ActionError().compute(predictions=predictions, references=references)


def test_modules_can_be_combined(chunks):
    predictions, references, is_pad = chunks
    inputs = {"predictions": predictions, "references": references, "is_pad": is_pad}
    expected = ActionError().compute(**inputs) | Smoothness(fps=10).compute(**inputs)
    combined = evaluate.combine([ActionError(), Smoothness(fps=10)])
    assert combined.compute(**inputs) == expected
    for rows in (slice(0, 4), slice(4, 7)):
        combined.add_batch(**{name: values[rows] for name, values in inputs.items()})
    assert combined.compute() == expected

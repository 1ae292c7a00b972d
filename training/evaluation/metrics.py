"""What a policy is measured by, as modules of the `evaluate` library.

```python
metric = load_metric("action_error")  # the same as ActionError()
metric.add_batch(predictions=chunks, references=demonstrated, is_pad=is_pad)
metric.compute()  # {"mae": ..., "rmse": ..., "mae_per_dimension": [...], ...}
```

They are made here, not downloaded, and behave as any module: `add`, `add_batch`, `compute`, `evaluate.combine`.
Results are plain floats and lists, ready for JSON. Inputs from which nothing can be computed are a `ValueError`; where
a single figure is undefined (a ratio to zero) it is None, never NaN.
"""

from collections.abc import Sequence

import evaluate
import numpy as np
from datasets import Features, List, Value

from .action_error import error_of_chunks
from .right_answers import is_right, normalize_answer

_CHUNK = List(List(Value("float64")))
_CHUNK_FEATURES = Features({"predictions": _CHUNK, "references": _CHUNK, "is_pad": List(Value("bool"))})
_CHUNK_INPUTS = """
Args:
    predictions: (n, H, D) floats, the policy's action chunks in robot units.
    references: (n, H, D) floats, the demonstrated chunks.
    is_pad: (n, H) bool, True at the steps past the episode's end, which do not count; by default there are none.
        (`evaluate.combine(...).add_batch` wants to be given it, be it as None.)
"""


class _ChunkMetric(evaluate.Metric):
    """Compares action chunks; `is_pad` may be left out."""

    def compute(self, *, is_pad=None, **inputs) -> dict:
        """Compute the metric, of these chunks or of all that were added."""
        return super().compute(is_pad=is_pad, **inputs)

    def add_batch(self, *, predictions=None, references=None, is_pad=None) -> None:
        """Add chunks."""
        if predictions is None or references is None:
            raise ValueError("Chunks are missing: give both predictions and references, of shape (n, H, D).")
        if is_pad is None:
            is_pad = [[False] * len(chunk) for chunk in predictions]
        super().add_batch(predictions=predictions, references=references, is_pad=is_pad)

    def add(self, *, prediction, reference, is_pad=None) -> None:
        """Add one chunk."""
        is_pad = [False] * len(prediction) if is_pad is None else is_pad
        super().add(prediction=prediction, reference=reference, is_pad=is_pad)


class ActionError(_ChunkMetric):
    """How far predicted chunks are from demonstrated ones, in robot units. See its `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Errors of action chunks. Only real values count, each of them once.",
            citation=(
                "Mean absolute error and root-mean-square error, over values. The end-point error is the final "
                "displacement error of trajectory prediction (Alahi et al., Social LSTM, CVPR 2016)."
            ),
            inputs_description=_CHUNK_INPUTS
            + """
Returns:
    mae, rmse: over all real values.
    mae_per_dimension: (D,) floats.
    mae_per_step: (H,) floats, None where no chunk has a real step.
    end_point_error: Euclidean distance at a chunk's last real step, mean over the chunks.

Raises:
    ValueError: no chunks, chunks of different shapes, NaN or infinity, a chunk without a real step, or padding in
        front of a real step.
""",
            features=_CHUNK_FEATURES,
        )

    def _compute(self, predictions, references, is_pad) -> dict:
        predictions, references, real = _chunks(predictions, references, is_pad)
        distance = np.abs(predictions - references)
        last = real.sum(1) - 1
        per_step = [float(distance[:, step][seen].mean()) if seen.any() else None for step, seen in enumerate(real.T)]
        return {
            **error_of_chunks(predictions, references, real),
            "mae_per_step": per_step,
            "end_point_error": float(np.linalg.norm(distance[np.arange(len(last)), last], axis=1).mean()),
        }


class Smoothness(_ChunkMetric):
    """How jerky predicted chunks are, beside demonstrated ones.

    Args:
        fps: actions per second. With 1, jerk is per step cubed; the ratio is the same with any.
    """

    def __init__(self, *args, fps: float = 1.0, **kwargs):
        if not 0 < fps < np.inf:
            raise ValueError(f"fps is the number of actions per second and must be positive, got {fps}.")
        super().__init__(*args, **kwargs)
        self.fps = fps

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(
                "Mean squared jerk of action chunks: the square of the third finite difference over time, times fps³, "
                "over all runs of four real steps. Chunks with fewer than four real steps have none and do not count."
            ),
            citation=(
                "Flash and Hogan, The coordination of arm movements: an experimentally confirmed mathematical model, "
                "Journal of Neuroscience 5(7), 1985."
            ),
            inputs_description=_CHUNK_INPUTS
            + """
Returns:
    mean_squared_jerk, reference_mean_squared_jerk: of predictions and references, (robot units / second³)².
    jerk_ratio: the first divided by the second; above 1 = jerkier than demonstrated. None if the second is rounding.
    num_chunks: how many chunks had four real steps.

Raises:
    ValueError: as `action_error`, and if no chunk has four real steps.
""",
            features=_CHUNK_FEATURES,
        )

    def _compute(self, predictions, references, is_pad) -> dict:
        predictions, references, real = _chunks(predictions, references, is_pad)
        complete = real[:, 3:]  # padding is at the end: if the fourth step is real, so are the three before
        if not complete.any():
            raise ValueError(f"Jerk needs four real steps in a row, the longest chunk has {real.sum(1).max()}.")
        ours, theirs = (
            float(np.square(np.diff(chunks, n=3, axis=1)[complete] * self.fps**3).mean())
            for chunks in (predictions, references)
        )
        # The third difference adds up to 8 times what float32 rounds of a value.
        rounding = 8 * np.finfo(np.float32).eps * np.abs(references[real]).max() * self.fps**3
        return {
            "mean_squared_jerk": ours,
            "reference_mean_squared_jerk": theirs,
            "jerk_ratio": ours / theirs if theirs > rounding**2 else None,
            "num_chunks": int(complete.any(1).sum()),
        }


TOKEN_KINDS = ("action", "text")


class TokenAccuracy(evaluate.Metric):
    """Accuracy and perplexity of next-token predictions, by kind of token."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy and perplexity of the tokens that a policy learns, of actions and of text apart.",
            citation=(
                "Perplexity, the exponential of the mean negative log likelihood: Jelinek et al., Journal of the "
                "Acoustical Society of America 62, 1977."
            ),
            inputs_description=f"""
Args:
    nll: (n,) floats, negative log likelihood of each token that is to be predicted, in nats.
    correct: (n,) bool, whether it was the likeliest.
    kind: (n,) strings, one of {TOKEN_KINDS}.

Returns:
    accuracy, perplexity: of all tokens.
    action_token_accuracy, action_token_perplexity, text_token_accuracy, text_token_perplexity: of those kinds that
        there are.

Raises:
    ValueError: no tokens, another kind, or a likelihood that is negative, NaN or infinite.
""",
            features=Features({"nll": Value("float64"), "correct": Value("bool"), "kind": Value("string")}),
        )

    def _compute(self, nll, correct, kind) -> dict:
        nll, correct, kind = np.asarray(nll, dtype=np.float64), np.asarray(correct, dtype=bool), np.asarray(kind)
        if not len(nll):
            raise ValueError("There are no tokens to measure.")
        if not np.isfinite(nll).all() or (nll < 0).any():
            i = int(np.argmin(np.isfinite(nll) & (nll >= 0)))
            raise ValueError(
                f"A negative log likelihood must be finite and not below 0, that of token {i} is {nll[i]}. (A log "
                "likelihood has the opposite sign.)"
            )
        if unknown := sorted(set(kind.tolist()) - set(TOKEN_KINDS)):
            raise ValueError(f"There is no kind of token {unknown[0]!r}; the kinds are {', '.join(TOKEN_KINDS)}.")
        groups = {"": np.ones(len(nll), dtype=bool)} | {f"{name}_token_": kind == name for name in TOKEN_KINDS}
        result = {}
        for prefix, chosen in groups.items():
            if chosen.any():
                result[f"{prefix}accuracy"] = float(correct[chosen].mean())
                result[f"{prefix}perplexity"] = float(np.exp(nll[chosen].mean()))
        return result


class ChunkReconstruction(evaluate.Metric):
    """What an action tokenizer takes, and what it loses.

    Args:
        vocab_size: number of the tokenizer's codes, for `bits_per_value`.
    """

    def __init__(self, *args, vocab_size: int | None = None, **kwargs):
        if vocab_size is not None and vocab_size < 2:
            raise ValueError(f"A vocabulary has at least two codes, got vocab_size={vocab_size}.")
        super().__init__(*args, **kwargs)
        self.vocab_size = vocab_size

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Length of the code of action chunks, and the error of what is decoded from it.",
            citation="Pertsch et al., FAST: Efficient Action Tokenization for Vision-Language-Action Models, 2025, "
            "arXiv 2501.09747.",
            inputs_description="""
Args:
    predictions: (n, H, D) floats, the chunks after encoding and decoding, in normalised units.
    references: (n, H, D) floats, the chunks before.
    num_tokens: (n,) integers, the length of each chunk's code.

Returns:
    tokens_per_chunk, max_tokens_per_chunk: mean and maximum of `num_tokens`.
    rmse, max_error: over all values.
    bits_per_value: a token counts log2(vocab_size) bits. Only with a `vocab_size`.

Raises:
    ValueError: no chunks, chunks of different shapes, NaN or infinity, or a code without tokens.
""",
            features=Features({"predictions": _CHUNK, "references": _CHUNK, "num_tokens": Value("int64")}),
        )

    def _compute(self, predictions, references, num_tokens) -> dict:
        predictions, references = _same_shape(predictions, references)
        if min(num_tokens) < 1:
            raise ValueError(f"The code of chunk {int(np.argmin(num_tokens))} has {min(num_tokens)} tokens.")
        error = predictions - references
        result = {
            "tokens_per_chunk": float(np.mean(num_tokens)),
            "max_tokens_per_chunk": int(max(num_tokens)),
            "rmse": float(np.sqrt(np.square(error).mean())),
            "max_error": float(np.abs(error).max()),
        }
        if self.vocab_size is not None:
            result["bits_per_value"] = float(sum(num_tokens) * np.log2(self.vocab_size) / error.size)
        return result


class AnswerMatch(evaluate.Metric):
    """Answers to questions about pictures, against one true answer or those of several people."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(
                "Right answers, letter for letter and as VQA counts them: both sides are normalised with the rules of "
                "the VQA v2 evaluation (lower case, punctuation, articles, number words, apostrophes), and against the "
                "answers of several people an answer that c of them gave counts min(c / 3, 1). (The challenge's "
                "server averages this over the sets that leave one person out, which on ten answers is at most 0.1 "
                "lower.)"
            ),
            citation=(
                "Antol et al., VQA: Visual Question Answering, ICCV 2015. Goyal et al., Making the V in VQA Matter, "
                "CVPR 2017."
            ),
            inputs_description="""
Args:
    predictions: (n,) strings.
    references: (n,) strings, or (n,) lists of strings: the answers of several people.

Returns:
    exact_match: share of the predictions that are letter for letter the reference, or one of the references.
    short_answer_accuracy: share of those that are the reference after normalisation; with several references the
        mean of min(c / 3, 1).

Raises:
    ValueError: no answers, or a question without a reference.
""",
            reference_urls=["https://visualqa.org/evaluation.html"],
            features=[
                Features({"predictions": Value("string"), "references": List(Value("string"))}),
                Features({"predictions": Value("string"), "references": Value("string")}),
            ],
        )

    def add_batch(self, *, predictions=None, references=None) -> None:
        """Add answers."""
        if predictions is None or not len(predictions):  # the library looks at the first one
            raise ValueError("There are no answers to measure.")
        super().add_batch(predictions=predictions, references=references)

    def _compute(self, predictions, references) -> dict:
        exact, scores = [], []
        for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            answers = [reference] if isinstance(reference, str) else reference
            if not answers:
                raise ValueError(f"Question {i} has no reference answer.")
            needed = 1 if isinstance(reference, str) else 3
            count = [normalize_answer(answer) for answer in answers].count(normalize_answer(prediction))
            exact.append(is_right(prediction, answers))
            scores.append(min(count / needed, 1.0))
        return {"exact_match": float(np.mean(exact)), "short_answer_accuracy": float(np.mean(scores))}


METRICS = {
    "action_error": ActionError,
    "answer_match": AnswerMatch,
    "chunk_reconstruction": ChunkReconstruction,
    "smoothness": Smoothness,
    "token_accuracy": TokenAccuracy,
}


def load_metric(name: str, **options) -> evaluate.Metric:
    """Make a metric by its name; no network is used.

    Args:
        name: one of `METRICS`.
        **options: the metric's own (`fps`, `vocab_size`), and those of every `evaluate` module (`keep_in_memory`, ...).

    Raises:
        ValueError: there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}. Metrics: {', '.join(METRICS)}.")
    return METRICS[name](**options)


# ------------------------------------------------------------------------------------------------------ chunks
def _same_shape(predictions: Sequence, references: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Finite float64 arrays of one shape (n, H, D)."""
    arrays = {}
    for name, chunks in (("predictions", predictions), ("references", references)):
        shapes = sorted({(len(chunk), len(row)) for chunk in chunks for row in chunk or [[]]})
        if len(shapes) != 1 or 0 in shapes[0]:
            raise ValueError(
                f"{name} must be chunks of one shape (H, D) with at least one value, got "
                f"{', '.join(map(str, shapes)) or 'none'}."
            )
        array = np.asarray(chunks, dtype=np.float64)
        if not np.isfinite(array).all():
            index = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
            raise ValueError(f"{name} must be finite, but the value at (chunk, step, dimension) {index} is not.")
        arrays[name] = array
    ours, theirs = arrays.values()
    if ours.shape != theirs.shape:
        raise ValueError(f"Predictions have the shape {ours.shape}, references {theirs.shape}; they must be the same.")
    return ours, theirs


def _chunks(predictions: Sequence, references: Sequence, is_pad: Sequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks (n, H, D), and which steps are real (n, H): at least the first one, and none after padding."""
    predictions, references = _same_shape(predictions, references)
    lengths = {len(row) for row in is_pad}
    if lengths != {predictions.shape[1]}:
        raise ValueError(f"is_pad needs one value for each of the {predictions.shape[1]} steps, got {sorted(lengths)}.")
    real = ~np.asarray(is_pad, dtype=bool)
    if not real.any(1).all():
        raise ValueError(f"Chunk {int(np.argmin(real.any(1)))} is all padding: leave it out.")
    if (real[:, 1:] > real[:, :-1]).any():
        chunk = int(np.argmax((real[:, 1:] > real[:, :-1]).any(1)))
        raise ValueError(f"Chunk {chunk} has padding in front of a real step; padding belongs at a chunk's end.")
    return predictions, references, real


__all__ = [
    "METRICS",
    "TOKEN_KINDS",
    "ActionError",
    "AnswerMatch",
    "ChunkReconstruction",
    "Smoothness",
    "TokenAccuracy",
    "load_metric",
]

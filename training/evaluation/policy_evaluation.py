"""What a policy predicts against what was demonstrated: figures, a table, and one page of plots."""

from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from ...processing.image_input import as_rgb
from ...processing.normalization import EPSILON
from ..data.robot_dataset import RobotDataset
from ..data.vlm.dataset import VLMDataset
from ..data.vlm.saved_rows import saved_splits
from .metrics import ActionError, AnswerMatch, Smoothness
from .plots import plot_evaluation
from .predictions import predict_dataset, spread_out, titles
from .vlm_answers import ask


def predict(pipe, data: RobotDataset, num_frames: int, batch_size: int, **options) -> dict:
    """Predict at evenly spread frames, and leave out what did not decode.

    Returns:
        `predicted`, `demonstrated` and `mean_action` (always the mean action of the policy's training data), (n, H, D)
        in robot units, `is_pad` (n, H), `states` (n, Ds) or None, `titles` (n,), and `decoding_failures`, the number
        that is left out.

    Raises:
        ValueError: no chunk decoded.
    """
    results = predict_dataset(pipe, data, num_frames, batch_size, **options)
    decoded = results["decoded"]
    demonstrated = results["demonstrated"][decoded]
    return {
        "predicted": results["predicted"][decoded],
        "demonstrated": demonstrated,
        "mean_action": results["mean_chunks"][decoded],
        "is_pad": results["is_pad"][decoded],
        "states": None if results["states"] is None else results["states"][decoded],
        "titles": [title for title, is_chunk in zip(titles(results), decoded, strict=True) if is_chunk],
        "decoding_failures": int((~decoded).sum()),
    }


def measure_chunks(chunks: dict, data: RobotDataset) -> dict:
    """Compute the figures of what `predict` returns, as they go into `evaluate.json`.

    Returns:
        `num_chunks`, `decoding_failures`, `action_error` and `mean_action_error` (of always the mean action) as
        `ActionError` has them, `smoothness` as `Smoothness` has it or None where no chunk has four real steps, and
        `dimensions`: `name`, `mae`, `mean_action_mae` and `times_better_than_mean`, the second divided by the first;
        None where the data does not vary.
    """
    metric, given = ActionError(keep_in_memory=True), {"references": chunks["demonstrated"], "is_pad": chunks["is_pad"]}
    error, mean_error = (metric.compute(predictions=chunks[name], **given) for name in ("predicted", "mean_action"))
    smoothness = None
    if not chunks["is_pad"][:, 3:].all():
        smoothness = Smoothness(fps=data.fps, keep_in_memory=True).compute(predictions=chunks["predicted"], **given)
    names = data.action_names or [f"action {i}" for i in range(data.action_dim)]
    pairs = zip(names, error["mae_per_dimension"], mean_error["mae_per_dimension"], strict=True)
    return {
        "num_chunks": len(chunks["predicted"]),
        "chunk_size": data.chunk_size,
        "decoding_failures": chunks["decoding_failures"],
        "action_error": error,
        "mean_action_error": mean_error,
        "smoothness": smoothness,
        "dimensions": [
            {"name": name, "mae": mae, "mean_action_mae": mean, "times_better_than_mean": _times_better(mae, mean)}
            for name, mae, mean in pairs
        ],
    }


def _times_better(error: float, mean_error: float) -> float | None:
    """The error of the mean action divided by this one. Where data does not vary, it is no more than rounding."""
    return mean_error / max(error, EPSILON) if mean_error > EPSILON else None


def measure_answers(model: PreTrainedModel, vlm_processor: ProcessorMixin, folder: str, batch_size: int) -> dict:
    """Ask a VLM, or a policy, the questions of a dataset, and count its greedy answers.

    Args:
        vlm_processor: the VLM's own (of a policy: `processor.vlm_processor`).
        folder: what `VLMDataset.load` takes.

    Returns:
        `num_questions`, and `exact_match` and `short_answer_accuracy` as `AnswerMatch` has them.

    Raises:
        ValueError: there is no such dataset, or it has several splits, or rows that are not a question and its answer.
    """
    if splits := saved_splits(Path(folder)):
        raise ValueError(f"{folder} has the splits {', '.join(splits)}; give the folder of one of them.")
    examples = VLMDataset.load(folder)
    references = [examples[i]["response"] for i in range(len(examples))]
    if conversations := [i for i, reference in enumerate(references) if not isinstance(reference, str)]:
        raise ValueError(f"{folder}: row {conversations[0]} has several questions; every row must have just one.")
    answers = ask(model, vlm_processor, _Questions(examples), batch_size)
    match = AnswerMatch(keep_in_memory=True).compute(predictions=answers, references=references)
    return {"num_questions": len(answers), **match}


class _Questions:
    """The questions of a `VLMDataset` as batches of rows with `images` and `messages`."""

    def __init__(self, examples: VLMDataset):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, rows: slice) -> dict[str, list]:
        batch = [self.examples[i] for i in range(*rows.indices(len(self)))]
        images = [[as_rgb(image) for image in example["images"]] for example in batch]
        return {"images": images, "messages": [[_question(e)] for e in batch]}


def _question(example: dict) -> dict:
    images = [{"type": "image"} for _ in example["images"]]
    return {"role": "user", "content": [*images, {"type": "text", "text": example["text"]}]}


def draw(path: Path, chunks: dict, report: dict, fps: float, count: int) -> None:
    """Draw the page of plots."""
    last = (~chunks["is_pad"]).sum(1) - 1
    rows = np.arange(len(last))
    ends = chunks["demonstrated"][rows, last]
    distances = [np.linalg.norm(chunks[name][rows, last] - ends, axis=1) for name in ("predicted", "mean_action")]
    chosen = spread_out(len(rows), min(count, len(rows)))
    plot_evaluation(
        path,
        (report["action_error"], report["mean_action_error"]),
        distances,
        chunks["predicted"][chosen],
        chunks["demonstrated"][chosen],
        fps,
        [chunks["titles"][i] for i in chosen],
        [row["name"] for row in report["dimensions"]],
    )


def format_report(report: dict) -> str:
    """Write the figures as a table, in robot units."""
    # A row for each dimension, then all together.
    error, mean_error = report["action_error"], report["mean_action_error"]
    total = {"name": "all", "mae": error["mae"], "mean_action_mae": mean_error["mae"]}
    total["times_better_than_mean"] = _times_better(total["mae"], total["mean_action_mae"])
    width = max(len(row["name"]) for row in (*report["dimensions"], {"name": "end-point error"}))
    failures = report["decoding_failures"]
    lines = [
        f"{report['num_chunks']} chunks of {report['chunk_size']} steps"
        + (f"; {failures} more did not decode" if failures else ""),
        "",
        f"{'':{width}}{'mean abs. error':>18}{'of the mean action':>22}{'times better':>16}",
    ]
    for row in (*report["dimensions"], total):
        times = "-" if row["times_better_than_mean"] is None else f"{row['times_better_than_mean']:.2f}"
        lines.append(f"{row['name']:{width}}{row['mae']:18.4f}{row['mean_action_mae']:22.4f}{times:>16}")
    lines.append("")
    for name, key in (("RMSE", "rmse"), ("end-point error", "end_point_error")):
        lines.append(f"{name:{width}}{error[key]:18.4f}{mean_error[key]:22.4f}")
    jerk = report["smoothness"] and report["smoothness"]["jerk_ratio"]
    lines.append(f"{'jerk ratio':{width}}{'-' if jerk is None else f'{jerk:.2f}':>18}")
    if report["tokenizer"] is not None:
        row = report["tokenizer"]
        lines.append(
            f"\nAction tokenizer: {row['tokens_per_chunk']:.1f} tokens per chunk (at most "
            f"{row['max_tokens_per_chunk']}), reconstruction error {row['rmse']:.4f} (RMSE, normalised units)"
        )
    return "\n".join(lines)


def format_answers(answers: dict) -> str:
    """What `measure_answers` returns, in a line."""
    exact, short = 100 * answers["exact_match"], 100 * answers["short_answer_accuracy"]
    return f"{answers['num_questions']} questions: exact match {exact:.1f} %, short-answer accuracy {short:.1f} %"

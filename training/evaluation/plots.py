"""Pictures: predicted against demonstrated chunks, an evaluation, training curves, the attention mask."""

import os
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

matplotlib.use("Agg")

_TITLE = 38  # letters in a line over a chunk: as wide as it is

DEMONSTRATED, PREDICTED, OTHER = "#222222", "#d1495b", "#00798c"


def plot_chunks(
    path: str | os.PathLike,
    predicted: np.ndarray,
    demonstrated: np.ndarray,
    fps: float,
    titles: Sequence[str],
    dimension_names: Sequence[str] | None = None,
) -> None:
    """Draw chunks: one column for each, one row for each action dimension.

    Args:
        path: where the picture goes; the suffix decides its format.
        predicted, demonstrated: (n, H, D), robot units.
        fps: actions per second.
        titles: (n,), what stands over each column.
        dimension_names: (D,).
    """
    count, _, dimensions = predicted.shape
    figure = Figure(figsize=_chunks_size(count, dimensions), layout="constrained")
    names = dimension_names or [f"action {i}" for i in range(dimensions)]
    _draw_chunks(figure, predicted, demonstrated, fps, titles, names)
    figure.savefig(path, dpi=130)


def _chunks_size(count: int, dimensions: int) -> tuple[float, float]:
    """Width and height in inches."""
    return 2.6 * count + 1, 1.6 * dimensions + 0.8


def _draw_chunks(
    figure: FigureBase,
    predicted: np.ndarray,
    demonstrated: np.ndarray,
    fps: float,
    titles: Sequence[str],
    names: Sequence[str],
) -> None:
    count, steps, dimensions = predicted.shape
    seconds = np.arange(steps) / fps
    axes = figure.subplots(dimensions, count, sharex=True, sharey="row", squeeze=False)
    for column in range(count):
        lines = [line for part in titles[column].splitlines() for line in textwrap.wrap(part, _TITLE)]
        axes[0, column].set_title("\n".join(lines), fontsize=9)
        axes[-1, column].set_xlabel("seconds from now", fontsize=8)
        for row in range(dimensions):
            axis = axes[row, column]
            axis.plot(seconds, demonstrated[column, :, row], color=DEMONSTRATED, lw=2, label="demonstrated")
            axis.plot(seconds, predicted[column, :, row], color=PREDICTED, lw=1.5, marker=".", label="predicted")
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.25)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name, fontsize=8)
    axes[0, 0].legend(fontsize=7)


def plot_evaluation(
    path: str | os.PathLike,
    errors: tuple[dict, dict],
    end_point_distances: Sequence[np.ndarray],
    predicted: np.ndarray,
    demonstrated: np.ndarray,
    fps: float,
    titles: Sequence[str],
    dimension_names: Sequence[str],
) -> None:
    """Draw errors by step and dimension and at the chunks' ends, beside those of the mean action; below, some chunks.

    Args:
        path: where the picture goes; the suffix decides its format.
        errors: of the policy and of the mean action, as the metric `action_error` has them.
        end_point_distances: (N,) of the policy and (N,) of the mean action, robot units.
        predicted, demonstrated: (n, H, D), the chunks to draw, robot units.
        fps: actions per second.
        titles: (n,), what stands over each chunk.
        dimension_names: (D,).
    """
    width, height = _chunks_size(*predicted.shape[::2])
    figure = Figure(figsize=(max(width, 11), height + 3.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3.2, height])
    by_step, by_dimension, at_the_end = top.subplots(1, 3)
    places = np.arange(len(dimension_names))
    longest = max(distances.max() for distances in end_point_distances)
    sources = zip(("policy", "mean action"), (PREDICTED, OTHER), (-0.2, 0.2), errors, end_point_distances, strict=True)
    for label, color, offset, error, distances in sources:
        per_step = np.array(error["mae_per_step"], dtype=float)  # None, where no chunk has the step, becomes a gap
        by_step.plot(np.arange(len(per_step)) / fps, per_step, color=color, marker=".", label=label)
        by_dimension.bar(places + offset, error["mae_per_dimension"], 0.4, color=color, label=label)
        at_the_end.hist(distances, 20, range=(0, longest or 1), color=color, alpha=0.6, label=label)
    by_step.set(title="mean absolute error by step", xlabel="seconds from now", ylim=(0, None))
    by_dimension.set(title="mean absolute error by dimension")
    by_dimension.set_xticks(places, dimension_names, rotation=45 if len(places) > 4 else 0)
    at_the_end.set(title="distance at the end of the chunk", ylabel="chunks")
    for axis in (by_step, by_dimension, at_the_end):
        for label, size in ((axis.title, 9), (axis.xaxis.label, 8), (axis.yaxis.label, 8)):
            label.set_fontsize(size)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    _draw_chunks(bottom, predicted, demonstrated, fps, titles, dimension_names)
    figure.savefig(path, dpi=130)


def plot_training_curves(path: str | os.PathLike, log_history: list[dict]) -> None:
    """Draw token loss (beside that of plain text, if any), flow loss and gradient norms over steps.

    Args:
        log_history: `trainer.state.log_history`. What it has nothing of gets no panel.
    """
    colors = {"token_loss": OTHER, "text_loss": PREDICTED, "flow_loss": OTHER}
    colors |= {"backbone_grad_norm": OTHER, "expert_grad_norm": PREDICTED}
    logged = {name for entry in log_history for name in entry}
    groups = [("token_loss", "text_loss"), ("flow_loss",), ("backbone_grad_norm", "expert_grad_norm")]
    panels = [names for group in groups if (names := [name for name in group if name in logged])]
    figure = Figure(figsize=(11, 3), layout="constrained")
    for axis, names in zip(figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
            axis.plot(*zip(*points, strict=True), color=colors[name])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("step", fontsize=8)
        axis.set_yscale("log")
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.set_title(" and ".join(name.replace("_", " ") for name in names), fontsize=9)
    figure.savefig(path, dpi=130)


def plot_attention_mask(path: str | os.PathLike, mask: np.ndarray, groups: Sequence[tuple[str, int]]) -> None:
    """Draw who sees whom: rows are queries, columns are keys.

    Args:
        mask: (T, T); 0 = hidden, 1 = seen, 2 = seen without gradient (knowledge insulation).
        groups: names and lengths of the blocks, in order; their sum is T.
    """
    size = len(mask)
    figure = Figure(figsize=(8, 7.2), layout="constrained")
    axis = figure.subplots()
    axis.imshow(mask, cmap=ListedColormap(["#f2f2f2", OTHER, PREDICTED]), vmin=0, vmax=2, interpolation="nearest")
    edges = np.cumsum([0, *(length for _, length in groups)])
    centres = (edges[:-1] + edges[1:] - 1) / 2
    names = [f"{name} ({length})" for name, length in groups]
    axis.set_xticks(centres, names, rotation=45, ha="right", fontsize=9)
    axis.set_yticks(centres, names, fontsize=9)
    for edge in edges[1:-1]:
        axis.axhline(edge - 0.5, color="white", lw=1)
        axis.axvline(edge - 0.5, color="white", lw=1)
    axis.set_xlim(-0.5, size - 0.5)
    axis.set_ylim(size - 0.5, -0.5)
    axis.set_xlabel("key")
    axis.set_ylabel("query")
    for color, label in ((OTHER, "sees"), (PREDICTED, "sees, gradient stopped")):
        axis.plot([], [], "s", color=color, label=label)
    axis.legend(loc="upper right", fontsize=9)
    figure.savefig(path, dpi=130)

"""A picture of one episode: what the cameras saw, over what the robot did."""

import os
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..data.checks.dimensions import Dimensions
from ..data.checks.findings import RULES, WARNING, some
from ..data.checks.motion import pairs
from ..data.checks.report import DataReport
from ..data.robot_dataset import RobotDataset
from .plots import DEMONSTRATED, OTHER, PREDICTED

_STRIP, _TRACES = 8, 14  # pictures in a row, and dimensions at most
_RARE, _USUAL, _END = "#f4a259", "#e8eef0", PREDICTED
# Inches
_WIDTH, _LEFT, _RIGHT, _TITLE, _ROW, _BOTTOM = 14.0, 1.6, 0.1, 0.95, 0.62, 0.55


def draw_episode(path: str | os.PathLike, data: RobotDataset, report: DataReport, episode: int | None = None) -> None:
    """Draw a strip of pictures of every camera over the traces of state and actions.

    The band behind a trace is where 98 % of all frames lie. Orange is where this episode leaves it, in a dimension that
    hardly ever moves; red dots are frames at the limit of the data, and red lines jumps.

    Args:
        path: where the picture goes; the suffix decides its format.
        report: what `check_data` found of the data.
        episode: the dataset's number of it; the first by default.
    """
    episode = data.episodes[0] if episode is None else episode
    items, frames = data.episode_range(episode), data.episode_frames(episode)
    seconds = frames["timestamp"] - frames["timestamp"][0]
    # The frames at the middles of equal spans: each picture stands over its own place in the traces.
    shown = ((np.arange(_STRIP) + 0.5) / _STRIP * len(items)).astype(int)
    examples = [data[items[int(frame)]] for frame in shown]
    rows, cameras = _rows(report), len(data.cameras)
    footer = textwrap.wrap(_hidden(report, rows), 190)

    strip_width = _WIDTH - _LEFT - _RIGHT
    heights = [strip_width / _STRIP * _aspect(examples[0]["images"][i]) for i in range(cameras)]
    height = _TITLE + sum(heights) + 0.06 * cameras + _ROW * len(rows) + _BOTTOM + 0.16 * len(footer)
    figure = Figure(figsize=(_WIDTH, height))

    def place(left: float, top: float, width: float, tall: float) -> Axes:
        """Axes by inches from the upper left corner."""
        return figure.add_axes((left / _WIDTH, 1 - (top + tall) / height, width / _WIDTH, tall / height))

    figure.text(
        0.1 / _WIDTH, 1 - 0.12 / height, _title(report, episode, frames), fontsize=11, va="top", linespacing=1.5
    )
    legend = {
        "loc": "upper right",
        "bbox_to_anchor": (1, 1 - 0.05 / height),
        "ncols": 5,
        "fontsize": 8,
        "frameon": False,
    }
    figure.legend(handles=_legend(report), **legend)
    top = _TITLE
    for row, camera in enumerate(data.cameras):
        for column, example in enumerate(examples):
            width = strip_width / _STRIP
            axis = place(_LEFT + column * width + 0.02, top, width - 0.04, heights[row])
            axis.imshow(example["images"][row], aspect="auto")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(f"{seconds[shown[column]]:.1f} s", fontsize=8, color="#555555", pad=3)
            if column == 0:
                axis.set_ylabel(camera.rpartition(".")[2], fontsize=8)
        top += heights[row] + 0.06
    for number, traces in enumerate(rows):
        axis = place(_LEFT, top + 0.04, strip_width, _ROW - 0.08)
        for frame in shown:
            axis.axvline(seconds[frame], color="#c8c8c8", lw=0.6, zorder=0)
        for table, dimension, color in traces:
            _trace(axis, seconds, frames[table.name], table, dimension, color, is_main=table is traces[0][0])
        name = traces[0][0].names[traces[0][1]]
        axis.text(
            -0.045,
            0.5,
            textwrap.shorten(name, 20, placeholder="…"),
            fontsize=8,
            ha="right",
            va="center",
            transform=axis.transAxes,
        )
        axis.tick_params(labelsize=6, length=2, colors="#777777", labelbottom=number == len(rows) - 1)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.spines["left"].set_color("#cccccc")
        axis.set_xlim(-0.5 / data.fps, seconds[-1] + 0.5 / data.fps)
        axis.locator_params(axis="y", nbins=3)
        top += _ROW
    axis.set_xlabel("seconds", fontsize=8)
    for number, line in enumerate(footer):
        figure.text(
            0.1 / _WIDTH, 1 - (top + _BOTTOM - 0.05 + 0.16 * number) / height, line, fontsize=7, color="#777777"
        )
    figure.savefig(path, dpi=110)


def _title(report: DataReport, episode: int, frames: dict) -> str:
    count, name = len(frames["timestamp"]), report.name.rstrip("/").split("/")
    seconds = frames["timestamp"][-1] - frames["timestamp"][0]
    said = textwrap.shorten("   ".join(frames["texts"]), 120)
    return f"{'/'.join(name[-2:])}, episode {episode}: {count} frames, {seconds:.1f} s\n“{said}”"


def _rows(report: DataReport) -> list[list[tuple[Dimensions, int, str]]]:
    """What is drawn together: a state with the action that moves it.

    At most `_TRACES`: those that findings name, then those that move in most frames.
    """
    actions, state = report.actions, report.state
    assert actions is not None
    if state is None:
        rows = [[(actions, i, PREDICTED)] for i in range(len(actions.names))]
    else:
        partner = {int(s): int(a) for a, s in pairs(actions.names, state.names)}
        rows = [
            [(state, i, DEMONSTRATED)] + ([(actions, partner[i], OTHER)] if i in partner else [])
            for i in range(len(state.names))
        ]
        rows += [[(actions, i, OTHER)] for i in range(len(actions.names)) if i not in partner.values()]
    rows = [row for row in rows if not all(table.is_constant[i] for table, i, _ in row)]
    named = {
        (finding.vector, name)
        for finding in report.findings
        for name in finding.dimensions
        if RULES[finding.code].level == WARNING or finding.code in ("rare", "at_limit")
    }

    def order_of(j: int) -> tuple[bool, float]:
        is_named = any((table.name, table.names[i]) in named for table, i, _ in rows[j])
        return not is_named, min(table.at_rest[i] for table, i, _ in rows[j])

    order = sorted(range(len(rows)), key=order_of)
    return [rows[j] for j in sorted(order[:_TRACES])]


def _trace(
    axis: Axes, seconds: np.ndarray, values: np.ndarray, table: Dimensions, i: int, color: str, is_main: bool
) -> None:
    if table.is_constant[i] and not is_main:
        return
    line = values[:, i]
    # Where the action has other units than the state (a step, a command), it gets an axis of its own, without numbers.
    if not is_main:
        axis = axis.twinx()
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    axis.plot(seconds, line, color=color, lw=1.4 if is_main else 1.1, alpha=1 if is_main else 0.8)
    low, high, width = table.min[i], table.max[i], table.range[i]
    axis.set_ylim(low - 0.08 * (width or 1), high + 0.08 * (width or 1))
    if table.is_constant[i]:
        return
    if is_main:
        axis.axhspan(table.q01[i], table.q99[i], color=_USUAL, zorder=-1)
    if table.is_rare[i]:
        outside = (line < table.q01[i]) | (line > table.q99[i])
        axis.fill_between(
            seconds, 0, 1, where=outside, transform=axis.get_xaxis_transform(), color=_RARE, alpha=0.5, lw=0
        )
    elif not table.is_switch[i]:
        at_end = ((line == low) & (table.at_min[i] > RULES["at_limit"].limit)) | (
            (line == high) & (table.at_max[i] > RULES["at_limit"].limit)
        )
        axis.plot(seconds[at_end], line[at_end], ".", color=_END, ms=3)


def _legend(report: DataReport) -> list:
    lines = [Line2D([], [], color=DEMONSTRATED, label="state")] if report.state else []
    lines.append(Line2D([], [], color=OTHER if report.state else PREDICTED, label="action"))
    return [
        *lines,
        Patch(color=_USUAL, label="where 98 % of all frames lie"),
        Patch(color=_RARE, alpha=0.5, label="rare"),
        Line2D([], [], color=_END, marker=".", lw=0, label="at its limit"),
    ]


def _hidden(report: DataReport, rows: list) -> str:
    drawn = {(table.name, i) for row in rows for table, i, _ in row}
    parts: list[str] = []
    for table in (report.actions, report.state):
        if table is not None:
            constant = table.where(table.is_constant)
            moves = np.flatnonzero(~table.is_constant)
            others = [table.names[i] for i in moves if (table.name, i) not in drawn]
            parts += [f"{table.name}: never change {some(constant, 4)}"] if constant else []
            parts += [f"{table.name}: not drawn {some(others, 4)}"] if others else []
    return "; ".join(parts)


def _aspect(image: np.ndarray) -> float:
    return image.shape[0] / image.shape[1]

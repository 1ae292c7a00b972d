"""A picture of one episode: what the cameras saw, over what the robot did."""

import os
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..data.checks.dimensions import Dimensions
from ..data.checks.findings import WARNING, limit, some
from ..data.checks.motion import pairs
from ..data.checks.report import DataReport
from ..data.robot_dataset import RobotDataset
from .plots import DEMONSTRATED, OTHER, PREDICTED

_STRIP, _TRACES = 8, 14  # pictures in a row, and dimensions at most
_USUAL, _RARE, _FAULT = "#e8eef0", "#f4a259", PREDICTED
_PALE, _LIGHT, _DARK = "#c8c8c8", "#777777", "#555555"
# Inches
_WIDTH, _LEFT, _RIGHT, _TITLE, _ROW, _BOTTOM, _LINE, _GAP = 14.0, 1.6, 0.1, 0.95, 0.62, 0.55, 0.16, 0.06
_STRIP_WIDTH = _WIDTH - _LEFT - _RIGHT

# A state with the action that moves it: the table of each, its dimension, and a colour.
Row = list[tuple[Dimensions, int, str]]


def draw_episode(path: str | os.PathLike, data: RobotDataset, report: DataReport, episode: int | None = None) -> None:
    """Draw a strip of pictures of every camera over the traces of state and actions.

    The band behind a trace is where 98 % of all frames lie. Orange is where this episode leaves it, in a dimension that
    hardly ever moves. Red dots are frames at the limit of the data, and red lines jumps.

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
    examples = [data[items[int(frame)]]["images"] for frame in shown]
    rows = _rows(report)
    heights = [_STRIP_WIDTH / _STRIP * image.shape[0] / image.shape[1] for image in examples[0]]
    footer = textwrap.wrap(_not_drawn(report, rows), 190)

    page = _Page(_TITLE + sum(heights) + _GAP * len(heights) + _ROW * len(rows) + _BOTTOM + _LINE * len(footer))
    page.text(0.12, _title(report, episode, seconds, data.episode_texts(episode)), size=11, color="black")
    page.figure.legend(
        handles=_legend(report),
        loc="upper right",
        bbox_to_anchor=(1, 1 - 0.05 / page.height),
        ncols=6,
        fontsize=8,
        frameon=False,
    )
    top = _TITLE
    for camera, height in enumerate(heights):
        axes = _draw_strip(page, top, height, [images[camera] for images in examples])
        axes[0].set_ylabel(data.cameras[camera].rpartition(".")[2], fontsize=8, parse_math=False)
        if camera == 0:
            for axis, frame in zip(axes, shown, strict=True):
                axis.set_title(f"{seconds[frame]:.1f} s", fontsize=8, color=_DARK, pad=3)
        top += height + _GAP
    jumps = {(f.vector, f.dimensions[0]): f.places for f in report.findings if f.code == "jump"}
    in_same_units = report.lag is not None and report.lag.frames is not None and report.lag.meaning == "positions"
    for number, row in enumerate(rows):
        axis = page.axes(_LEFT, top + 0.04, _STRIP_WIDTH, _ROW - 0.08)
        for frame in shown:
            axis.axvline(seconds[frame], color=_PALE, lw=0.6, zorder=0)
        table, dimension, _ = row[0]
        for of_episode, frame in jumps.get((table.name, table.names[dimension]), ()):
            if of_episode == episode:
                axis.axvline(seconds[frame], color=_FAULT, lw=1.5)
        _draw_row(axis, seconds, frames, row, in_same_units)
        axis.set_xlim(-0.5 / data.fps, seconds[-1] + 0.5 / data.fps)
        axis.tick_params(labelsize=6, length=2, colors=_LIGHT, labelbottom=number == len(rows) - 1)
        if number == len(rows) - 1:
            axis.set_xlabel("seconds", fontsize=8)
        top += _ROW
    for number, line in enumerate(footer):
        page.text(top + _BOTTOM - 0.1 + _LINE * number, line, size=7, color=_LIGHT)
    page.figure.savefig(path, dpi=110)


class _Page:
    """A figure whose places are inches from its upper left corner."""

    def __init__(self, height: float):
        self.height = height
        self.figure = Figure(figsize=(_WIDTH, height))

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        place = (left / _WIDTH, 1 - (top + height) / self.height, width / _WIDTH, height / self.height)
        return self.figure.add_axes(place)

    def text(self, top: float, text: str, size: float, color: str) -> None:
        style = {"fontsize": size, "color": color, "va": "top", "linespacing": 1.5, "parse_math": False}
        self.figure.text(0.1 / _WIDTH, 1 - top / self.height, text, **style)


def _draw_strip(page: _Page, top: float, height: float, images: list[np.ndarray]) -> list[Axes]:
    width = _STRIP_WIDTH / _STRIP
    axes = [page.axes(_LEFT + i * width + 0.02, top, width - 0.04, height) for i in range(len(images))]
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(image, aspect="auto")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return axes


def _draw_row(axis: Axes, seconds: np.ndarray, frames: dict, row: Row, in_same_units: bool) -> None:
    (table, dimension, _), drawn = row[0], [axis]
    if len(row) > 1 and not in_same_units:  # an action that is a step or a command: on an axis without numbers
        drawn.append(axis.twinx())
        drawn[1].set_yticks([])
        drawn[1].spines[:].set_visible(False)
    axis.axhspan(table.q01[dimension], table.q99[dimension], color=_USUAL, zorder=-1)
    for (one, i, color), width in zip(row, (1.4, 1.1), strict=False):
        where = drawn[-1] if (one, i) != (table, dimension) else axis
        _draw_trace(where, seconds, frames[one.name][:, i], one, i, color, width)
    for where, parts in zip(drawn, [row] if len(drawn) == 1 else [row[:1], row[1:]], strict=True):
        low, high = min(one.min[i] for one, i, _ in parts), max(one.max[i] for one, i, _ in parts)
        margin = 0.08 * (high - low or 1)
        where.set_ylim(low - margin, high + margin)
    name = textwrap.shorten(table.names[dimension], 20, placeholder="…")
    axis.text(-0.045, 0.5, name, fontsize=8, ha="right", va="center", transform=axis.transAxes, parse_math=False)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(_PALE)
    axis.locator_params(axis="y", nbins=3)


def _draw_trace(
    axis: Axes, seconds: np.ndarray, line: np.ndarray, table: Dimensions, i: int, color: str, width: float
) -> None:
    axis.plot(seconds, line, color=color, lw=width)
    if table.is_rare[i]:
        outside = (line < table.q01[i]) | (line > table.q99[i])
        whole = axis.get_xaxis_transform()
        axis.fill_between(seconds, 0, 1, where=outside, transform=whole, color=_RARE, alpha=0.5, lw=0)
    elif not table.is_switch[i]:
        at_min, at_max = (share[i] >= limit("at_limit") for share in (table.at_min, table.at_max))
        at_end = (at_min & (line == table.min[i])) | (at_max & (line == table.max[i]))
        axis.plot(seconds[at_end], line[at_end], ".", color=_FAULT, ms=3)


def _rows(report: DataReport) -> list[Row]:
    """What is drawn: at most `_TRACES` dimensions, those that findings name, then those that move in most frames."""
    actions, state = report.actions, report.state
    assert actions is not None
    if state is None:
        rows = [[(actions, i, OTHER)] for i in range(len(actions.names))]
    else:
        partner = {int(s): int(a) for a, s in pairs(actions.names, state.names) if not actions.is_constant[a]}
        rows = [
            [(state, i, DEMONSTRATED)] + ([(actions, partner[i], OTHER)] if i in partner else [])
            for i in range(len(state.names))
        ]
        rows += [[(actions, i, OTHER)] for i in range(len(actions.names)) if i not in partner.values()]
    rows = [row for row in rows if not row[0][0].is_constant[row[0][1]] or len(row) > 1]
    named = {
        (finding.vector, name)
        for finding in report.findings
        for name in finding.dimensions
        if finding.level == WARNING or finding.code in ("rare", "at_limit")
    }

    def order_of(j: int) -> tuple[bool, float]:
        is_named = any((table.name, table.names[i]) in named for table, i, _ in rows[j])
        return not is_named, min(table.at_rest[i] for table, i, _ in rows[j])

    return [rows[j] for j in sorted(sorted(range(len(rows)), key=order_of)[:_TRACES])]


def _title(report: DataReport, episode: int, seconds: np.ndarray, texts: list[str]) -> str:
    name = "/".join(report.name.rstrip("/").split("/")[-2:])
    said = textwrap.shorten("   ".join(texts), 100, placeholder=" …")
    return f"{name}, episode {episode}: {len(seconds)} frames, {seconds[-1]:.1f} s\n“{said}”"


def _legend(report: DataReport) -> list:
    return [
        *([Line2D([], [], color=DEMONSTRATED, label="state")] if report.state else []),
        Line2D([], [], color=OTHER, label="action"),
        Patch(color=_USUAL, label="where 98 % of all frames lie"),
        Patch(color=_RARE, alpha=0.5, label="rare"),
        Line2D([], [], color=_FAULT, marker=".", lw=0, label="at its limit"),
        Line2D([], [], color=_FAULT, lw=1.5, label="jump"),
    ]


def _not_drawn(report: DataReport, rows: list[Row]) -> str:
    drawn = {(table.name, i) for row in rows for table, i, _ in row}
    parts: list[str] = []
    for table in (report.actions, report.state):
        if table is not None:
            constant = table.where(table.is_constant)
            moves = np.flatnonzero(~table.is_constant)
            others = [table.names[i] for i in moves if (table.name, i) not in drawn]
            parts += [f"{table.name} that never change: {some(constant, 4)}"] if constant else []
            parts += [f"{table.name} not drawn: {some(others, 4)}"] if others else []
    return "; ".join(parts)


__all__ = ["draw_episode"]

"""The figures of a study: knowledge kept against success, and what happened on the way."""

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .summary import Group

matplotlib.use("Agg")

# A colour for each recipe and a marker for each condition, in the order in which they come.
COLORS = ("#00798c", "#d1495b", "#edae49", "#222222", "#66a182", "#8d6a9f", "#2e4057", "#b56576")
MARKERS, DASHES = ("o", "s", "^", "D", "v", "P"), ("-", "--", ":", "-.", (0, (1, 2)), (0, (6, 2)))
TITLES = {"told": "told in words of the demonstrations", "synonym": "told in words never demonstrated"}
FAR = 1.0  # nats a token beyond which the axis of knowledge is logarithmic


def plot_kept_against_success(path: str | os.PathLike, groups: Sequence[Group], before: dict) -> None:
    """Draw for each recipe and condition what its VLM still knows (x) and how well it acts (y).

    A small point for every step at which the policy acted, a large one with 95 % intervals at the end, and a thin cross
    for every seed. The best corner is the upper right one.
    """
    panels: list[tuple[str, str] | None] = list(groups[0].loops) or [None]
    figure = Figure(figsize=(5.6 * len(panels) + 2.2, 5.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    styles = _Styles(groups)
    for axis, loop in zip(all_axes, panels, strict=True):
        for group in groups:
            _draw_path(axis, group, before, loop, styles)
        axis.set_title(_title(loop, panels), fontsize=11)
        _style(axis)
    _kept_axis(all_axes[0], groups, before)
    if panels[0] is None:
        all_axes[0].set_ylabel("error of actions, as a share of the mean action's (up: better)")
        all_axes[0].invert_yaxis()
    else:
        all_axes[0].set_ylabel("success")
        all_axes[0].set_ylim(-0.03, 1.03)
        all_axes[0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    figure.legend(handles=styles.handles(), loc="outside right upper", fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)


def plot_over_steps(path: str | os.PathLike, groups: Sequence[Group], before: dict) -> None:
    """Draw over the steps what the texts cost, the gradients of both losses on the language model, and their cosine.

    A column for each condition; thin lines are the seeds, thick ones their mean.
    """
    conditions = list(dict.fromkeys(group.condition for group in groups))
    rows = [("token_gradient", "gradient norm,\ntoken loss"), ("flow_gradient", "gradient norm,\nflow loss")]
    rows += [("cosine", "cosine of the two"), ("token_loss", "token loss"), ("flow_loss", "flow loss")]
    rows = ([("lost", "nats lost a token")] if before["texts"] is not None else []) + rows
    figure = Figure(figsize=(3.6 * len(conditions) + 1.6, 1.7 * len(rows) + 0.6), layout="constrained")
    all_axes = figure.subplots(len(rows), len(conditions), sharex=True, sharey="row", squeeze=False)
    styles = _Styles(groups)
    for (name, label), of_row in zip(rows, all_axes, strict=True):
        for condition, axis in zip(conditions, of_row, strict=True):
            for group in groups:
                if group.condition == condition:
                    _draw_over_steps(axis, group, before, name, styles.color(group))
            _style(axis)
            if name in ("token_gradient", "flow_gradient", "token_loss"):
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.yaxis.set_minor_formatter(lambda value, _: "")
            if name in ("lost", "cosine"):
                axis.axhline(0, color="#999999", lw=0.8, zorder=0)
        of_row[0].set_ylabel(label, fontsize=9)
    for condition, axis in zip(conditions, all_axes[0], strict=True):
        axis.set_title(condition, fontsize=10)
    for axis in all_axes[-1]:
        axis.set_xlabel("step", fontsize=9)
    figure.legend(handles=styles.handles(conditions=False), loc="outside right upper", fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)


class _Styles:
    """How a group looks: its recipe by colour, its condition by marker and dashes."""

    def __init__(self, groups: Sequence[Group]):
        self.recipes = list(dict.fromkeys(group.recipe for group in groups))
        self.conditions = list(dict.fromkeys(group.condition for group in groups))

    def color(self, group: Group) -> str:
        return COLORS[self.recipes.index(group.recipe) % len(COLORS)]

    def marker(self, group: Group) -> str:
        return MARKERS[self.conditions.index(group.condition) % len(MARKERS)]

    def dashes(self, group: Group):
        return DASHES[self.conditions.index(group.condition) % len(DASHES)]

    def handles(self, conditions: bool = True) -> list[Line2D]:
        lines = [Line2D([], [], color=COLORS[i % len(COLORS)], lw=3, label=r) for i, r in enumerate(self.recipes)]
        if conditions:
            for i, condition in enumerate(self.conditions):
                look = {"marker": MARKERS[i % len(MARKERS)], "ls": DASHES[i % len(DASHES)]}
                lines.append(Line2D([], [], color="#777777", label=condition, **look))
            small = {"color": "#777777", "ls": "none"}
            lines.append(Line2D([], [], marker=".", ms=6, label="on the way", **small))
            lines.append(Line2D([], [], marker="o", ms=9, label="at the end, 95 %", **small))
            lines.append(Line2D([], [], marker="x", ms=5, label="one seed", **small))
        return lines


def _title(loop: tuple[str, str] | None, panels: list) -> str:
    if loop is None:
        return "held-out demonstrations"
    name, told = loop
    return TITLES[told] if name == panels[0][0] else f"{name.replace('_', ' ')}, {TITLES[told]}"


def _draw_path(axis: Axes, group: Group, before: dict, loop: tuple[str, str] | None, styles: _Styles) -> None:
    color, marker = styles.color(group), styles.marker(group)
    steps = group.acts_at() if before["texts"] is not None else [group.last_step]
    points = [(_kept(group, before, step), _acts(group, loop, step)) for step in steps]
    xs, ys = zip(*((x[0], y[0]) for x, y in points), strict=True)
    axis.plot(xs, ys, color=color, ls=styles.dashes(group), lw=1.2, alpha=0.8)
    axis.plot(xs[:-1], ys[:-1], color=color, marker=marker, ms=4, ls="none", alpha=0.8)
    (x, *of_x), (y, *of_y) = points[-1]
    errors = {"xerr": [[x - of_x[0]], [of_x[1] - x]], "yerr": [[y - of_y[0]], [of_y[1] - y]]}
    axis.errorbar(x, y, color=color, marker=marker, ms=9, mec="white", mew=0.8, elinewidth=1.1, capsize=2, **errors)
    if len(group.seeds) > 1:
        for seed in group.seeds:
            alone = group.of_seed(seed)
            x, y = _kept(alone, before, group.last_step)[0], _acts(alone, loop, group.last_step)[0]
            axis.plot(x, y, color=color, marker="x", ms=5, mew=0.9, alpha=0.7)


def _kept(group: Group, before: dict, step: int) -> tuple[float, float, float]:
    """What was lost, with its interval: nats a token, or the share of answers."""
    if before["texts"] is not None:
        lost = group.lost(before, step)
        return lost.mean, lost.low, lost.high
    known, answers = before["answers"]["accuracy"], group.answers()
    return known - answers["accuracy"], known - answers["high"], known - answers["low"]


def _acts(group: Group, loop: tuple[str, str] | None, step: int) -> tuple[float, float, float]:
    if loop is None:
        error = group.action_error(step)
        return error.mean, error.low, error.high
    rate = group.rate(loop, step)
    return rate["rate"], rate["low"], rate["high"]


def _kept_axis(axis: Axes, groups: Sequence[Group], before: dict) -> None:
    """Knowledge kept grows to the right: what was lost, from right to left."""
    has_texts = before["texts"] is not None
    for other in axis.figure.axes:
        other.axvline(0, color="#999999", lw=0.8, zorder=0)
        unit = "nats a token more on held-out texts" if has_texts else "share of right answers fewer"
        other.set_xlabel(f"knowledge lost, {unit}\n(right: kept; 0: the VLM before)", fontsize=9)
    found = [_kept(group, before, step) for group in groups for step in (group.acts_at() if has_texts else [0])]
    least, most = min(low for _, low, _ in found), max(high for _, _, high in found)
    if has_texts and most > FAR:
        axis.set_xscale("symlog", linthresh=FAR / 4, linscale=0.8)
        ticks = [tick for tick in (0, 0.1, 0.2, 0.5, 1, 2, 5, 10) if tick <= 1.2 * most]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlim(1.2 * most, min(least, 0) - FAR / 40)
    else:
        margin = 0.06 * (max(most, 0) - min(least, 0) + 1e-3)
        axis.set_xlim(max(most, 0) + margin, min(least, 0) - margin)


def _draw_over_steps(axis: Axes, group: Group, before: dict, name: str, color: str) -> None:
    steps = [point["step"] for point in group.rows[0]["points"]]
    if name == "lost":
        of_seeds = [[group.of_seed(seed).lost(before, step).mean for step in steps] for seed in group.seeds]
    else:
        of_seeds = [[point[name] for point in row["points"]] for row in group.rows]
    values = np.array(of_seeds, dtype=float)  # None, where there is no such loss, becomes a gap
    for one in values:
        axis.plot(steps, one, color=color, lw=0.6, alpha=0.5)
    axis.plot(steps, values.mean(0), color=color, lw=1.8)


def _style(axis: Axes) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)

"""A `DataReport` as one page of text."""

import textwrap
from collections.abc import Iterator

import numpy as np

from .dimensions import Dimensions
from .findings import LEVELS, counted, some
from .report import DataReport

_WIDTH = 118
_BAR = 16
# So many dimensions are shown, else those that are not ordinary and the first of the others.
_SHOWN = 16


def format_report(report: DataReport) -> str:
    """What the dataset is, a line for each dimension that moves, and the findings, worst first."""
    lines = [report.name, *_fact_lines(report)]
    for table in (report.actions, report.state):
        if table is not None:
            lines += ["", *_dimension_lines(table)]
    lines += ["", *format_findings(report)]
    return "\n".join(lines)


def format_findings(report: DataReport) -> Iterator[str]:
    """The findings, one paragraph each, and how many there are."""
    for finding in report.findings:
        start = f"{finding.level:9}{finding.code:20}"
        yield from textwrap.wrap(
            finding.text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
        )
    counts = [(report.count(level), level) for level in reversed(LEVELS)]
    yield ", ".join(counted(count, level) for count, level in counts)


def _fact_lines(report: DataReport) -> Iterator[str]:
    for title, text in report.facts.items():
        yield from textwrap.wrap(
            text, _WIDTH, initial_indent=f"  {title:14}", subsequent_indent=" " * 16, break_on_hyphens=False
        )


def _dimension_lines(table: Dimensions) -> Iterator[str]:
    wide = max(len(table.name), *(len(name) for name in table.names))
    yield f"{table.name:{wide}}  {'min':>10} {'1 %':>10} {'99 %':>10} {'max':>10}  {'at rest':>7}  where 98 % lie"
    moves = np.flatnonzero(~table.is_constant)
    special = moves[table.is_rare[moves] | table.is_switch[moves]]
    shown = moves if len(moves) <= _SHOWN else sorted({*special, *moves[: max(_SHOWN - len(special), 0)]})
    for i in shown:
        low, high = np.clip(np.array([table.q01[i], table.q99[i]]) - table.min[i], 0, None) / table.range[i]
        begin = min(int(low * _BAR), _BAR - 1)
        end = max(int(np.ceil(high * _BAR)), begin + 1)
        bar = "·" * begin + "█" * (end - begin) + "·" * (_BAR - end)
        numbers = " ".join(f"{value[i]:10.4g}" for value in (table.min, table.q01, table.q99, table.max))
        kind = "switch" if table.is_switch[i] else "rare" if table.is_rare[i] else ""
        yield f"{table.names[i]:{wide}}  {numbers}  {100 * table.at_rest[i]:5.0f} %  {bar}  {kind}".rstrip()
    if hidden := [table.names[i] for i in moves if i not in shown]:
        yield f"as ordinary: {some(hidden)}"
    if constant := table.where(table.is_constant):
        yield f"never change: {some(constant)}"


__all__ = ["format_findings", "format_report"]

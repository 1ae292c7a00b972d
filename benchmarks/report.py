"""What a measurement returns, and how it is shown: Markdown for people, JSON for programs."""

import statistics
from dataclasses import dataclass, field

import torch

from kivla.hub_cards.environment_info import environment_info


@dataclass
class Comparison:
    """KIVLA against one alternative, in the same repetitions.

    Attributes:
        what, against: the two things that are compared.
        values, against_values: one number for each repetition, in `unit`.
        unit: "s" or "bytes".
    """

    what: str
    values: list[float]
    against: str
    against_values: list[float]
    unit: str = "s"

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.values, self.against_values, strict=True)]

    def as_dict(self) -> dict:
        return {**vars(self), "ratio": statistics.median(self.ratios)}


@dataclass
class Measurement:
    """One question with its answers.

    Attributes:
        title: the question.
        setting: sizes and circumstances, in words.
        checks: what was found equal before anything was timed; a difference raises `AssertionError`.
    """

    title: str
    setting: str
    comparisons: list[Comparison] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)

    @torch.no_grad()
    def check_equal(self, what: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 0.0):
        """Note that two results agree, up to `tolerance` times the largest expected value.

        Raises:
            AssertionError: they do not, or there is nothing to see; what would be timed is not the same computation.
        """
        if actual.shape != expected.shape or not expected.any():
            raise AssertionError(f"{what}: cannot be compared, {actual.shape} and {expected.shape}, or all zero.")
        error = float((actual - expected).abs().max() / expected.abs().max())
        if not error <= tolerance:
            raise AssertionError(f"{what} differ by {error:.1g} of the largest value; allowed is {tolerance:.1g}.")
        self.checks.append(
            f"{what} are the same" + (f" to {error:.0e} of the largest value" if error else ", bit for bit")
        )

    def check(self, what: str, holds: bool):
        """Note that a statement holds, or raise `AssertionError`."""
        if not holds:
            raise AssertionError(f"It should hold, and does not: {what}")
        self.checks.append(what)

    def as_markdown(self) -> str:
        lines = [f"### {self.title}", "", self.setting, ""]
        lines += ["| KIVLA | | compared with | | ratio |", "|---|--:|---|--:|--:|"]
        for row in self.comparisons:
            low, middle, high = _quartiles(row.ratios)
            spread = f" ({low:.2f}–{high:.2f})" if len(row.ratios) > 1 else ""
            lines.append(
                f"| {row.what} | {_shown(row.values, row.unit)} | {row.against} | "
                f"{_shown(row.against_values, row.unit)} | **{middle:.2f}**{spread} |"
            )
        return "\n".join([*lines, "", "Checked first:", "", *(f"* {check}" for check in self.checks)])


def as_markdown(measurements: list[Measurement]) -> str:
    about = environment_info()
    head = (
        f"{about['cpu']}, {about['cores']} cores, threads used: {about['threads']}; Python {about['python']}, "
        f"torch {about['torch']}, transformers {about['transformers']}."
    )
    return "\n\n".join([head, *(m.as_markdown() for m in measurements)])


def as_json(measurements: list[Measurement]) -> dict:
    return {
        "machine": environment_info(),
        "measurements": [{**vars(m), "comparisons": [row.as_dict() for row in m.comparisons]} for m in measurements],
    }


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    return tuple(torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist())


def _shown(values: list[float], unit: str) -> str:
    middle = statistics.median(values)
    return f"{middle * 1e3:.3g} ms" if unit == "s" and middle < 1 else _in_large_units(middle, unit)


def _in_large_units(value: float, unit: str) -> str:
    return f"{value:.2f} s" if unit == "s" else f"{value / 1e6:,.0f} MB"

"""The report of `kivla demo`: one HTML page that holds everything, and shows nothing but what is in `report.json`."""

import base64
import mimetypes
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..simulation.report_media import FAILURE, SUCCESS
from ..training.evaluation import plots

SHARES = ("rate", "low", "high", "accuracy", "chance")  # shown as percent


def write_report(folder: Path, report: dict) -> Path:
    """Write `report.html`, and `training_curves.svg` if there is a `log_history`.

    The page needs nothing beside it: pictures and videos are part of it, and so is the report as JSON
    (`<script type="application/json" id="report">`). Every figure carries the key of the value that it shows, such as
    `data-key="rollouts.0.success.rate"`, and is written as `format_figure` says.

    Args:
        folder: where the page goes, and what the report's paths are relative to.
        report: `title`; `summary`, a list of sentences; `machine`, `minutes` and `settings` by name; `questions`, with
            tables of `answer_accuracy` as `before` and `after`; `log_history` of the trainer; `rollouts`, each what
            `evaluate` returns with `name`, `title` and `media` (as from `write_media`); `chunks`, a picture. `swapped`,
            `media`, `contact_sheet` and `chunks` may be None, lists may be empty: that part is then left out.

    Raises:
        FileNotFoundError: a picture or video of the report is not in `folder`.
    """
    curves = None
    if report["log_history"]:
        curves = "training_curves.svg"
        plots.plot_training_curves(folder / curves, report["log_history"])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    html = environment.get_template("report.html.jinja").render(
        report=report,
        curves=curves,
        show=partial(_show, report),
        show_difference=partial(_show_difference, report),
        data_uri=partial(_data_uri, folder),
        colors={"dark": plots.DEMONSTRATED, "red": plots.PREDICTED, "teal": plots.OTHER},
        outcome_colors={"success": SUCCESS, "failure": FAILURE},
    )
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def format_figure(key: str, value) -> str:
    """How the page writes the value of a key.

    Rates, accuracies and the bounds of their intervals are percent with one decimal; minutes (`minutes` itself is
    their sum) and mean steps have one decimal. Lists are separated by commas, None is a dash, and everything else
    stands as it is.
    """
    if key == "minutes":
        return f"{sum(value.values()):.1f} min"
    if value is None:
        return "–"
    if key.rpartition(".")[2] in SHARES:
        return f"{100 * value:.1f} %"
    if key.startswith("minutes."):
        return f"{value:.1f} min"
    if key.endswith(".mean_steps"):
        return f"{value:.1f}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def look_up(report: dict, key: str):
    """The value of a key such as "rollouts.0.success.rate"."""
    value = report
    for name in key.split("."):
        value = value[int(name) if isinstance(value, list) else name]
    return value


def _show(report: dict, key: str) -> Markup:
    return Markup('<span data-key="{}">{}</span>').format(key, format_figure(key, look_up(report, key)))


def _show_difference(report: dict, key: str, minus: str) -> Markup:
    """Of two shares, in percentage points."""
    points = 100 * (look_up(report, key) - look_up(report, minus))
    return Markup('<span data-key="{}" data-minus="{}">{:+z.1f}</span>').format(key, minus, points)


def _data_uri(folder: Path, file: str) -> str:
    kind, _ = mimetypes.guess_type(file)
    return f"data:{kind};base64,{base64.b64encode((folder / file).read_bytes()).decode()}"

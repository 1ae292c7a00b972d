"""The page of `kivla demo` shows what is in its report, and needs nothing but itself."""

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from kivla.demo.report import format_figure, look_up, write_report
from kivla.simulation import make_questions
from kivla.simulation.rollout import Episode
from kivla.simulation.rollout_evaluation import success_rate, write_media
from kivla.simulation.tabletop.answers import answer_accuracy
from kivla.training.evaluation.plots import plot_chunks
from tests.helpers.patience import PATIENCE

HOSTILE = '<script src="https://example.org/x.js">alert("&amp;")</script><!-- touch it'
CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """What a reader finds: figures by key, headings, tags with their attributes, the embedded report."""

    def __init__(self, html: str):
        super().__init__()
        self.figures, self.differences, self.tags, self.text, self.json = {}, {}, [], "", ""
        self._inside = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self._inside = dict(attributes)
        self.tags.append((tag, self._inside))

    def handle_endtag(self, tag):
        self._inside = {}

    def handle_data(self, data):
        if "data-minus" in self._inside:
            self.differences[self._inside["data-key"], self._inside["data-minus"]] = data
        elif "data-key" in self._inside:
            self.figures.setdefault(self._inside["data-key"], set()).add(data)
        if self._inside.get("id") == "report":
            self.json += data
        else:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def episode(seed: int, success: bool, instruction: str = "touch the red star") -> Episode:
    frames = np.random.default_rng(seed).integers(0, 255, (4, 24, 24, 3), dtype=np.uint8)
    return Episode(seed, instruction, success, None, 3, frames)


def media(folder, name: str, episodes: list[Episode], video_format: str) -> dict:
    (folder / name).mkdir()
    written = write_media(folder / name, episodes, 10, video_format)
    videos = [{**video, "file": f"{name}/{video['file']}"} for video in written["videos"]]
    return {"contact_sheet": f"{name}/{written['contact_sheet']}", "videos": videos}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def full(folder):
    """Two sets of roll-outs with everything that a report may have: two videos, and one GIF with a hostile title."""
    questions = make_questions(12, seed=0)
    truth = [messages[1]["content"][0]["text"] for messages in questions["messages"]]
    touch = {
        "name": "touch",
        "title": "Touch tasks",
        "success": success_rate([True] * 7 + [False]),
        "swapped": {"original": success_rate([False] * 8), "swapped": success_rate([True] * 5 + [False] * 3)},
        "mean_steps": 12.3456,
        "media": media(folder, "touch", [episode(1, False), episode(2, True)], "mp4"),
    }
    move = {
        **touch,
        "name": "move",
        "title": f"Move tasks {HOSTILE}",
        "success": success_rate([True, False, False]),
        "mean_steps": 31.0,
        "media": media(folder, "move", [episode(3, True, HOSTILE)], "gif"),
    }
    actions = np.zeros((1, 4, 2))
    plot_chunks(folder / "chunks.png", actions, actions, 10, ["a chunk"])
    log = {"loss": 1.5, "token_loss": 1.0, "flow_loss": 0.5, "backbone_grad_norm": 2.0, "expert_grad_norm": 3.0}
    return {
        "title": f"A report {HOSTILE}",
        "summary": ["It touches 87.5 %.", f"It was told: {HOSTILE}"],
        "machine": {"cpu": "A <fast> one", "threads": 2, "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        "minutes": {"questions before": 0.26, "fine-tuning": 7.04, "roll-outs": 1.0},
        "settings": {"kinds": ["touch", "move"], "learning_rate": 1e-3, "batch_size": 32, "num_steps": None}
        | {"recipe": "insulated"},
        "recipe": "tokens for the VLM, flow for the expert",
        "questions": {
            "before": answer_accuracy(questions, truth),
            "after": answer_accuracy(questions, ["nonsense"] * 4 + truth[4:]),
        },
        "log_history": [{"step": 1, **log}, {"step": 2, **log}],
        "rollouts": [touch, move],
        "chunks": "chunks.png",
    }


@pytest.fixture(scope="module")
def page(folder, full):
    return Page(write_report(folder, full).read_text(encoding="utf-8"))


def test_every_figure_is_the_one_of_the_json(page, full):
    assert len(page.figures) > 60
    for key, shown in page.figures.items():
        assert shown == {format_figure(key, look_up(full, key))}, f"the page shows another value at {key}"


def test_figures_are_written_as_people_read_them(page):
    expected = {
        "rollouts.0.success.rate": "87.5 %",
        "rollouts.0.success.low": "52.9 %",
        "rollouts.0.success.high": "97.8 %",
        "rollouts.0.success.successes": "7",
        "rollouts.0.swapped.original.rate": "0.0 %",
        "rollouts.1.success.rate": "33.3 %",
        "rollouts.0.mean_steps": "12.3",
        "questions.before.all.accuracy": "100.0 %",
        "minutes.fine-tuning": "7.0 min",
        "minutes": "8.3 min",
        "settings.kinds": "touch, move",
        "settings.learning_rate": "0.001",
        "settings.batch_size": "32",
        "settings.num_steps": "–",
        "machine.cpu": "A <fast> one",
    }
    assert {key: page.figures.get(key) for key in expected} == {key: {text} for key, text in expected.items()}


def test_nothing_measured_is_left_out(page, full):
    keys = {f"{part}.{name}" for part in ("machine", "minutes", "settings") for name in full[part]}
    keys |= {f"summary.{i}" for i in range(2)}
    names = ("rate", "low", "high", "successes", "episodes")
    for i in range(2):
        keys |= {
            f"rollouts.{i}.{rate}.{n}" for rate in ("success", "swapped.original", "swapped.swapped") for n in names
        }
        keys |= {f"rollouts.{i}.mean_steps", f"rollouts.{i}.title", f"rollouts.{i}.media.videos.0.title"}
    for when, kind in ((when, kind) for when in ("before", "after") for kind in full["questions"]["before"]):
        keys |= {f"questions.{when}.{kind}.{name}" for name in ("accuracy", "low", "high")}
    assert keys <= set(page.figures), f"not on the page: {sorted(keys - set(page.figures))}"


def test_where_episodes_end_is_shown_where_it_is_known(folder, full, tmp_path):
    def phases(reached):
        return [
            {"name": f"reached {HOSTILE}", "reached": success_rate([True] * 8), "stopped": 0},
            {"name": "did as told", "reached": success_rate([True] * reached + [False] * (8 - reached)), "stopped": 1},
        ]

    first, second = full["rollouts"]
    told = {**first["swapped"], "phases": phases(5)}
    report = {**full, "rollouts": [{**first, "phases": phases(7), "swapped": told}, {**second, "phases": None}]}
    page = Page(write_report(folder, report).read_text(encoding="utf-8"))
    for key in ("rollouts.0.phases.1", "rollouts.0.swapped.phases.1"):
        for name in ("reached.rate", "reached.low", "reached.high", "stopped"):
            value = look_up(report, f"{key}.{name}")
            assert page.figures[f"{key}.{name}"] == {format_figure(f"{key}.{name}", value)}
    assert page.figures["rollouts.0.phases.1.reached.rate"] == {"87.5 %"}
    assert page.figures["rollouts.0.phases.0.name"] == {f"reached {HOSTILE}"}
    assert page.count("h2") == 7 and not any(key.startswith("rollouts.1.phases") for key in page.figures)


def test_differences_of_answers(page, full):
    before, after = full["questions"]["before"], full["questions"]["after"]
    assert len(page.differences) == len(before) and before != after
    for (key, minus), shown in page.differences.items():
        assert key.replace("after", "before") == minus
        kind = key.removeprefix("questions.after.").removesuffix(".accuracy")
        assert float(shown) == pytest.approx(100 * (after[kind]["accuracy"] - before[kind]["accuracy"]), abs=0.051)
        assert shown[0] in "+-" and shown != "-0.0"


def test_the_report_is_embedded_as_it_is(page, full):
    assert json.loads(page.json) == full
    assert list(json.loads(page.json)) == list(full), "in another order than report.json"


def test_nothing_comes_from_elsewhere(page):
    sources = [
        attributes[name] for _, attributes in page.tags for name in ("src", "href", "poster") if name in attributes
    ]
    assert len(sources) == 2 + 1 + 2 + 1 + 1, "two videos, a GIF, two contact sheets, curves, chunks"
    assert {source.partition(";")[0] for source in sources} == {
        "data:video/mp4",
        "data:image/gif",
        "data:image/png",
        "data:image/svg+xml",
    }
    assert page.count("link") == 0 and "url(" not in page.text and "@import" not in page.text


def test_text_is_escaped(page, full):
    title = full["rollouts"][1]["media"]["videos"][0]["title"]
    assert HOSTILE in title and page.figures["rollouts.1.media.videos.0.title"] == {title}
    assert title in [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert page.text.count(HOSTILE) == 2 + 1 + 2 + 1, "title and heading, summary, table and heading, caption"
    assert page.figures["summary.1"] == {f"It was told: {HOSTILE}"}
    assert page.count("script") == 2, "the page's own, and the report"


def test_sections_of_the_full_page(page):
    assert page.count("h2") == 6 and page.count("video") == 2 and page.count("details") == 2


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("swapped", ["wapped"]),
        ("media", ["Episodes", "Contact sheet"]),
        ("videos", ["Episodes", "Contact sheet"]),
        ("chunks", ["Predicted"]),
        ("log_history", ["gradient"]),
        ("rollouts", ["Roll-outs", "Episodes", "true instruction"]),
    ],
)
def test_what_is_missing_is_left_out(folder, tmp_path, full, page, missing, words):
    report = copy.deepcopy(full)
    if missing in ("swapped", "media"):
        for rollout in report["rollouts"]:
            rollout[missing] = None
    elif missing == "videos":
        for rollout in report["rollouts"]:
            rollout["media"] = {"contact_sheet": None, "videos": []}
    else:
        report[missing] = None if missing == "chunks" else []
    shutil.copytree(folder, tmp_path / "copy")
    html = write_report(tmp_path / "copy", report).read_text(encoding="utf-8")
    body = re.sub(r"<(style|script).*?</\1>", "", html.partition("<body>")[2], flags=re.DOTALL)
    for word in words:
        assert word in page.text, f"{word!r} is not on the full page: this test would prove nothing"
        assert word not in Page(body).text, f"{missing} is missing, but the page says {word!r}"
    assert not re.search(r"\b(None|undefined|nan)\b", Page(body).text)


def test_one_set_of_rollouts_without_the_control(folder, tmp_path, full):
    report = copy.deepcopy(full)
    report["rollouts"][1]["swapped"] = None
    shutil.copytree(folder, tmp_path / "copy")
    figures = Page(write_report(tmp_path / "copy", report).read_text(encoding="utf-8")).figures
    assert "rollouts.0.swapped.original.rate" in figures and "rollouts.1.swapped.original.rate" not in figures


def test_a_missing_video_is_named(tmp_path, full):
    with pytest.raises(FileNotFoundError, match=r"episode_1\.mp4"):
        write_report(tmp_path, full)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser `chromium` on the PATH")
def test_a_browser_shows_it_without_a_network(folder, full, page, tmp_path):
    # The page itself counts the videos; pictures are counted here
    count = "page.dataset.picturesReady = [...document.images].filter((image) => image.naturalWidth > 0).length"
    html = write_report(folder, full).read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(
        html.replace("</body>", f"<script>addEventListener('load', () => {{ {count} }})</script></body>")
    )
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [
        CHROMIUM,
        *flags.split(),
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=10000",
        "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    shown = Page(result.stdout)
    (root,) = [attributes for tag, attributes in shown.tags if tag == "html"]
    assert root["data-videos-ready"] == "2", "not every video could be decoded"
    assert root["data-pictures-ready"] == str(page.count("img")) == "5", "not every picture could be decoded"
    assert json.loads(shown.json) == full and shown.figures == page.figures

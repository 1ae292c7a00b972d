"""The benchmark command works from end to end; nothing here looks at a time."""

import json
import re

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import guidance
from benchmarks.report import Comparison, Measurement
from benchmarks.timing import interleaved, peak_memory


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("bench") / "not yet there" / "bench.json"
    threads = torch.get_num_threads()
    command.main(["--quick", "--threads", "1", "--output", str(output)])
    torch.set_num_threads(threads)
    return json.loads(output.read_text())


@pytest.mark.slow
def test_every_row_is_there(quick_run):
    rows = [
        [(row["what"], row["against"]) for row in measurement["comparisons"]]
        for measurement in quick_run["measurements"]
    ]
    draws = [
        (f"{n} draws, one pass", against) for n in (2, 4, 8) for against in (f"{n} separate passes", "1 draw, one pass")
    ]
    token_loss = [
        (row, "all positions")
        for what in ("the whole step", "the loss alone")
        for row in (f"{what}, supervised positions", f"peak memory of {what}")
    ]
    floor = "its matrix products and attention alone"
    ways = ("as it is", "the expert compiled", "compiled as a whole")
    sampling = [(f"a chunk, {how}", against) for how in ways for against in ("PI0", floor)]
    training_step = [
        ("insulated", "joint"),
        ("insulated", "the VLM alone"),
        ("insulated, 4 noise draws", "the VLM alone"),
        ("insulated, 4 noise draws", "insulated"),
        ("joint", "the VLM alone"),
        ("insulated, no tokens to learn", "joint, no tokens to learn"),
        ("insulated, no tokens to learn", "insulated"),
        ("peak memory, insulated", "the VLM alone"),
        ("peak memory, insulated, 4 noise draws", "the VLM alone"),
    ]
    pi0_training = [("insulated", "PI0"), ("joint", "PI0")]
    decoding = [
        ("with a cache, as one batch", "without a cache"),
        ("with a cache, as one batch", "one by one"),
        ("one chunk, up to its last code", "up to the end of the turn"),
        ("large vocabulary, logits of action tokens", "logits of all tokens"),
    ]
    loading = [
        ("loading a batch", "a training step on it"),
        ("loading a batch", "decoding its pictures"),
        ("processing it without pictures", "FAST encoding alone"),
    ]
    serving = [
        ("through the server", "the pipeline"),
        ("99th percentile", "99th percentile"),
        ("server, no policy", "the pipeline"),
        ("99th percentile, no policy", "99th percentile"),
    ]
    libraries = ("import torch", "import transformers", "importing the library's pipelines")
    imports = [
        (what, against)
        for what in ("import kivla", "import kivla and the trainer", "kivla --help")
        for against in libraries
    ]
    training = [training_step, training_step, pi0_training, [("in buckets", "as they come")]]
    assert rows == [draws, token_loss, *[sampling] * 2, *training, decoding, loading, serving, imports]


@pytest.mark.slow
def test_every_measurement_was_checked(quick_run):
    for measurement in quick_run["measurements"]:
        assert measurement["checks"], f"'{measurement['title']}' timed something without checking it first"
        assert all(len(row["values"]) == len(row["against_values"]) > 0 for row in measurement["comparisons"])


@pytest.mark.slow
def test_machine_is_described(quick_run):
    assert quick_run["machine"]["threads"] == 1
    assert quick_run["machine"]["torch"] == torch.__version__
    assert all(value for name, value in quick_run["machine"].items() if name != "gpu"), "only the GPU may be missing"


def test_a_failed_check_stops_the_measurement():
    measurement = Measurement("title", "setting")
    one = torch.ones(3)
    measurement.check_equal("things", one + 1e-6, one, tolerance=1e-5)
    for other in (one + 1e-4, one * float("nan"), torch.ones(2)):
        with pytest.raises(AssertionError, match="things"):
            measurement.check_equal("things", other, one, tolerance=1e-5)
    with pytest.raises(AssertionError, match="all zero"):
        measurement.check_equal("nothings", torch.zeros(3), torch.zeros(3))
    with pytest.raises(AssertionError, match="sky"):
        measurement.check("the sky is green", False)
    assert len(measurement.checks) == 1


def test_calls_are_interleaved():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = interleaved("test", calls, repetitions=3)
    assert "".join(order) == "abbaabba", "one warm-up, then every other repetition in reverse order"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_peak_memory_counts_what_was_freed_again():
    kept = []

    def call():
        temporary = torch.ones(1_000_000)  # 4 MB
        kept.append(torch.ones(500_000))  # 2 MB
        del temporary
        kept.append(torch.ones(250_000))  # 1 MB, after the peak

    assert peak_memory(call) == 6_000_000
    assert peak_memory(call) == 6_000_000, "what an earlier call kept must not count"


def test_table_shows_median_of_ratios():
    measurement = Measurement("title", "setting", [Comparison("a", [0.1, 0.2, 0.9], "b", [0.2, 0.4, 1.0])])
    assert "| a | 200 ms | b | 400 ms | **0.50** (0.50–0.70) |" in measurement.as_markdown()


def test_page_is_refreshed_between_its_markers():
    page = command.README.read_text()
    written = command.with_results(page, "the report")
    assert command.with_results(written, "the report") == written
    text, start, end = written, written.index(command.BEGIN), written.index(command.END)
    assert re.fullmatch(r"\s*the report\s*", text[start + len(command.BEGIN) : end])
    assert text[:start] == page[: page.index(command.BEGIN)] and text[end:] == page[page.index(command.END) :]
    with pytest.raises(ValueError, match="no place for results"):
        command.with_results("a page without markers", "the report")


def test_quick_numbers_are_never_published(capsys):
    with pytest.raises(SystemExit):
        command.main(["--quick", "--write"])
    assert "--quick" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark_of_real_time_chunking(capsys):
    """Its checks hold (without weight or delay it is the ordinary chunk, compiled or not), and all rows are there."""
    threads = torch.get_num_threads()
    guidance.main(["--quick", "--threads", "1", "--sizes", "small"])
    torch.set_num_threads(threads)
    rows = re.findall(r"^\| (guidance|trained), ([\w, ]+) \|", capsys.readouterr().out, re.MULTILINE)
    kinds = ("loop", "chunk", "loop, compiled", "chunk, compiled")
    assert rows == [(method, kind) for kind in kinds for method in ("guidance", "trained")]

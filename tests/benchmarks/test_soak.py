"""The soak on a small scale: `kivla serve` in a process of its own, every fault once, and a report that can say no."""

import copy
import json
import os

import pytest
import torch

from benchmarks import soak
from benchmarks.soak_faults import FAULTS


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    output = tmp_path_factory.mktemp("soak") / "not yet there" / "soak.json"
    threads = torch.get_num_threads()
    assert soak.main(["--requests", "200", "--clients", "4", "--output", str(output)]) == 0
    torch.set_num_threads(threads)
    return json.loads(output.read_text())


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from Linux's /proc")
def test_nothing_is_lost_and_the_report_would_say_so(report):
    crowded = report["crowded"]
    assert crowded["asked"] == len(crowded["total_ms"]) == 200 and crowded["wrong"] == 0
    assert max(crowded["queue_depth"]) >= 3, "nobody had to wait"
    assert report["faults"].keys() == FAULTS.keys()
    assert report["server_metrics"]["kivla_clipped_values_total"] > 0
    page = soak.as_markdown(report)
    assert "| lost | 0 |" in page and "many clients: the policy in the server" in page

    assert soak.problems_of(report) == []
    for change, words in (
        (lambda r: r["crowded"]["lost"].append("ConnectionClosed"), "1 requests were lost"),
        (lambda r: r["crowded"].update(wrong=2), "2 answers were not the pipeline's"),
        (lambda r: r["crowded"]["total_ms"].pop(), "199 of 200 requests were answered"),
        (lambda r: r["surprises"].append("no key: served"), "1 faults were met in another way"),
        (lambda r: r["faults"].pop("no key"), "never tried, or never met as expected: ['no key']"),
        (lambda r: r["server_metrics"].update(kivla_failures_total=3), "failed on 3 requests"),
        (lambda r: r.update(exit_code=1), "ended with the code 1"),
        (lambda r: r["memory"]["megabytes"].append(10_000), "memory grew"),
        (lambda r: r["server_log"]["bad"].append("Task was destroyed"), "in the server's log"),
        (lambda r: r["server_metrics"].update(kivla_answers_total=1), "the server counted 1 answers"),
    ):
        changed = copy.deepcopy(report)
        change(changed)
        assert any(words in problem for problem in soak.problems_of(changed)), words

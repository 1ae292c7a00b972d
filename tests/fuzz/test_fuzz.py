"""Some inputs of every cheap target; `python -m tests.fuzz --inputs 20000` takes many, of all of them."""

import numpy as np
import pytest

from tests.fuzz.harness import Result, Target, run
from tests.fuzz.targets import TARGETS
from tests.helpers.patience import PATIENCE

# Those that build or load a policy, or open a dataset, take seconds
QUICK = [
    "stored image",
    "action tokenizer: bins",
    "action tokenizer: tokenizer.json",
    "image",
    "chunk to encode",
    "codes to decode",
    "statistics",
    "message",
    "request",
]


@pytest.mark.parametrize("name", QUICK)
def test_every_input_is_accepted_or_refused_in_a_documented_way(name, tmp_path):
    target, result = TARGETS[name], Result(name)
    target.prepare(tmp_path)((0, 0, 0), 40, lambda call: result.attempt(call, target.refusals))
    assert result.inputs >= 1 and not result.defects


@pytest.mark.slow
def test_the_harness_finds_what_it_looks_for(tmp_path, monkeypatch):
    kinds = {
        "exception": lambda: {}["x"],
        "wordless": lambda: (_ for _ in ()).throw(ValueError()),
        "crash": lambda: __import__("os").abort(),
        "hang": lambda: __import__("time").sleep(PATIENCE),
        "fine": lambda: np.zeros(3),
    }

    def prepare(name):
        def feed(seed, count, attempt):
            for number in range(count):
                attempt(kinds[name] if number == 2 else kinds["fine"])

        return lambda folder: feed

    found = {}
    for name in kinds:
        with monkeypatch.context() as patch:
            if name == "hang":
                patch.setattr("tests.fuzz.harness.HANG_SECONDS", 2)
            found[name] = run(Target(name, prepare(name)), 5, 0, tmp_path, lambda n: None)
    defects = {name: " ".join(result.defects) for name, result in found.items()}
    assert "KeyError" in defects["exception"] and "without words" in defects["wordless"]
    assert "crash: exit code -6" in defects["crash"] and "hang" in defects["hang"] and not defects["fine"]
    assert found["crash"].defects["crash: exit code -6"] == 2
    assert found["fine"].inputs == found["fine"].accepted == 5


def test_memory_that_is_taken_for_a_moment_is_found(tmp_path):
    def feed(seed, count, attempt):
        for number in range(seed[2], seed[2] + count):
            attempt(lambda size=20_000_000 if number == 120 else 3: np.ones(size).sum())

    result = run(Target("momentary", lambda folder: feed), 130, 0, tmp_path, lambda n: None)
    assert result.accepted == 130 and result.growth < 20e6
    assert result.peak > 150e6 and "growth" in " ".join(result.defects)

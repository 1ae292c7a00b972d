"""What is counted on the command lines of the benchmarks is 1 or more, or refused by name."""

import argparse
import re
from pathlib import Path

import pytest

from benchmarks.options import count

NOT_COUNTED = {"--seed", "--seeds", "--latencies", "--max_delay"}  # may be 0


def test_a_count_is_one_or_more(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=count)
    assert parser.parse_args(["--threads", "2"]).threads == 2
    for wrong in ("0", "-1", "1.5", "two"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--threads={wrong}"])
        assert f"argument --threads: a whole number of 1 or more, got {wrong}" in capsys.readouterr().err


def test_every_benchmark_counts_so():
    plain = {
        name
        for file in Path("benchmarks").glob("*.py")
        for name in re.findall(r'add_argument\(\s*"(--\w+)", type=int', file.read_text(encoding="utf-8"))
    }
    assert plain == NOT_COUNTED

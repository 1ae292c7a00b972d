"""What is counted on the command lines of the benchmarks is 1 or more, or refused by name."""

import argparse
import re
from pathlib import Path

import pytest

from benchmarks.options import Distinct, claim, count, natural

NOT_COUNTED = {"--seed", "--latencies", "--max_delay"}  # may be 0


def test_a_count_is_one_or_more(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=count)
    assert parser.parse_args(["--threads", "2"]).threads == 2
    for wrong in ("0", "-1", "1.5", "two"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--threads={wrong}"])
        assert f"argument --threads: a whole number of 1 or more, got {wrong}" in capsys.readouterr().err


def test_seeds_are_from_zero_on_and_each_is_given_once(capsys):
    """Twice the same seed would be counted as twice as many scenes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=natural, nargs="+", action=Distinct, default=[0])
    assert parser.parse_args(["--seeds", "0", "3"]).seeds == [0, 3] and parser.parse_args([]).seeds == [0]
    for words, said in {"3 3": "--seeds: each once, got 3 3", "0 -1": "expected", "x": "0 or more, got x"}.items():
        with pytest.raises(SystemExit):
            parser.parse_args(["--seeds", *words.split()])
        assert said in capsys.readouterr().err or said == "expected"


def test_a_folder_of_other_arguments_ends_the_program_in_words(tmp_path, capsys):
    parser = argparse.ArgumentParser(prog="benchmark")
    claim(parser, tmp_path, {"kinds": ["move"]}, ("*.json",))
    claim(parser, tmp_path, {"kinds": ["move"]}, ("*.json",))
    with pytest.raises(SystemExit):
        claim(parser, tmp_path, {"kinds": ["put"]}, ("*.json",))
    said = capsys.readouterr().err
    assert "--kinds: was ['move'], is ['put']" in said and "Give another --output; or remove the folder" in said


def test_every_benchmark_counts_so():
    plain = {
        name
        for file in Path("benchmarks").glob("*.py")
        for name in re.findall(r'add_argument\(\s*"(--\w+)", type=int', file.read_text(encoding="utf-8"))
    }
    assert plain == NOT_COUNTED

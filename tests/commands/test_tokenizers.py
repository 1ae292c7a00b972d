"""`kivla tokenizers` from end to end on real demonstrations, and its figures on chunks made for it."""

import json
import sys
from importlib import import_module

import evaluate
import numpy as np
import pytest

from kivla import BinningActionTokenizer, FASTActionTokenizer, LeRobotDataset
from kivla.cli import main
from kivla.processing import Normalizer
from tests.helpers.policies import DATASET


@pytest.fixture(autouse=True)
def metrics_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))


@pytest.fixture
def tokenizers():
    return import_module("kivla.training.evaluation.tokenizer_error")


@pytest.fixture
def report(tmp_path, capsys):
    """JSON and Markdown of a run."""
    output = tmp_path / "new" / "tokenizers.json"
    options = ["--chunk_size", "8", "--num_chunks", "40", "--vocab_size", "256", "--scales", "2", "10"]
    main(["tokenizers", str(DATASET), *options, "--num_bins", "64", "--output", str(output)])
    return json.loads(output.read_text()), capsys.readouterr().out


def test_rows_are_what_was_measured_on_held_out_episodes(report):
    report, _ = report
    assert [row["tokenizer"] for row in report["rows"]] == ["FAST, scale 2", "FAST, scale 10", "64 bins"]
    even, odd = (LeRobotDataset(DATASET, 8, episodes, cameras=[]) for episodes in ([0, 2], [1]))
    normalizer = Normalizer(even.statistics["actions"])
    fitted_on, chunks = (normalizer.normalize(data.action_chunks(40)) for data in (even, odd))
    assert (report["num_fitted"], report["num_measured"]) == (40, 40)
    for row, scale in zip(report["rows"][:2], (2, 10), strict=True):
        expected = FASTActionTokenizer.fit(fitted_on, vocab_size=256, scale=scale).roundtrip_error(chunks)
        assert row["tokens_per_chunk"] == pytest.approx(expected["tokens_mean"])
        assert row["max_tokens_per_chunk"] == expected["tokens_max"]
        assert row["rmse"] == pytest.approx(expected["rmse"], rel=1e-5)
        assert row["max_error"] == pytest.approx(expected["max_error"], rel=1e-5)
        assert row["clipped"] == pytest.approx(expected["clipped"] / chunks.size)
    coarse, fine, bins = report["rows"]
    assert coarse["tokens_per_chunk"] < fine["tokens_per_chunk"]
    assert bins["tokens_per_chunk"] == bins["max_tokens_per_chunk"] == 8 * 4
    assert bins["bits_per_value"] == pytest.approx(6), "64 bins: 6 bits"


def test_what_is_printed_is_what_is_in_the_json(report):
    report, printed = report
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    header, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert all(len(cells) == len(header) for cells in body)
    names = ("tokenizer", "tokens_per_chunk", "max_tokens_per_chunk", "bits_per_value", "rmse", "max_error")
    names += ("rmse_robot_units", "max_error_robot_units")
    for cells, row in zip(body, report["rows"], strict=True):
        assert cells[0] == row["tokenizer"]
        np.testing.assert_allclose([float(c) for c in cells[1:8]], [row[name] for name in names[1:]], atol=0.051)
        assert cells[8] == f"{100 * row['clipped']:.2f} %"


def test_robot_units_and_clipping_by_hand(tokenizers):
    # Two bins of normalised values decode to -0.5 and 0.5; a dimension of -10..10 and one of -1..1
    low, high = np.array([-10.0, -1.0]), np.array([10.0, 1.0])
    normalizer = Normalizer({"q01": low, "q99": high})
    actions = np.array([[[10, -0.5], [5, 0.5]], [[-5, 0.5], [-5, 1.5]]], dtype=np.float32)
    figures = tokenizers.measure(BinningActionTokenizer(2), actions, normalizer)
    # Errors in robot units: 5, 0, 0, 0 in the first dimension, 0, 0, 0, 1 in the second
    assert figures["max_error_robot_units"] == pytest.approx((5 + 1) / 2, rel=1e-4)
    assert figures["rmse_robot_units"] == pytest.approx((2.5 + 0.5) / 2, rel=1e-4)
    assert figures["max_error"] == pytest.approx(1, rel=1e-4)
    assert figures["clipped"] == 1 / 8
    assert figures["tokens_per_chunk"] == 4 and figures["bits_per_value"] == pytest.approx(1)


def test_a_dataset_of_one_sort_of_episodes(tokenizers):
    class OneEpisode:
        def __init__(self, *args, **kwargs):
            self.episodes = [4]

    with pytest.raises(ValueError, match=r"has the episodes \[4\].*even.*odd"):
        tokenizers.split(OneEpisode, "one", 8)


def test_the_module_does_not_take_the_place_of_the_library(tokenizers):
    import tokenizers as library

    assert library is sys.modules["tokenizers"] is not tokenizers
    assert library.Tokenizer.__module__.startswith("tokenizers")

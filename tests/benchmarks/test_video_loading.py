"""The benchmark of videos: its table from known seconds; from end to end in the slow lane."""

import argparse

import pytest
import torch

from benchmarks import video_loading


def test_the_table_says_what_was_measured():
    given = argparse.Namespace(batch_size=10, episodes=1, frames=30)
    page = video_loading.table(given, {"step": [1.0, 2.0, 4.0], "av1, 2": [0.5, 0.5, 0.5]})
    assert "| av1, 2 | 0.50 | 25.0 | 4.00 (2.00 - 8.00) |" in page.split("\n")
    assert "The demo's step takes 2.00 s" in page


@pytest.mark.slow
def test_every_codec_and_spacing_is_loaded(capsys):
    threads = torch.get_num_threads()
    video_loading.main(["--frames", "12", "--episodes", "1", "--batch_size", "2", "--repetitions", "1"])
    torch.set_num_threads(threads)
    page = capsys.readouterr().out
    for codec in video_loading.CODECS:
        for spacing in video_loading.SPACINGS:
            assert f"| {codec}, {spacing} |" in page

"""The scaling curves: their exponents, and that the command leaves picture and numbers."""

import json

import pytest
import torch
from PIL import Image

from benchmarks import scaling


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_is_the_slope(power):
    x = [1, 2, 4, 8]
    assert scaling.Curve("", "", x, [3 * n**power for n in x]).exponent == pytest.approx(power, abs=1e-9)


@pytest.mark.slow
def test_it_leaves_a_picture_and_its_numbers(tmp_path):
    threads = torch.get_num_threads()
    scaling.main(["--quick", "--threads", "1", "--output", str(tmp_path / "new" / "scaling.png")])
    torch.set_num_threads(threads)
    assert Image.open(tmp_path / "new" / "scaling.png").size[0] > 1000
    rows = json.loads((tmp_path / "new" / "scaling.json").read_text())["curves"]
    expected = ["prompt tokens", "cameras", "actions in a chunk", "prompt tokens", "noise draws", "examples in a batch"]
    assert [row["x_label"] for row in rows] == expected
    assert all(len(row["x"]) == len(row["seconds"]) and min(row["seconds"]) > 0 for row in rows)

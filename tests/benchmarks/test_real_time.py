"""The benchmark of the control loop runs from end to end; nothing here looks at a time."""

import json

import pytest
import torch

from benchmarks import real_time


@pytest.mark.slow
def test_every_tick_is_counted(tmp_path, capsys):
    threads = torch.get_num_threads()
    output = tmp_path / "not yet there" / "real_time.json"
    real_time.main(["--quick", "--seconds", "3", "--rate", "20", "--way", "naive", "--output", str(output)])
    torch.set_num_threads(threads)
    result = json.loads(output.read_text())
    assert result["with a policy"]["ticks"] == result["counts"]["steps"] == 60 and result["without"]["ticks"] == 20
    assert result["counts"]["errors"] == 0 and result["counts"]["requests"] > 0
    assert "| with a policy | 60 |" in capsys.readouterr().out

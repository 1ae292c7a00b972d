"""A few kills of the fifty that `python -m benchmarks.kill_and_resume` does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.patience import PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path):
    """In a process of its own: it forks, and what is forked must not have started threads."""
    command = [sys.executable, "-m", "benchmarks.kill_and_resume", "--kills", "3", "--steps", "24", "--seed", "1"]
    result = subprocess.run(
        [*command, "--folder", str(tmp_path / "runs")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    report = json.loads((tmp_path / "runs.json").read_text())
    assert report["different"] == [] and report["resumed_past_damage"] == []
    assert report["compared"] > 300
    assert len(report["kills"]) == 3
    last = report["kills"][-1]
    assert last["aim"] == "while the policy is written" and last["was_saving"] and last["step_after"] == 24
    assert all(kill["step_after"] >= kill["step_before"] for kill in report["kills"])

"""The benchmark of sub-tasks: its table from known outcomes; from end to end in two steps in the slow lane."""

import json

import pytest
import torch

from benchmarks import subtasks
from kivla.demo.stages import TabletopArguments, fine_tune, record
from kivla.named_models import TABLETOP_VLM


def rows(*outcomes):
    return [{"name": name, "touched": touched, "training_minutes": 2.4} for name, touched in outcomes]


def test_the_table_says_what_was_measured():
    page = subtasks.format_rows(rows(("says", [2, 2, 2, 1, 0]), ("silent", [0] * 5), ("without", [2, 1, 1, 1, 0])))
    lines = page.split("\n")
    assert "| says | 60.0 % (23.1 - 88.2) | 80.0 % (37.6 - 96.4) | 75.0 % (30.1 - 95.4) | 2 min |" in lines
    assert "| silent | 0.0 % (0.0 - 43.4) | 0.0 % (0.0 - 43.4) | - | 2 min |" in lines
    assert (
        "Only the policy that says its sub-task succeeds in 2, only the one that learned without in 0: p = 0.5" in page
    )


@pytest.mark.slow
def test_from_end_to_end_and_again(tmp_path, capsys):
    args = TabletopArguments(num_demonstrations=2)
    record(tmp_path / "demonstrations", args)
    fine_tune(TABLETOP_VLM, tmp_path / "demonstrations", tmp_path / "start", args, max_steps=1)
    threads = torch.get_num_threads()
    sizes = ["--max_steps", "2", "--num_episodes", "3", "--num_demonstrations", "2", "--output", str(tmp_path / "out")]
    sizes += ["--start", str(tmp_path / "start")]
    subtasks.main(sizes)
    torch.set_num_threads(threads)
    table = capsys.readouterr().out
    for row in subtasks.ROWS:
        assert f"| {row.name} |" in table
    responds = {
        name: json.loads((tmp_path / "out" / name / "processor_config.json").read_text())["responds_first"]
        for name in ("policy_with_subtasks", "policy_without")
    }
    assert responds == {"policy_with_subtasks": True, "policy_without": False}
    results = sorted((tmp_path / "out").glob("[pr]o*.json"))  # of policies and rows
    times = [path.stat().st_mtime_ns for path in results]
    subtasks.main(sizes)
    assert len(results) == 7 and times == [path.stat().st_mtime_ns for path in results], "nothing was done again"
    with pytest.raises(SystemExit):
        subtasks.main([*sizes, "--max_steps", "3"])
    assert "--max_steps: was 2, is 3" in capsys.readouterr().err

"""The benchmark of acting in time: its report from known rows; from end to end in two steps in the slow lane."""

import json

import numpy as np
import pytest
import torch

from benchmarks import moving


def row(way, latency, seed, success, jerk):
    scenes = len(success)
    steps = {"steps": [30] * scenes, "held_steps": [latency] * scenes}
    return {"way": way, "latency": latency, "seed": seed, "replan_every": 4, "success": success, "jerk": jerk, **steps}


def test_the_report_says_what_is_in_the_rows(tmp_path):
    rows = [
        row("naive", 2, 0, "1100", [2.0, 4.0, None, 6.0]),
        row("naive", 2, 1, "1000", [2.0, 4.0, 6.0, 8.0]),
        row("sync", 0, 0, "1111", [1.0] * 4),
    ]
    (tmp_path / "rows").mkdir()
    for number, one in enumerate(rows):
        (tmp_path / "rows" / f"{number}.json").write_text(json.dumps(one))
    success, gain, jerk, facts = (table.split("\n") for table in moving.write_report(tmp_path).split("\n\n"))
    assert facts == ["2 policies, 4 scenes each, the same for all; 95 % intervals."]
    assert gain[2:] == ["| sync | - | - |", "| naive | - | - |"], "nothing there was measured beside naive"
    assert success[0] == "| success, % | 0 steps late | 2 steps late |"
    assert success[2] == "| sync | 100.0 (100.0 - 100.0) | - |" and success[3].startswith("| naive | - | 37.5 (")
    assert jerk[2].startswith("| sync | 1.0 (") and jerk[3].startswith(f"| naive | - | {32 / 7:.1f} (")
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[1:] == [
        "sync,0,0,4,4,4,30.00,0.00,1.00",
        "naive,2,0,4,4,2,30.00,2.00,4.00",
        "naive,2,1,4,4,1,30.00,2.00,5.00",
    ]
    assert (tmp_path / "moving.png").stat().st_size > 5000


def test_the_gain_is_paired_by_policy_and_scene():
    naive = [row("naive", 2, 0, "1100", [1.0] * 4), row("naive", 2, 1, "0000", [1.0] * 4)]
    rtc = [row("rtc", 2, 0, "1111", [1.0] * 4), row("rtc", 2, 1, "0011", [1.0] * 4)]
    cells = {("naive", 2): naive, ("rtc", 2): rtc}
    gain = moving.gain_of(rtc, cells)
    assert gain is not None and gain.mean == 50.0
    assert gain.low == 0.0 and gain.high == 100.0, "two scenes gain nothing, two gain all: as one draws them"
    assert moving.gain_of(rtc, {("naive", 2): naive[:1], ("rtc", 2): rtc}) is None, "another policy"


def test_seeds_of_a_scene_are_drawn_together():
    """Three seeds that agree in every scene say no more than one."""
    bits = "".join(np.random.default_rng(0).choice(["0", "1"], size=100))
    one, three = (moving.success_of([row("rtc", 0, seed, bits, [1.0] * 100) for seed in range(n)]) for n in (1, 3))
    assert (one.mean, one.low, one.high) == pytest.approx((three.mean, three.low, three.high))
    assert one.high - one.low > 15


@pytest.mark.slow
def test_from_end_to_end_and_again(tmp_path, capsys):
    threads = torch.get_num_threads()
    sizes = ["--max_steps", "2", "--num_episodes", "3", "--num_demonstrations", "3", "--seeds", "0", "--latencies", "0"]
    sizes += ["2", "--output", str(tmp_path / "out")]
    moving.main(["train", *sizes])
    moving.main(["measure", *sizes])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert all(f"| {way} |" in printed for way in moving.WAYS)
    rows = sorted((tmp_path / "out" / "rows").glob("*.json"))
    times = [path.stat().st_mtime_ns for path in rows]
    moving.main(["measure", *sizes])
    assert len(rows) == 10 and times == [path.stat().st_mtime_ns for path in rows], "nothing was done again"
    with pytest.raises(SystemExit):
        moving.main(["measure", *sizes, "--max_delay", "0"])
    assert "--max_delay: was 6, is 0" in capsys.readouterr().err

"""The benchmark of policies that look back: its table from known outcomes; from end to end in two steps, slowly."""

import argparse
import json

import pytest
import torch

from benchmarks import history


def test_the_table_says_what_is_in_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "draw", lambda options, first: (tmp_path / "history.png").write_text(str(first)))
    for name, bits in (("without", "0100" * 25), ("with", "0111" * 25)):
        (tmp_path / f"rollouts_{name}.json").write_text(json.dumps({"success": bits, "steps": [20] * 100}))
    options = argparse.Namespace(output=tmp_path, policies=list(history.HISTORIES))
    table = history.measure(options).splitlines()
    assert table[2] == "| without history | the present frame alone | 25.0 % of 100 | 17.5 - 34.3 % |"
    assert table[3].startswith("| with history | 2 frames, 16 control steps apart | 75.0 % of 100 | 65.7 - 82.5 % |")
    assert table[4].startswith("| chance | | 33.3 %") and "McNemar" in table[6]
    assert (tmp_path / "history.png").read_text() == "2", "the first scene in which only one succeeds"
    assert (tmp_path / "table.md").is_file()


def test_what_a_history_costs():
    rows = [line.split("|")[1:-1] for line in history.cost().splitlines()[2:]]
    assert len(rows) == len(history.SIZES) * len(history.FRAMES)
    by_name = {(row[0].strip(), row[2].strip()): [cell.strip() for cell in row] for row in rows}
    assert by_name["PaliGemma (of π0.5)", "1"][3:5] == ["256", "4.7"]  # 256 · 18 layers · 2 · 256 values · 2 bytes
    assert by_name["PaliGemma (of π0.5)", "4"][3:5] == ["1,024", "18.9"]


@pytest.mark.slow
def test_from_end_to_end_and_again(tmp_path, capsys):
    threads = torch.get_num_threads()
    sizes = ["--max_steps", "2", "--num_episodes", "4", "--num_demonstrations", "4", "--output", str(tmp_path / "out")]
    history.main(["train", *sizes])
    history.main(["measure", *sizes])
    torch.set_num_threads(threads)
    assert "| with history | 2 frames, 16 control steps apart |" in capsys.readouterr().out
    files = sorted((tmp_path / "out").glob("[pr]*.json"))  # policies and roll-outs
    times = [path.stat().st_mtime_ns for path in files]
    history.main(["train", *sizes])
    history.main(["measure", *sizes])
    assert times == [path.stat().st_mtime_ns for path in files], "nothing was done again"

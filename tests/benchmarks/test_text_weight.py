"""`python -m benchmarks.text_weight` in small."""

import json

import pytest

from benchmarks import text_weight


@pytest.mark.slow
def test_every_weight_is_measured_once(tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"The cup of tea number {i} is hot."}) + "\n" for i in range(4)))
    arguments = ["--texts", str(file), "--held_out_texts", str(file), "--output", str(tmp_path / "out")]
    arguments += ["--max_steps", "4", "--batch_size", "4", "--num_demonstrations", "2", "--text_length", "16"]
    text_weight.main([*arguments, "--weights", "none", "2:0.5"])
    row = json.loads((tmp_path / "out" / "row_2_0.5.json").read_text())
    assert any(row["text_loss"]) and any(row["anchor_loss"]) and len(row["token_loss"]) == 4
    start = json.loads((tmp_path / "out" / "start.json").read_text())
    assert start["of_actions"] > 0 and start["of_texts"] > 0 and start["one_mean"] > 0
    without = json.loads((tmp_path / "out" / "row_none.json").read_text())
    assert not any(without["text_loss"]) and without["nll"] > 0
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("row_*.json")}
    text_weight.main([*arguments, "--weights", "none", "2:0.5"])
    assert written == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("row_*.json")}
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| none ", "| 2:0.5 "))]
    assert len(rows) == 4 and rows[:2] == rows[2:], "what was measured is read again"

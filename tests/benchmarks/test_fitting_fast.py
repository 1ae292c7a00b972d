"""FAST is fitted on some chunks and on all, each in a process of its own."""

import pytest

from benchmarks.fitting_fast import main


@pytest.mark.slow
def test_a_quick_run_has_a_row_for_each_fit(capsys):
    main(["--quick"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| chunks", "| 20", "| 300"]
    assert all(float(row[3]) > 1 and 0 < float(row[4]) < 0.1 for row in rows[1:])

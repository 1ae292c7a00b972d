"""The table of what the expert costs is what its command makes today."""

import pytest

from benchmarks.expert_cost import PAGE, make_table


@pytest.mark.slow
def test_the_page_has_the_table_that_the_command_makes():
    assert make_table() in PAGE.read_text(encoding="utf-8"), "run `python -m benchmarks.expert_cost --write`"

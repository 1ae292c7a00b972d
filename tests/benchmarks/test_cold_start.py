"""The benchmark of a cold start: its table, from known seconds."""

from benchmarks.cold_start import as_table


def test_the_table_has_medians_and_their_ratio():
    taken = {"ours": [(4.0, 3.0), (9.0, 5.0), (5.0, 4.0)], "import": [(2.0, 2.0), (2.5, 2.0), (2.5, 8.0)]}
    assert as_table(taken).split("\n")[2:] == [
        "| ours | 5.00 | 4.00 |",
        "| import | 2.50 | 2.00 |",
        "| ratio | 2.00 | 2.00 |",
    ]

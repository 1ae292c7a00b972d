"""The benchmark of guesses for action tokens: passes are counted from known codes; no policy is needed."""

import numpy as np
import pytest

from benchmarks.drafts import NOTHING, as_markdown, passes

CODES = [7, 3, 3, 9, 1, 4]


@pytest.mark.parametrize(
    ("guess", "expected"),
    [
        (lambda said: [], 6),
        (lambda said: [2] * 10, 6),
        (lambda said: CODES[len(said) :], 2),
        (lambda said: [*CODES[len(said) :], 5, 5], 2),
        (lambda said: CODES[1:3] if len(said) == 1 else [], 4),
    ],
    ids=["empty", "wrong", "right", "too long", "right at first"],
)
def test_known_guesses(guess, expected):
    assert passes(CODES, guess) == expected


def test_random_guesses_never_take_more_passes_than_codes():
    rng = np.random.default_rng(0)
    for _ in range(200):
        codes = rng.integers(0, 3, rng.integers(1, 12)).tolist()
        count = passes(codes, lambda said: rng.integers(0, 3, rng.integers(0, 15)).tolist())
        assert min(len(codes), 2) <= count <= len(codes), codes


def test_the_table_compares_what_has_both():
    report = {
        "chunks": 2,
        "kinds": ["touch"],
        "success": 0.5,
        "passes": {NOTHING: [4, 8], "some": [2, None]},
        "seconds": {"by tokens": [0.1, 0.2], "by flow": [0.05, 0.1]},
    }
    table = as_markdown(report).splitlines()
    assert table[0] == "2 chunks (touch; success 50%)."
    assert f"| {NOTHING} | 6.00 | 1.00 |" in table and "| some | 2.00 | 0.50 |" in table
    assert "| by flow | 75.0 | 0.50 |" in table

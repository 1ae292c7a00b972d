"""What the token loss needs, in matrices of the vocabulary."""

from dataclasses import replace

from benchmarks.policies import TINY
from benchmarks.token_memory import make_table


def test_one_gradient_of_the_vocabularys_size_is_all_there_is(monkeypatch):
    """At a vocabulary beside which everything else is small; a second buffer would be one unit more."""
    monkeypatch.setattr("kivla.modeling_kivla.next_token.BLOCK", 2**14)  # small, too
    one, many = make_table([replace(TINY, vocab_size=16384)]).splitlines()[2:]
    _, learned, plain, exact, among = (float(cell.replace(",", "")) for cell in one.strip("| ").split(" | "))
    logits = learned / TINY.hidden_size  # in the same unit
    assert 1 <= exact < 1.3 + 2 * logits and 1 <= among < 1.5 and plain > 3, one
    *_, plain, exact, among = (float(cell.replace(",", "")) for cell in many.strip("| ").split(" | "))
    assert among < exact < 0.8 * plain, many

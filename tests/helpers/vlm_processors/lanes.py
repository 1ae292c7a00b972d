"""Which kinds the fast lane tests, and where the library's own code breaks a test."""

from collections.abc import Callable

import pytest

from tests.helpers.families.broken import BROKEN as FAMILY_BROKEN

from .table import KINDS

# name of the test: kind: reason. Once the library is mended that is a failure: take the entry off the list.
_PADDED = FAMILY_BROKEN["test_alone_equals_in_a_batch_padded_left"]
BROKEN: dict[str, dict[str, str]] = {
    "test_an_example_in_a_batch_gives_what_it_gives_alone": {
        name: _PADDED[name] for name in ("hunyuan_vl", "minimax_m3_vl")
    },
    "test_action_tokens_decode_to_chunks_with_and_without_cache": {"minimax_m3_vl": _PADDED["minimax_m3_vl"]},
}


def each_kind(test: Callable) -> Callable:
    """Decorator: the test is run for each kind, by `name`; where the library's code breaks it, it must fail."""
    broken = BROKEN.get(test.__name__, {})
    cases = []
    for name, kind in KINDS.items():
        marks = [pytest.mark.slow] if kind.is_slow else []
        if name in broken and not kind.is_missing:
            marks.append(pytest.mark.xfail(strict=True, reason=broken[name]))
        cases.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("name", cases)(test)

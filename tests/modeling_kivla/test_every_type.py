"""Any VLM means any: each type of the installed transformers is held to the contract, or refused for a reason."""

import pytest
import transformers

from tests.helpers.every_type import every_type, held_types, refused_types

# Types that nobody has looked at yet. A release of transformers may add some: look, and leave this empty.
NOT_YET_LOOKED_AT: set[str] = set()


@pytest.mark.parametrize("name", every_type())
def test_every_type_is_held_or_refused(name):
    if name in NOT_YET_LOOKED_AT:
        pytest.xfail("not yet looked at")
    assert name in held_types() or name in refused_types(), (
        f"transformers {transformers.__version__} has a VLM of the type '{name}' that no test knows. If "
        f"`python -m benchmarks.probe --types {name}` reads it, add a tiny one to tests/helpers/families; if nothing "
        "can be read, add it to tests/helpers/families/refused.py, with what would be needed."
    )


def test_what_is_not_yet_looked_at_is_neither():
    looked_at = NOT_YET_LOOKED_AT & (held_types().keys() | refused_types().keys())
    assert not looked_at, f"held or refused by now: take {sorted(looked_at)} off the list"


def test_each_refusal_says_what_would_be_needed():
    for name, refused in refused_types().items():
        assert refused.needs.endswith(".") and len(refused.needs.split()) >= 4, name

"""Damage: to the bytes of a file, and to the values of a JSON document."""

import copy
import json

import numpy as np

_WORDS = [
    b"\x00" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80" * 8,
    b"\xff" * 8,
    b"NaN",
    b"1e999",
]
# What stands where something else is expected
_VALUES = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, -(10**400), 0.5, 1e308, float("nan"), float("inf"), "", "x" * 5000),
    *("\0", "../../etc/passwd", "{0.__class__}", "{episode_index:99999999}", "\ud800", [], {}, [[]], {"a": 1}),
    *([None] * 3, [1e400], list(range(100))),
]


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four of: flipped bits, cut off, inserted bytes, a piece copied elsewhere, a field of extreme length."""
    mutated = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        size = max(len(mutated), 1)
        start = int(rng.integers(size)) if rng.random() < 0.6 else int(rng.integers(min(size, 256)))  # headers
        length = int(min(2 ** rng.integers(0, 10), size))
        kind = rng.integers(6)
        if kind == 0:
            for position in rng.integers(size, size=length):
                if position < len(mutated):
                    mutated[position] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del mutated[start:]
        elif kind == 2:
            mutated[start:start] = rng.bytes(length)
        elif kind == 3:
            source = int(rng.integers(size))
            mutated[start : start + length] = mutated[source : source + length]
        elif kind == 4:
            word = _WORDS[rng.integers(len(_WORDS))]
            mutated[start : start + len(word)] = word
        else:
            del mutated[start : start + length]
    return bytes(mutated)


def mutate_json(text: str, rng: np.random.Generator) -> bytes:
    """One to three values or keys replaced or removed, or nested very deep; in one case of three, damaged bytes."""
    if rng.random() < 0.33:
        return mutate_bytes(text.encode(), rng)
    document = json.loads(text)
    for _ in range(rng.integers(1, 4)):
        places = list(_places(document))
        holder, key = places[rng.integers(len(places))]
        kind = rng.integers(10)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[_VALUES[rng.integers(10, 20)] if rng.random() < 0.2 else "extra"] = holder[key]
        elif kind == 2:
            other_holder, other_key = places[rng.integers(len(places))]
            holder[key] = copy.deepcopy(other_holder.get(other_key) if isinstance(other_holder, dict) else holder[key])
        elif kind == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * 10 ** int(rng.integers(1, 12))
        else:
            holder[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
        if not list(_places(document)):
            break
    written = json.dumps(document, skipkeys=True)
    if rng.random() < 0.03:
        return b"[" * 100_000
    if rng.random() < 0.03:
        return (written[:-1] + ', "deep": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}").encode()
    return written.encode()


def _places(document, depth: int = 0):
    """Every (container, key) of a document."""
    keys = document.keys() if isinstance(document, dict) else range(len(document))
    for key in list(keys):
        yield document, key
        if isinstance(document[key], dict | list) and depth < 12:
            yield from _places(document[key], depth + 1)

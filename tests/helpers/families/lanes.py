"""Which families the fast lane tests: one for each mechanism. The slow lane adds all others."""

from collections.abc import Callable

import pytest

from .broken import BROKEN
from .table import FAMILIES

# What `mechanisms` finds in a VLM, and the family in which the fast lane tests it
FAST = {
    "rope: half": "llava",
    "rope: interleaved": "glm4v",
    "rope: None": "aya_vision",
    "no rotary embedding": "blip-2",
    "part of a head turns": "glm4v",
    "rotary part last": "kimi_k25",
    "frequencies in another order": "ernie4_5_vl_moe",
    "frequencies by layer": "gemma3",
    "M-RoPE": "qwen2_5_vl",
    "heads by layer": "gemma4_moe",
    "values of another size": "kimi_k25",
    "latent attention": "kimi_k25",
    "sparse attention": "mistral_large4",
    "shared keys": "gemma3n",
    "inputs for each layer": "gemma3n",
    "layers without keys": "qwen3_5",
    "windows": "gemma3",
    "chunks": "llama4",
    "both directions": "paligemma",
    "experts": "qwen3_vl_moe",
    "images in rows": "smolvlm",
}


def each_family(test: Callable) -> Callable:
    """Decorator: the test is run for each family, by `name`; where the library's code breaks it, it must fail."""
    broken = BROKEN.get(test.__name__, {})
    cases = []
    for name in FAMILIES:
        marks = [pytest.mark.slow] if name not in FAST.values() else []
        if name in broken:
            marks.append(pytest.mark.xfail(strict=True, reason=broken[name]))
        cases.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("name", cases)(test)

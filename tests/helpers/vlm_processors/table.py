"""All kinds by name."""

from dataclasses import replace

from tests.helpers.families import FAMILIES

from .grids import GRIDS
from .one_size import ONE_SIZE
from .tiles import TILES

_ALL = ONE_SIZE | GRIDS | TILES

# The processor of another kind, and a decoder of its own
_ALL |= {
    name: replace(_ALL[like], family=name, is_slow=True)
    for name, like in {
        "paligemma2": "paligemma",
        "qwen3_vl_moe": "qwen3_vl",
        "qwen3_5_moe": "qwen3_5",
        "cosmos3_omni": "qwen3_vl",
        "qwen4_exp": "qwen3_vl",
        "mistral3_moe": "mistral3",
        "mistral_large4": "mistral3",
        "glm4v_moe": "glm4v",
        "gemma4_moe": "gemma4",
        "inkling2_loop": "inkling2",
    }.items()
}

# an older transformers has fewer families
KINDS = {name: kind for name, kind in _ALL.items() if kind.family in FAMILIES}

"""All families by name."""

from transformers import CONFIG_MAPPING

from .absolute import ABSOLUTE
from .dense import DENSE
from .hybrids import HYBRIDS
from .mixtures import MIXTURES
from .omni import OMNI
from .per_layer import PER_LAYER
from .settings import since

_ALL = [*DENSE, *MIXTURES, *HYBRIDS, *PER_LAYER, *ABSOLUTE, *OMNI]

# An older transformers has fewer families, and cannot be trusted with one (`backbone_attention._RIGHT_SINCE`).
_KNOWN = [name for name in CONFIG_MAPPING if name != "minimax_m3_vl" or since("5.23")]
FAMILIES = {family.name: family for family in _ALL if family.settings["model_type"] in _KNOWN}

"""All families by name."""

from transformers import CONFIG_MAPPING

from .absolute import ABSOLUTE
from .dense import DENSE
from .hybrids import HYBRIDS
from .mixtures import MIXTURES
from .omni import OMNI
from .per_layer import PER_LAYER
from .settings import WRONG_HERE

_ALL = [*DENSE, *MIXTURES, *HYBRIDS, *PER_LAYER, *ABSOLUTE, *OMNI]

# An older transformers has fewer families, and some releases cannot be trusted with one.
FAMILIES = {
    family.name: family
    for family in _ALL
    if family.settings["model_type"] in CONFIG_MAPPING and family.settings["model_type"] not in WRONG_HERE
}

"""Names of models and datasets as strangers may read them."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..named_models import TABLETOP, TABLETOP_VLM


def hub_id(name: str | None) -> str | None:
    """`name` if it is one on the Hub (owner/name), and None if it is a folder of this machine."""
    if not name or name.count("/") != 1 or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def vlm_name(name: str | Path) -> str:
    """A VLM as strangers may read it; the small one that comes with KIVLA by the name that commands take."""
    return TABLETOP if Path(name) == TABLETOP_VLM else public_name(name)


def public_name(name: str | Path | None) -> str | None:
    """A dataset or model as strangers may read it: a name on the Hub as it is; of a folder its path from here, and
    where that leads outside, its name alone."""
    if name is None or hub_id(str(name)):
        return name
    full = Path(name).absolute()
    return f"./{full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full.name}"

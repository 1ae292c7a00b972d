"""Models by the names that people give them: a folder, an id of the Hugging Face Hub, or the VLM of this package."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import PreTrainedConfig

TABLETOP = "tabletop"
TABLETOP_VLM = Path(__file__).parent / "simulation" / "tabletop_vlm"
NOT_FOUND = (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled)


def find_vlm(name: str) -> str:
    """Return the folder of the small VLM that comes with this package for `tabletop`; other names as they are.

    A folder of this name in the working directory comes first.
    """
    return str(TABLETOP_VLM) if name == TABLETOP and not Path(name).is_dir() else name


def model_type(model: str | os.PathLike, what: str, known: Sequence[str] = ()) -> str | None:
    """Say what kind of model this is by its config.json: "kivla" for a policy. No weights are read.

    Args:
        model: a folder or a Hub id.
        what: what it should be, for the message: "policy", or with its option, "VLM (--vlm)".
        known: short names that it may be a misspelling of.

    Raises:
        FileNotFoundError: there is neither, or the folder holds no model.
    """
    if not Path(model).is_dir():
        try:
            hf_hub_download(str(model), "config.json")
        except NOT_FOUND as error:
            raise not_found(str(model), what, error, known) from error
    elif not (Path(model) / "config.json").is_file():
        raise FileNotFoundError(f"{model} is a folder without config.json: it holds no {what}.")
    return PreTrainedConfig.get_config_dict(model)[0].get("model_type")


def download(model: str | os.PathLike, what: str) -> Path:
    """Return the folder of a model, downloaded if it is on the Hub.

    Raises:
        FileNotFoundError: it is neither there nor here.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(str(model)))
    except NOT_FOUND as error:
        raise not_found(str(model), what, error) from error


def not_found(name: str, what: str, error: Exception, known: Sequence[str] = ()) -> FileNotFoundError:
    """Make the error for a name that is neither a folder nor on the Hub.

    Args:
        known: short names that it may be a misspelling of.
    """
    if "/" not in name and (near := difflib.get_close_matches(name, known, n=1)):
        return FileNotFoundError(f"{name!r} is neither a folder here nor a {what}. Did you mean {near[0]}?")
    if name.startswith(("/", ".", "~")):  # no id on the Hub does
        return FileNotFoundError(f"There is no folder {name}, hence no {what}.")
    return FileNotFoundError(
        f"{name!r} is neither a folder here nor a {what} that can be had from the Hugging Face Hub. Check the "
        f"spelling, and for a private one log in with `hf auth login`. ({error})"
    )


__all__ = ["NOT_FOUND", "TABLETOP", "TABLETOP_VLM", "download", "find_vlm", "model_type", "not_found"]

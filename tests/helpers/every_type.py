"""Every type of VLM that the installed transformers knows: held to the contract, refused with a reason, or neither."""

from transformers import AutoModelForImageTextToText

from tests.helpers.families import FAMILIES, REFUSED, Refused


def every_type() -> list[str]:
    """The model types that `AutoModelForImageTextToText` maps to a class."""
    return list(AutoModelForImageTextToText._model_mapping._model_mapping)


def held_types() -> dict[str, list[str]]:
    """The families by their model type: those that the contract is tested for."""
    held: dict[str, list[str]] = {}
    for name, family in FAMILIES.items():
        held.setdefault(family.settings["model_type"], []).append(name)
    return held


def refused_types() -> dict[str, Refused]:
    """The types of which no configuration can carry an expert."""
    held, types = held_types(), every_type()
    refused = {refused.settings["model_type"]: refused for refused in REFUSED.values()}
    return {name: refused[name] for name in types if name in refused and name not in held}

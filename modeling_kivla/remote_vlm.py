"""VLMs whose code transformers does not have: it comes along with their files, and then with the policy's.

The library loads such code where the caller says `trust_remote_code=True`. A policy builds its VLM from a config, in
many places, so the classes are made known to the Auto classes of this process, as a package of their own would do it.
"""

import os
from pathlib import Path

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module

_MODEL, _CONFIG = AutoModelForImageTextToText.__name__, AutoConfig.__name__


def register_vlm_code(config: dict, folder: str | os.PathLike, **hub_kwargs) -> None:
    """Make the classes of a VLM known that a config names in its `auto_map`, if the library lacks its type.

    Args:
        config: the VLM's config, as it lies in a file.
        folder: where the code lies beside it, a folder or a Hub id.
        **hub_kwargs: how to get it (`revision`, `token`, ...); with `trust_remote_code=True`, or nothing is done.
    """
    classes = config.get("auto_map", {})
    trusted = hub_kwargs.pop("trust_remote_code", False)
    if not trusted or config.get("model_type") in CONFIG_MAPPING or not {_MODEL, _CONFIG} <= classes.keys():
        return
    config_class = get_class_from_dynamic_module(classes[_CONFIG], folder, **hub_kwargs)
    model_class = get_class_from_dynamic_module(classes[_MODEL], folder, **hub_kwargs)
    config_class.register_for_auto_class()
    model_class.register_for_auto_class(_MODEL)
    AutoConfig.register(config["model_type"], config_class)
    AutoModelForImageTextToText.register(config_class, model_class)


def save_vlm_code(vlm: PreTrainedModel, folder: str) -> None:
    """Put the VLM's code beside the policy, and its classes into the VLM's config, if it came with its files."""
    if vlm._auto_class is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        custom_object_save(vlm, folder, config=vlm.config)


def known_config(values: dict) -> PreTrainedConfig:
    """The config that a dict with its `model_type` is.

    Raises:
        ValueError: a type that neither the library knows nor anyone has registered.
    """
    if values["model_type"] not in CONFIG_MAPPING:
        raise ValueError(
            f"'{values['model_type']}' is no type of model that this transformers knows. If the policy brings the code "
            "of its VLM along and you trust it, load it by KIVLAForActionPrediction.from_pretrained(..., "
            "trust_remote_code=True); otherwise import the package that registers the type first."
        )
    return AutoConfig.for_model(**values)

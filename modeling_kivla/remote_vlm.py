"""VLMs whose code transformers does not have: it comes along with their files, and then with the policy's.

The library loads such code where the caller says `trust_remote_code=True`. A policy builds its VLM from a config, in
many places, so the classes are made known to the Auto classes of this process, as a package of their own would do it.
"""

import os
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

_MODEL, _CONFIG = AutoModelForImageTextToText.__name__, AutoConfig.__name__


class UnreadVLMConfig(PreTrainedConfig):
    """The config of a VLM whose code is not known yet, as it lies in a policy's file.

    `pipeline` and the Auto classes read a policy's config first, and tell only its model whether code is trusted.
    """

    def __init__(self, values: dict):
        super().__init__()
        self.values = values
        vars(self)["model_type"] = values["model_type"]

    def to_dict(self) -> dict:
        return {**self.values, "transformers_version": transformers.__version__}  # as every config's


def load_vlm_config(name: str | os.PathLike, trust_remote_code: bool = False, **hub_kwargs) -> PreTrainedConfig:
    """The config of a VLM, a folder or a Hub id, whose code is made known if it comes along with its files.

    A type that the library knows, or that a package has registered, is theirs, whatever lies beside its files.

    Raises:
        ValueError: code comes along, and nobody said that it is trusted.
    """
    values, _ = PreTrainedConfig.get_config_dict(name, **hub_kwargs)
    if is_known_without_files(values.get("model_type")):
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    if "auto_map" in values and not trust_remote_code:
        raise ValueError(
            f"'{values.get('model_type')}' is no type of model that this transformers knows; {name} brings its code "
            "along. If you trust it, give trust_remote_code=True, on the command line --trust_remote_code true."
        )
    register_vlm_code(values, name, **hub_kwargs)
    return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **hub_kwargs)


def is_known_without_files(model_type: str | None) -> bool:
    """Whether the classes of a type are the library's or a package's, and no code that came along with files."""
    if model_type not in CONFIG_MAPPING:
        return False
    return not CONFIG_MAPPING[model_type].__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME)


def register_vlm_code(config: dict, folder: str | os.PathLike, **hub_kwargs) -> None:
    """Run the code that a VLM's config names in its `auto_map`, and make its classes known.

    Nothing is done for a type of the library's or of a package. Where one came so before, perhaps with other code, this
    one takes its place.

    Args:
        config: the VLM's config, as it lies in a file.
        folder: where the code lies beside it, a folder or a Hub id.
        **hub_kwargs: how to get it (`revision`, `token`, ...).
    """
    classes = config.get("auto_map", {})
    if is_known_without_files(config.get("model_type")) or not {_MODEL, _CONFIG} <= classes.keys():
        return
    config_class = get_class_from_dynamic_module(classes[_CONFIG], folder, **hub_kwargs)
    model_class = get_class_from_dynamic_module(classes[_MODEL], folder, **hub_kwargs)
    config_class.register_for_auto_class()
    model_class.register_for_auto_class(_MODEL)
    AutoConfig.register(config["model_type"], config_class, exist_ok=True)
    AutoModelForImageTextToText.register(config_class, model_class, exist_ok=True)


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
            "of its VLM along and you trust it, load it with trust_remote_code=True (pipeline, from_pretrained), on "
            "the command line --trust_remote_code true; otherwise import the package that registers the type first."
        )
    return AutoConfig.for_model(**values)

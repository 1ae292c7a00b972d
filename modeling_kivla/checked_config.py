"""A config that checks its fields: misspelt names, and values that are set after construction."""

import difflib
from dataclasses import fields
from functools import cache

from transformers import PreTrainedConfig

# What the library itself gives a config beside its fields, or writes into its file.
_LIBRARY = {
    *("attn_implementation", "auto_map", "custom_pipelines", "experts_implementation", "model_type", "name_or_path"),
    *("num_labels", "output_attentions", "per_layer_config", "quantization_config", "tie_word_embeddings"),
    *("torch_dtype", "use_cache", "use_return_dict"),
}


class CheckedConfig(PreTrainedConfig):
    """A config that refuses a misspelt field, and a value out of range that is set after construction.

    Files are another matter: what another version wrote is kept as the library keeps it, as an attribute.
    """

    def __post_init__(self, **kwargs):
        unknown = _unknown(type(self), kwargs)
        if unknown:
            names = [field.name for field in fields(self)]
            near = difflib.get_close_matches(unknown[0], names, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Its fields: {', '.join(_own(type(self)))}."
            raise TypeError(f"{type(self).__name__} has no field `{unknown[0]}`. {hint}")
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        unknown = _unknown(cls, config_dict)
        known = {name: value for name, value in config_dict.items() if name not in unknown}
        result = super().from_dict(known, **kwargs)
        config = result[0] if isinstance(result, tuple) else result  # with return_unused_kwargs
        for name in unknown:
            setattr(config, name, config_dict[name])
        return result

    def __setattr__(self, name, value):
        is_set_again = name in vars(self) and name in _own(type(self))
        before = vars(self).get(name)
        super().__setattr__(name, value)
        if is_set_again and self.is_complete():
            try:
                self.validate_architecture()
            except ValueError:
                super().__setattr__(name, before)
                raise

    def is_complete(self) -> bool:
        """Whether all fields are there, so that they can be looked at together."""
        return vars(self).keys() >= set(_own(type(self)))


@cache
def _own(config_class: type) -> list[str]:
    library = {field.name for field in fields(PreTrainedConfig)}
    return [field.name for field in fields(config_class) if field.name not in library]


def _unknown(config_class: type, given: dict) -> list[str]:
    known = {field.name for field in fields(config_class)} | _LIBRARY
    return [name for name in given if name not in known and not name.startswith("_")]

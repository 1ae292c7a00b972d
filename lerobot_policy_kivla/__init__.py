"""KIVLA policies in LeRobot.

LeRobot imports this package because of its name (`register_third_party_plugins`) and derives all else from the config's
name and module: `KivlaPolicy` in `modeling_kivla.py` and `make_kivla_pre_post_processors` in `processor_kivla.py`.
"""

from .configuration_kivla import KivlaConfig

__all__ = ["KivlaConfig"]

"""Environments by name. What each must offer is written at `make_env`."""

from collections.abc import Sequence
from importlib import import_module

import yaml

# Imported when asked for: an environment may need packages of an extra.
ENVIRONMENTS = {
    "metaworld": "kivla.simulation.metaworld_env:MetaWorldVectorEnv",
    "tabletop": "kivla.simulation.tabletop.env:TabletopVectorEnv",
}


def make_env(name: str, num_envs: int, **options):
    """`num_envs` copies of an environment that step together (`gymnasium.vector.VectorEnv` semantics).

    Every environment follows one interface:

    * `obs, info = env.reset(seed=[...], options=None)`, one seed for each copy;
      `options={"instruction": [...]}` tells the policy other sentences, in the same scenes;
    * `obs, reward, terminated, truncated, info = env.step(actions)`, actions float32 (N, Da). A finished copy keeps
      its state and ignores actions until the next reset;
    * `obs` is `{"images": {camera: uint8 (N, H, W, 3)}, "state": float32 (N, Ds)}`;
    * `info["instruction"]` is what each copy is asked to do, `info["success"]` (N,) whether its *original* instruction
      is fulfilled, `info["swapped_instruction"]` (at reset) a sentence about another object of the same scene, and
      `info["swapped_success"]` (N,) whether that is fulfilled after a reset with it;
    * `num_envs`, `cameras`, `state_dim`, `action_dim`, `state_names`, `action_names`, `fps`, `robot_type`.

    Args:
        name: a key of `ENVIRONMENTS`.
        options: for the environment's constructor.

    Raises:
        ValueError: there is no such environment.
    """
    if name not in ENVIRONMENTS:
        raise ValueError(f"There is no environment {name!r}. Environments: {', '.join(sorted(ENVIRONMENTS))}.")
    module, _, attribute = ENVIRONMENTS[name].partition(":")
    return getattr(import_module(module), attribute)(num_envs, **options)


def parse_options(options: Sequence[str]) -> dict:
    """`["size=48", "tasks=[touch, push]"]` -> `{"size": 48, "tasks": ["touch", "push"]}`.

    Raises:
        ValueError: an option without "=".
    """
    pairs = [option.partition("=") for option in options]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"Options of an environment are written NAME=VALUE, got {wrong[0]!r}.")
    return {name: yaml.safe_load(value) for name, _, value in pairs}

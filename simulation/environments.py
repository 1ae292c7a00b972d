"""Environments by name, and what each must offer."""

import numbers
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Protocol

import numpy as np
import yaml

from ..processing.plugins import check_has, find_class

# Imported when asked for: an environment may need packages of an extra. Other packages name theirs in pyproject.toml:
# [project.entry-points."kivla.environments"]
ENVIRONMENTS: dict[str, str | type] = {
    "hidden": "kivla.simulation.hidden_tabletop:HiddenTabletopVectorEnv",
    "metaworld": "kivla.simulation.metaworld_env:MetaWorldVectorEnv",
    "moving": "kivla.simulation.moving_tabletop.env:MovingTabletopVectorEnv",
    "tabletop": "kivla.simulation.tabletop.env:TabletopVectorEnv",
}
ENTRY_POINTS = "kivla.environments"
ENV_HELP = f"Environment: {', '.join(ENVIRONMENTS)}, one of another package, or pkg.module:Class of your own."


class Environment(Protocol):
    """N copies of an environment that step together (`gymnasium.vector.VectorEnv` semantics), for roll-outs.

    It is made as `Class(num_envs, **options)`. One of your own needs no base class.

    * `obs` is `{"images": {camera: uint8 (N, H, W, 3)}, "state": float32 (N, Ds)}`;
    * `info["instruction"]` is what each copy is asked to do, and `info["success"]` (N,) whether its *original*
      instruction is fulfilled. For the control with swapped instructions `info["swapped_instruction"]` is (at reset) a
      sentence about another object of the same scene, and `info["swapped_success"]` (N,) whether that is fulfilled
      after a reset with it; an environment without them is rolled out with `--swapped false`. Where the instruction has
      a word that was never demonstrated, `info["word"]` is (at reset) that word, and `info["plain_instruction"]` the
      same sentence in demonstrated words: both are rolled out, and compared word by word. Where tasks have parts,
      `info["subtask"]` is the one that each copy has to do now, after every reset and step: it is recorded.
      An environment that knows how far an episode has come says so in `info["phases"]`, after every reset and step: a
      mapping for each copy, from the phases of what it was told, in their order ("reached the cup", "held the cup"), to
      whether it got there so far. They are counted, so that a report says where a policy fails. Copies with other tasks
      may have other phases; one that has none has an empty mapping. Where scenes are of several tasks, `info["task"]`
      is (at reset) the name of each copy's: success is then reported task by task, too.

    Where the same action again does not mean to stay (offsets, speeds), `hold(actions)` gives, for the last actions
    (N, Da), those that do. A policy that is waited for needs them; an environment without it gets its last ones again.

    Attributes:
        num_envs: N.
        cameras: names of the cameras; the first one is filmed.
        action_dim: Da.
        fps: steps per second.
    """

    num_envs: int
    action_dim: int
    fps: int

    @property
    def cameras(self) -> Sequence[str]: ...

    def reset(self, *, seed: list[int], options: dict | None = None) -> tuple[dict, dict]:
        """Begin new scenes, one seed for each copy (the same seed is the same scene), and return `obs, info`.

        `options={"instruction": [...]}` tells the policy other sentences, in the same scenes.
        """

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Act, float32 (N, Da), and return `obs, reward, terminated, truncated, info`.

        A finished copy keeps its state and ignores actions until the next reset.
        """

    def close(self) -> None:
        """Give back what it holds."""


class Demonstrator(Environment, Protocol):
    """An environment with a scripted expert, for `kivla record`.

    Attributes:
        state_names, action_names: names of the dimensions.
        robot_type: for the dataset's metadata.
    """

    robot_type: str

    @property
    def state_names(self) -> Sequence[str]: ...

    @property
    def action_names(self) -> Sequence[str]: ...

    def expert_actions(self) -> np.ndarray:
        """Return what the expert does now, (N, Da)."""


def make_env(name: str, num_envs: int, **options) -> Environment:
    """Make `num_envs` copies of an environment, see `Environment`.

    Args:
        name: a key of `ENVIRONMENTS`, a name that an installed package gives its own (`ENTRY_POINTS`), or the place of
            a class, `pkg.module:Class`.
        options: for the environment's constructor.

    Raises:
        ValueError: there is no such environment, or it has no such option.
        TypeError: it lacks something; the message names what.
    """
    found = find_class(name, ENVIRONMENTS, ENTRY_POINTS, "environment")
    has = list(signature(found).parameters.values())[1:]  # after num_envs
    names = [parameter.name for parameter in has]
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in has):
        for option in [option for option in options if option not in names]:
            raise ValueError(f"For the environment {name} there is no option {option}. It has: {', '.join(names)}.")
    for parameter in has:
        if parameter.name in options:
            _check_number(parameter, options[parameter.name])
    env = found(num_envs, **options)
    check_environment(env)
    return env


def _check_number(parameter: Parameter, value) -> None:
    """Refuse what is no number where a constructor says that it takes one: YAML reads `nan` and `1,5` as words."""
    wanted: type = {int: numbers.Integral, float: numbers.Real}.get(parameter.annotation, object)
    if wanted is not object and (isinstance(value, bool) or not isinstance(value, wanted)):
        what = "a whole number" if wanted is numbers.Integral else "a number"
        raise ValueError(f"{parameter.name} of the environment must be {what}, got {value!r}.")


def check_environment(env, protocol: type = Environment) -> None:
    """Check that an environment has all that is needed.

    Args:
        protocol: `Environment`, or `Demonstrator` for recording.

    Raises:
        TypeError: something of it is missing; the message names what.
    """
    ours = [kind for kind in protocol.__mro__ if kind.__module__ == __name__]
    names = dict.fromkeys(name for kind in ours for name in (*kind.__annotations__, *vars(kind)))
    what = "an environment" if protocol is Environment else "an environment to record"
    advice = f"kivla.simulation.environments.{protocol.__name__} says what each is."
    check_has(env, (name for name in names if not name.startswith("_")), what, advice)


def check_first(env: Environment, observation: dict, info: dict) -> None:
    """Check that what an environment returns from `reset` is what `Environment` says.

    Raises:
        ValueError: naming what is missing, or of another shape.
    """
    problems = [f"obs has no {name!r}" for name in ("images", "state") if name not in observation]
    problems += [f"info has no {name!r}" for name in ("instruction", "success") if name not in info]
    images = observation.get("images", {})
    problems += [f"obs['images'] has no camera {camera!r}" for camera in env.cameras if camera not in images]
    wanted = f"uint8 ({env.num_envs}, height, width, 3)"
    for camera, pictures in images.items():
        shape = pictures.shape
        if pictures.dtype != np.uint8 or len(shape) != 4 or (shape[0], shape[3]) != (env.num_envs, 3):
            problems.append(f"obs['images'][{camera!r}] must be {wanted}, got {pictures.dtype} {shape}")
    if "state" in observation and (np.ndim(observation["state"]) != 2 or len(observation["state"]) != env.num_envs):
        problems.append(f"obs['state'] must be ({env.num_envs}, Ds), got {np.shape(observation['state'])}")
    for name in ("instruction", "success", "phases", "task"):
        if name in info and len(info[name]) != env.num_envs:
            problems.append(f"info[{name!r}] must have {env.num_envs} entries, got {len(info[name])}")
    if any(not isinstance(of_copy, Mapping) for of_copy in info.get("phases", ())):
        problems.append("info['phases'] must be a mapping for each copy: {'reached the cup': False}")
    if problems:
        raise ValueError(f"{type(env).__name__}.reset() does not return what it should: {'; '.join(problems)}.")


def parse_options(options: Sequence[str]) -> dict:
    """Read options: `["size=48", "tasks=[touch, push]"]` -> `{"size": 48, "tasks": ["touch", "push"]}`.

    Raises:
        ValueError: an option without "=".
    """
    pairs = [option.partition("=") for option in options]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"Options of an environment are written NAME=VALUE, got {wrong[0]!r}.")
    return {name: yaml.safe_load(value) for name, _, value in pairs}

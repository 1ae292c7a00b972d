"""A gymnasium environment for `lerobot-eval` that replays observations and writes down what the policy did.

LeRobot imports this package with `--env.discover_packages_path=tiny_env`. `TINY_ENV_DATA` names an .npz with `images`
(n, height, width, 3), `state` (n, Ds) and `texts`; actions are appended to `actions.jsonl` beside it.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig

STEPS = 5


class TinyEnv(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's form)

    def __init__(self, camera: str, render_mode: str = "rgb_array"):
        file = Path(os.environ["TINY_ENV_DATA"])
        self.data, self.log = np.load(file), file.with_name("actions.jsonl")
        self.camera, self.render_mode, self._max_episode_steps = camera, render_mode, STEPS
        self.task_description = str(self.data["texts"][0])
        shape, dim = self.data["images"].shape[1:], self.data["state"].shape[1]
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Dict({camera: gymnasium.spaces.Box(0, 255, shape, np.uint8)}),
                "agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (dim,), np.float64),
            }
        )
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def _observation(self) -> dict:
        i = self.step_number % len(self.data["images"])
        return {"pixels": {self.camera: self.data["images"][i]}, "agent_pos": self.data["state"][i].astype(np.float64)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return self._observation(), {"is_success": False}

    def step(self, action):
        with open(self.log, "a") as log:
            log.write(json.dumps([float(value) for value in action]) + "\n")
        self.step_number += 1
        done = self.step_number == STEPS
        return self._observation(), float(action[0]), done, False, {"is_success": done}

    def render(self):
        return self._observation()["pixels"][self.camera]


gymnasium.register("gym_tiny/Tiny-v0", entry_point=TinyEnv)


@EnvConfig.register_subclass("tiny")
@dataclass
class TinyEnvConfig(EnvConfig):
    task: str | None = "Tiny-v0"
    camera: str = "front"
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (4,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (4,)),
        }
    )
    features_map: dict[str, str] = field(default_factory=lambda: {"action": "action", "agent_pos": "observation.state"})

    def __post_init__(self):
        self.features["pixels"] = PolicyFeature(FeatureType.VISUAL, (96, 96, 3))
        self.features_map["pixels"] = f"observation.images.{self.camera}"

    @property
    def gym_kwargs(self) -> dict:
        return {"camera": self.camera}

"""Let a policy learn and act in an environment of your own. Here: a pointer, a red and a blue disc, and a sentence.

    python examples/own_environment.py    # writes demonstrations of the scripted expert

The class is all that the commands need, in the repository's root:

    kivla record outputs/discs --env examples.own_environment:TwoDiscs --num_episodes 500
    kivla train examples/train.yaml --dataset outputs/discs --max_action_dim 2 --output_dir outputs/discs_policy
    kivla rollout outputs/discs_policy --env examples.own_environment:TwoDiscs
"""

import argparse
from collections.abc import Sequence

import gymnasium
import numpy as np

from kivla import LeRobotDataset
from kivla.simulation import record_demonstrations

COLORS = {"red": (226, 45, 45), "blue": (51, 92, 245)}
POINTER, BACKGROUND = (255, 255, 255), (32, 33, 38)
STEP, REACH = 0.1, 0.15  # both in units of the picture, which reaches from -1 to 1


class TwoDiscs(gymnasium.vector.VectorEnv):
    """N pictures, each with a pointer that is to touch one of two discs; see `kivla.simulation.environments`."""

    cameras: Sequence[str] = ("top",)
    state_names: Sequence[str] = ("x", "y")
    action_names: Sequence[str] = ("dx", "dy")
    state_dim, action_dim, fps, robot_type = 2, 2, 10, "pointer"
    single_action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, num_envs: int = 1, max_steps: int = 40):
        self.num_envs, self.max_steps = num_envs, max_steps

    def reset(self, *, seed: list[int], options: dict | None = None) -> tuple[dict, dict]:
        """New scenes, one seed for each; `options={"instruction": [...]}` tells the policy other sentences in them."""
        rngs = [np.random.default_rng(s) for s in seed]
        self.pointer = np.array([rng.uniform(-0.9, 0.9, 2) for rng in rngs])  # (N, 2)
        heights = np.array([rng.uniform(-0.8, 0.8, 2) for rng in rngs])
        sides = np.array([rng.permutation([-0.7, 0.7]) for rng in rngs])
        self.discs = np.stack([sides, heights], axis=-1)  # (N, 2 discs, 2)
        self.target = np.array([rng.integers(2) for rng in rngs])  # (N,), 0 = red, 1 = blue
        sentences = [f"touch the {color} circle" for color in COLORS]
        self.swapped_instruction = [sentences[1 - target] for target in self.target]
        self.instruction = (options or {}).get("instruction") or [sentences[target] for target in self.target]
        self.touched, self.steps = np.full(self.num_envs, -1), np.zeros(self.num_envs, int)  # -1: nothing yet
        return self._observation(), self._info()

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Moves the pointers. Those that have touched a disc stay where they are."""
        running = (self.touched < 0) & (self.steps < self.max_steps)
        self.pointer[running] += STEP * np.clip(actions, -1, 1)[running]
        self.steps += running
        distance = np.linalg.norm(self.discs - self.pointer[:, None], axis=-1)  # (N, 2 discs)
        self.touched[running & (distance.min(1) < REACH)] = distance.argmin(1)[running & (distance.min(1) < REACH)]
        terminated = self.touched >= 0
        reward = (running & (self.touched == self.target)).astype(float)
        return self._observation(), reward, terminated, ~terminated & (self.steps >= self.max_steps), self._info()

    def expert_actions(self) -> np.ndarray:
        """(N, 2), straight to the target. Only `kivla record` needs it."""
        way = self.discs[np.arange(self.num_envs), self.target] - self.pointer
        return np.clip(way / STEP, -1, 1)

    def _observation(self) -> dict:
        return {"images": {"top": self._pictures()}, "state": self.pointer.astype(np.float32)}

    def _info(self) -> dict:
        success, swapped = self.touched == self.target, self.touched == 1 - self.target
        return {
            "instruction": self.instruction,
            "swapped_instruction": self.swapped_instruction,
            "success": success,
            "swapped_success": swapped,
        }

    def _pictures(self, size: int = 48) -> np.ndarray:
        """uint8 (N, size, size, 3)"""
        grid = (np.arange(size) + 0.5) / size * 2 - 1
        pictures = np.full((self.num_envs, size, size, 3), BACKGROUND, np.uint8)
        marks = [(self.discs[:, 0], 0.16, COLORS["red"]), (self.discs[:, 1], 0.16, COLORS["blue"])]
        for places, radius, color in [*marks, (self.pointer, 0.08, POINTER)]:
            x, y = places[:, :1, None], places[:, 1:, None]  # (N, 1, 1)
            pictures[np.hypot(grid - x, -grid[:, None] - y) < radius] = color
        return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description="Record demonstrations in an environment of your own.")
    parser.add_argument("--output_dir", default="outputs/discs")
    parser.add_argument("--num_episodes", type=int, default=200)
    args = parser.parse_args()
    record_demonstrations(TwoDiscs(min(50, args.num_episodes)), args.output_dir, args.num_episodes)
    print(LeRobotDataset(args.output_dir))


if __name__ == "__main__":
    main()

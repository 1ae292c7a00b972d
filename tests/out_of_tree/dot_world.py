"""An environment of a user's own, in one file: a dot is to be moved to the left or to the right border."""

import numpy as np

SIZE, SPEED = 32, 0.1
WORDS = ("go left", "go right")


class DotWorld:
    cameras = ("front",)
    state_names = action_names = ("x", "y")
    action_dim = 2
    fps = 10
    robot_type = "dot"

    def __init__(self, num_envs, steps=8):
        self.num_envs, self.steps = num_envs, steps

    def reset(self, seed, options=None):
        self.place = np.array([np.random.default_rng(s).uniform(0.4, 0.6, 2) for s in seed])
        self.goal = np.array([s % 2 for s in seed])
        self.told = [WORDS[goal] for goal in self.goal] if options is None else list(options["instruction"])
        self.step_number = np.zeros(self.num_envs, int)
        return self._observe(), {**self._info(), "swapped_instruction": [WORDS[1 - goal] for goal in self.goal]}

    def step(self, actions):
        running = ~self._arrived() & (self.step_number < self.steps)
        self.place[running] = np.clip(self.place + np.clip(actions, -1, 1) * SPEED, 0, 1)[running]
        self.step_number += running
        arrived = self._arrived()
        late = ~arrived & (self.step_number >= self.steps)
        return self._observe(), arrived.astype(np.float32), arrived, late, self._info()

    def expert_actions(self):
        return np.stack([2.0 * self.goal - 1, np.zeros(self.num_envs)], axis=1).astype(np.float32)

    def close(self):
        pass

    def _arrived(self):
        return (self.place[:, 0] < 0.1) | (self.place[:, 0] > 0.9)

    def _observe(self):
        pictures = np.zeros((self.num_envs, SIZE, SIZE, 3), np.uint8)
        column, row = (self.place * (SIZE - 1)).astype(int).T
        pictures[np.arange(self.num_envs), row, column] = 255
        return {"images": {"front": pictures}, "state": self.place.astype(np.float32)}

    def _info(self):
        right = self.place[:, 0] > 0.9
        left = self.place[:, 0] < 0.1
        return {
            "instruction": self.told,
            "success": np.where(self.goal, right, left),
            "swapped_success": np.where(self.goal, left, right),
        }

"""A tiny environment with the interface of `kivla.simulation.environments.make_env`, for tests of what uses it."""

import numpy as np

HEIGHT, WIDTH = 12, 16
INSTRUCTIONS = ("go left", "go right")


class FakeVectorEnv:
    """A dot that has to go to the left or to the right border, before a coloured background drawn from the seed.

    Observations are written into the same memory at every step, as fast environments do.

    Args:
        num_envs: N.
        failing_seeds: in these episodes the expert does not move, and runs out of time.
    """

    cameras = ("front", "wrist")
    state_names = ("x", "speed")
    action_names = ("dx",)
    state_dim, action_dim = 2, 1
    fps = 5
    robot_type = "dot"
    max_steps = 20

    def __init__(self, num_envs, failing_seeds=()):
        self.num_envs = num_envs
        self.failing_seeds = set(failing_seeds)
        self.images = {name: np.zeros((num_envs, HEIGHT, WIDTH, 3), np.uint8) for name in self.cameras}
        self.state = np.zeros((num_envs, 2), np.float32)

    def reset(self, seed, options=None):
        assert len(seed) == self.num_envs, "one seed for each copy of the environment"
        generators = [np.random.default_rng(s) for s in seed]
        self.backgrounds = np.stack([g.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for g in generators])
        self.x = np.array([g.integers(5, 11) for g in generators])
        self.goal = np.array([g.choice([0, WIDTH - 1]) for g in generators])
        self.stuck = np.array([s in self.failing_seeds for s in seed])
        self.state[:, 1] = 0
        self.steps = np.zeros(self.num_envs, int)
        self.success = np.zeros(self.num_envs, bool)
        return self._observe(), self._info()

    def step(self, actions):
        assert actions.dtype == np.float32 and actions.shape == (self.num_envs, 1)
        running = ~(self.success | (self.steps >= self.max_steps))
        move = np.rint(actions[:, 0]).astype(int) * running
        self.x = np.clip(self.x + move, 0, WIDTH - 1)
        self.state[running, 1] = actions[running, 0]
        self.steps += running
        self.success |= self.x == self.goal
        truncated = ~self.success & (self.steps >= self.max_steps)
        return self._observe(), self.success.astype(np.float32), self.success.copy(), truncated, self._info()

    def close(self):
        pass

    def expert_actions(self):
        # Not quite whole numbers, and different at every step, so that mixed-up frames are found out.
        return ((np.sign(self.goal - self.x) + 0.01 * self.steps) * ~self.stuck).astype(np.float32)[:, None]

    def _observe(self):
        self.state[:, 0] = self.x / WIDTH
        self.images["front"][:] = self.backgrounds
        self.images["wrist"][:] = 255 - self.backgrounds
        for image in self.images.values():
            image[np.arange(self.num_envs), :, self.x] = [255, 0, 0]
        return {"images": self.images, "state": self.state}

    def _info(self):
        return {
            "instruction": [INSTRUCTIONS[int(goal > 0)] for goal in self.goal],
            "success": self.success.copy(),
        }

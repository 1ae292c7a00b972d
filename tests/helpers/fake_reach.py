"""The smallest environment with the interface of `make_env`: move the hand onto the named one of two coloured dots.

One dot is on the left and one on the right, at heights drawn from the seed; even seeds name the red one, odd seeds the
blue one, and which is on the left is drawn. The hand starts in the middle, so that a straight way to one dot never
meets the other.
"""

import numpy as np

from kivla.simulation.environments import ENVIRONMENTS

SIZE = 32  # pixels
SPEED = 0.1
RADIUS = 0.08
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


class FakeReachVectorEnv:
    """Success and failure both end an episode: only the first touch counts.

    Args:
        camera: its only camera's name.
        action_dim: the first two values of an action move the hand; the others do nothing.
    """

    fps = 10
    robot_type = "dot"

    def __init__(self, num_envs: int, camera: str = "front", action_dim: int = 2):
        self.num_envs = num_envs
        self.cameras = [camera]
        self.state_dim = self.action_dim = action_dim
        self.state_names = self.action_names = [f"value {i}" for i in range(action_dim)]
        self.steps_taken = np.zeros(num_envs, dtype=int)  # while running; for the tests
        self.actions = []  # every `step`'s; for the tests

    def reset(self, seed, options=None):
        assert len(seed) == self.num_envs
        draws = [np.random.default_rng(s) for s in seed]
        left = np.array([d.integers(2) for d in draws])  # 0 = red, 1 = blue
        self.dots = np.array([d.uniform(0.1, 0.9, (2, 2)) for d in draws])  # (N, colour, xy)
        rows = np.arange(self.num_envs)
        self.dots[rows, left, 0], self.dots[rows, 1 - left, 0] = 0.15, 0.85
        self.hand = np.full((self.num_envs, 2), 0.5)
        self.target = np.array([s % 2 for s in seed])
        own = [f"touch {list(COLORS)[target]}" for target in self.target]
        other = [f"touch {list(COLORS)[1 - target]}" for target in self.target]
        self.instruction = own if options is None else list(options["instruction"])
        self.touched = np.full(self.num_envs, -1)
        self.steps_taken[:] = 0
        return self._observation(), {**self._info(), "swapped_instruction": other}

    def step(self, actions):
        assert actions.shape == (self.num_envs, self.action_dim)
        self.actions.append(actions.copy())
        running = self.touched < 0
        self.steps_taken += running
        self.hand[running] += np.clip(actions[running, :2], -SPEED, SPEED)
        distance = np.linalg.norm(self.dots - self.hand[:, None], axis=-1)
        touches = running & (distance.min(axis=1) < RADIUS)
        self.touched[touches] = distance.argmin(axis=1)[touches]
        ended = self.touched >= 0
        return self._observation(), np.zeros(self.num_envs), ended, np.zeros(self.num_envs, dtype=bool), self._info()

    def close(self):
        pass

    def _info(self) -> dict:
        return {
            "instruction": self.instruction,
            "success": self.touched == self.target,
            "swapped_success": self.touched == 1 - self.target,
        }

    def _observation(self) -> dict:
        images = np.full((self.num_envs, SIZE, SIZE, 3), 255, dtype=np.uint8)
        for image, dots, hand in zip(images, self.dots, self.hand, strict=True):
            x, y = (np.clip(hand, 0, 0.99) * SIZE).astype(int)
            image[y, x] = 0
            for color, (x, y) in zip(COLORS.values(), (dots * SIZE).astype(int), strict=True):
                image[y, x] = color
        state = np.zeros((self.num_envs, self.state_dim), dtype=np.float32)
        state[:, :2] = self.hand
        return {"images": {self.cameras[0]: images}, "state": state}


class ReachPolicy:
    """Sees the dots in the image, and goes straight to the one that the sentence (or `color`) names.

    Args:
        color: go there whatever is said.
        horizon: actions in a chunk.
    """

    def __init__(self, color: str | None = None, horizon: int = 4):
        self.color = color
        self.horizon = horizon
        self.calls = []  # the observations of every call

    def __call__(self, observations: list[dict]) -> np.ndarray:
        self.calls.append(observations)
        return np.stack([self._chunk(observation) for observation in observations])

    def _chunk(self, observation: dict) -> np.ndarray:
        (image,) = observation["images"].values()
        color = COLORS[self.color or observation["text"].removeprefix("touch ")]
        ((y, x),) = np.argwhere((image == color).all(axis=-1))
        hand, goal = observation["state"][:2].astype(float), (np.array([x, y]) + 0.5) / SIZE
        chunk = np.zeros((self.horizon, len(observation["state"])))
        for action in chunk:
            action[:2] = np.clip(goal - hand, -SPEED, SPEED)
            hand = hand + action[:2]
        return chunk


ENVIRONMENTS["fake-reach"] = f"{__name__}:FakeReachVectorEnv"

"""What all our environments have in common: spaces, seeds, and a check of actions."""

from collections.abc import Sequence

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space


class OneCameraVectorEnv(gymnasium.vector.VectorEnv):
    """N copies with one camera and actions in [-1, 1]. Sub-classes have `cameras`, `action_dim` and `action_names`."""

    def hold(self, actions: np.ndarray) -> np.ndarray:
        """The actions that stay, after the last ones (N, Da): no offset, and the gripper (the last value) as it was."""
        return np.concatenate([np.zeros_like(actions[:, :-1]), actions[:, -1:]], axis=1)

    def _declare_spaces(self, image_size: int, state: gymnasium.spaces.Box) -> None:
        """Declare the spaces of pictures (image_size, image_size, 3), of the given states, and of actions."""
        image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.single_observation_space = gymnasium.spaces.Dict(
            {"images": gymnasium.spaces.Dict({self.cameras[0]: image}), "state": state}
        )
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (self.action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _seeds(self, seed: int | Sequence[int] | None) -> Sequence[int]:
        """One seed per copy: an int s stands for s, s + 1, ..., and None draws them."""
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
            return range(int(seed), int(seed) + self.num_envs)
        if seed is None:
            return self.np_random.integers(2**31, size=self.num_envs).tolist()
        return seed

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        """Refuse actions of another shape or that are not finite; return them as float64 (N, Da).

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (self.num_envs, self.action_dim) or not np.isfinite(actions).all():
            raise ValueError(
                f"Expected finite actions of shape {(self.num_envs, self.action_dim)} ({', '.join(self.action_names)})"
                f", got shape {actions.shape}{'' if np.isfinite(actions).all() else ' with NaN or infinity'}."
            )
        return actions

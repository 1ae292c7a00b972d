"""The hidden tabletop: one picture is not enough, since the objects are covered before the gripper can move.

On the tabletop all that a policy needs is in the picture of the moment. Here it must look back: a delayed response, as
psychology has it.
"""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from .tabletop.env import TabletopEnv, TabletopVectorEnv
from .tabletop.rendering import GRIPPER_COLOR, render
from .tabletop.scenes import SHAPE_NAMES, Scene

SHOWN = 10  # steps in which the objects are seen
HELD = 16  # steps in which the gripper stays where it is, whatever it is told
COVER = SHAPE_NAMES.index("circle")


class HiddenTabletopVectorEnv(TabletopVectorEnv):
    """N tables on which the objects are covered after 10 steps, and the gripper is held for the first 16.

    The sentence says which of the three objects to touch, as on the tabletop. A cover is a white disc, the same for
    all, and hides colour and shape; the objects stay where they are. From the 6 steps between cover and release on, a
    picture says nothing about which object is meant. A policy that sees the present alone touches the right one of
    three by chance, once in three times.

    A chunk that was planned while the objects were seen is over before the gripper is released, if it has at most 6
    actions: so no policy carries the answer over in it.

    * action, observation, reward, terminated, info and what a seed means: as `TabletopVectorEnv`'s, with tasks of the
      kind "touch" alone. The expert drives at the target from the first step on, also while it is held.

    Args:
        num_envs: N.
        image_size: height and width of the camera's picture, in pixels; 24 or more.
        max_steps: after so many steps an unfinished table is truncated.
        render_mode: "rgb_array" for `render()`.
        render_size: height and width of `render()`'s pictures.

    Raises:
        ValueError: an argument is none of the above.
    """

    def __init__(
        self,
        num_envs: int = 1,
        image_size: int = 48,
        max_steps: int = 60,
        render_mode: str | None = None,
        render_size: int = 192,
    ):
        super().__init__(
            num_envs, image_size=image_size, max_steps=max_steps, render_mode=render_mode, render_size=render_size
        )

    def render(self) -> tuple[np.ndarray, ...]:
        return tuple(render(self._seen_scene(), self.render_size))

    def _move(self, actions: np.ndarray, active: np.ndarray) -> None:
        super()._move(actions, active & (self.steps >= HELD))

    def _observe(self) -> dict:
        return {**super()._observe(), "images": {"top": render(self._seen_scene(), self.image_size)}}

    def _seen_scene(self) -> Scene:
        """The scene as it looks: with covers in the place of the objects of tables where they were shown."""
        is_covered = (self.steps >= SHOWN)[:, None]
        scene = self.scene
        return replace(
            scene,
            colors=np.where(is_covered, GRIPPER_COLOR, scene.colors),
            shapes=np.where(is_covered, COVER, scene.shapes),
        )


class HiddenTabletopEnv(TabletopEnv):
    """One table: `HiddenTabletopVectorEnv` with N = 1, without the leading dimension.

    `gymnasium.make("KIVLA/HiddenTabletop-v0")`.

    Args:
        options: as `HiddenTabletopVectorEnv`'s.
    """

    tables: ClassVar[type[TabletopVectorEnv]] = HiddenTabletopVectorEnv


__all__ = ["HELD", "SHOWN", "HiddenTabletopEnv", "HiddenTabletopVectorEnv"]

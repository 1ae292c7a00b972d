"""What a policy looks back on: a clip of frames in the place of a picture, rows of states in the place of a state.

A policy with the history k and the stride s sees frames of k moments, s control steps apart, the newest last. At the
beginning of an episode there are fewer, and then a clip is shorter: nothing stands in for what was never seen, neither
a repeated frame nor one of another episode. So a clip of n frames has the last n moments, always. Where one between is
missing, those before it are left out as well: they would be taken for later ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch

from .normalization import as_numbers


@dataclass(frozen=True)
class ObservationHistory:
    """Which moments a policy sees.

    Attributes:
        frames: how many, the present one among them; 1 for the present alone.
        stride: control steps from one to the next.

    Raises:
        ValueError: a number below 1, or a stride where there is only one moment.
    """

    frames: int = 1
    stride: int = 1

    def __post_init__(self):
        for name, value in (("history", self.frames), ("history_stride", self.stride)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if self.frames == 1 and self.stride != 1:
            raise ValueError(
                f"history_stride = {self.stride} is for a history of several frames, and history is 1: leave it out."
            )

    @property
    def reach(self) -> int:
        """How many control steps the oldest moment lies back."""
        return (self.frames - 1) * self.stride

    def steps(self, step: int) -> list[int]:
        """The steps of an episode that are seen at a step of it (counted from 0), oldest first: at most `frames`."""
        return list(range(step % self.stride if step < self.reach else step - self.reach, step + 1, self.stride))

    def __str__(self) -> str:
        if self.frames == 1:
            return "the present frame alone"
        return f"{self.frames} frames, {self.stride} control {'step' if self.stride == 1 else 'steps'} apart"


NO_HISTORY = ObservationHistory()


def unbroken(frames: Sequence) -> list:
    """The newest frames of a clip, back to the first that is missing (None); empty if the newest is."""
    missing = [i for i, frame in enumerate(frames) if frame is None]
    return list(frames[missing[-1] + 1 if missing else 0 :])


def is_clip(image) -> bool:
    """Whether this is several frames of a camera: a list of pictures, or an array (n, height, width, 3)."""
    return isinstance(image, list | tuple) or (isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 4)


def clip_of(image, history: ObservationHistory) -> list:
    """The frames of one camera that are there, oldest first; perhaps none.

    Args:
        image: a picture in any form (`as_rgb`), None where it is missing, or a clip of at most `history.frames`: a list
            of pictures, the newest last, or an array (n, height, width, 3).

    Raises:
        ValueError: a clip of more frames, or of none.
    """
    if not is_clip(image):
        return [] if image is None else [image]
    if not 1 <= len(image) <= history.frames:
        raise ValueError(
            f"there is a clip of {len(image)} frames, and this policy sees {history}. Give at most so many, the newest "
            "last (a list of fewer at the beginning of an episode; None for a camera that is missing)."
        )
    return unbroken(image)


def with_past(observation: Mapping, history: ObservationHistory) -> dict:
    """Make clips of an observation and its `past`, earlier observations, oldest first; without it nothing is changed.

    Args:
        observation: with `images` (a dict by camera, or a list in the same order in all of them) and perhaps `state`.
            An entry of `past` has the same two, or is None where it is missing.

    Raises:
        ValueError: more of them than the history has, or clips beside them.
    """
    now = {name: value for name, value in observation.items() if name != "past"}
    if "past" not in observation:
        return now
    past = list(observation["past"])
    if len(past) >= history.frames:
        raise ValueError(f"`past` has {len(past)} earlier observations, and this policy sees {history}.")
    images = now.get("images") or []
    is_named = isinstance(images, Mapping)
    if any(map(is_clip, images.values() if is_named else images)) or np.ndim(now.get("state")) > 1:
        raise ValueError("there are clips (or rows of states) and a `past` beside them. Give one of the two.")
    places = list(images) if is_named else range(len(images))
    clips = [[*(_picture(earlier, place) for earlier in past), images[place]] for place in places]
    clips = [clip if clip[-1] is not None else None for clip in clips]
    now["images"] = dict(zip(places, clips, strict=True)) if is_named else clips
    if now.get("state") is not None:
        rows = unbroken([*(None if earlier is None else earlier.get("state") for earlier in past), now["state"]])
        now["state"] = np.stack([as_numbers(row) for row in rows])
    return now


def _picture(observation: Mapping | None, place):
    """The picture of a camera in an observation, by name or number; None where there is none."""
    images = (observation or {}).get("images") or []
    is_there = place in images if isinstance(images, Mapping) else not isinstance(place, str) and place < len(images)
    return images[place] if is_there else None


def state_rows(state, history: ObservationHistory) -> np.ndarray:
    """The states that are there as rows (n, Ds), float64, oldest first.

    Args:
        state: (Ds,), or (n, Ds) with the newest last, n at most `history.frames`.

    Raises:
        ValueError: another shape, or more rows.
    """
    values = as_numbers(state)
    rows = values[None] if values.ndim == 1 else values
    if rows.ndim != 2 or not 1 <= len(rows) <= history.frames:
        rows_too = "" if history.frames == 1 else f", or up to {history.frames} of them (n, Ds), the newest last"
        raise ValueError(f"`state` must be one vector (Ds,){rows_too}, got shape {values.shape}.")
    return rows


def newest_state(state):
    """The present one of the states in an observation, (Ds,): what actions are relative to; None if there is none."""
    return state if state is None or np.ndim(state) < 2 else state[-1]


def flat_size(state_dim: int, history: ObservationHistory) -> int:
    """Values of `flat_states`."""
    return history.frames * state_dim + history.frames - 1


def flat_states(rows: np.ndarray, history: ObservationHistory) -> np.ndarray:
    """Rows (n, Ds) of normalised states as one vector (`flat_size`,) float32.

    The newest comes first, where a policy without history has it, then the older ones, zeros for those that are
    missing; and then for each older one a 1 if it is there, by which it differs from zeros that were measured.
    """
    count, dim = rows.shape
    values = np.zeros((history.frames, dim), dtype=np.float32)
    values[:count] = rows[::-1]
    return np.concatenate([values.ravel(), np.arange(1, history.frames) < count], dtype=np.float32)


__all__ = [
    "NO_HISTORY",
    "ObservationHistory",
    "clip_of",
    "flat_size",
    "flat_states",
    "is_clip",
    "newest_state",
    "state_rows",
    "unbroken",
    "with_past",
]

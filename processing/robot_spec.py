"""One robot's side of a processor: what its numbers mean, and which cameras it has."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image

from .action_units import UNKNOWN, ActionUnits, check_pi_dimensions
from .camera_names import check_names, match_known, place_cameras, suits
from .image_input import as_rgb
from .normalization import Normalizer, as_numbers, statistics_from_json, statistics_to_json
from .observation_history import NO_HISTORY, ObservationHistory, clip_of, flat_size, is_clip, newest_state, state_rows
from .relative_actions import RelativeActions

logger = logging.getLogger(__name__)

# Normalised states beyond the data's range by three of its widths: from -1 to 1, or three standard deviations each way
_FAR_STATE = {"quantile": 7.0, "mean_std": 21.0}
# Width of a policy's chunks and continuous states if the robot is not larger, as of KIVLAConfig
SMALLEST_ROOM = 32


@dataclass
class RobotSpec:
    """What the numbers of one robot mean, and which cameras it has.

    Args:
        statistics: `{"state": {...}, "actions": {...}}` of this robot's data in its units, or None. Relative actions
            are normalised by `"relative_actions"`: those of all steps of all chunks; `"actions"` are then only what
            they are clipped to, and may be absent. With `adapt_to_pi` all are in π0's units.
        cameras: names of its cameras, in the order in which the model sees them, or a dict of them: name → another name
            of the same camera; None for any number of images.
        action_dim: real size of an action; that of the statistics if None.
        normalization: "quantile", "mean_std" or "none".
        reads_state: whether the policy reads the robot's state.
        max_action_dim: width of the model's chunks.
        relative_actions: which dimensions of its actions are relative to its state: `RelativeActions`, or as these are
            saved, or a word: "none", "aloha", "droid", "so101", "libero"; or "unknown", with which it does not act.
            None: all are absolute.
        adapt_to_pi: whether its states and actions are those of ALOHA, and become those that π0 was pretrained in, as
            with openpi's option of this name.

    Attributes:
        units: from its actions to those that are learned, and back.
        actions, state: how these are normalised; the state where the policy reads it.
        known_as: another name of a camera, where it has one.
        num_clipped: how many values of chunks to be learned lay beyond `units.bound` and were clipped to it.

    Raises:
        ValueError: statistics that are missing or do not fit, or a camera that is named twice.
    """

    statistics: dict[str, dict[str, np.ndarray]] | None
    cameras: Sequence[str] | Mapping[str, str] | None
    action_dim: int | None
    normalization: str
    reads_state: bool
    max_action_dim: int
    relative_actions: RelativeActions | Mapping | str | None = None
    adapt_to_pi: bool = False
    units: ActionUnits = field(init=False)
    actions: Normalizer = field(init=False)
    state: Normalizer | None = field(init=False, default=None)
    known_as: dict[str, str] = field(init=False)
    num_clipped: int = field(init=False, default=0)

    def __post_init__(self):
        if self.statistics is None and self.normalization != "none":
            raise ValueError(
                f'normalization="{self.normalization}" needs the statistics of your robot\'s data: pass '
                'statistics=LeRobotDataset(...).statistics, or normalization="none" if values are normalised already.'
            )
        statistics = self.statistics or {}
        known_as = self.cameras if isinstance(self.cameras, Mapping) else {}
        self.known_as = {camera: name for camera, name in known_as.items() if name != camera}
        self.cameras = None if self.cameras is None else _distinct(self.cameras)
        self._check_known_names()
        self.units = ActionUnits(
            statistics, self.normalization, self.action_dim, self.relative_actions, self.adapt_to_pi
        )
        self.actions = self.units.normalizer
        if self.reads_state:
            if self.normalization != "none" and "state" not in statistics:
                raise ValueError(
                    f'the policy reads the state and needs statistics["state"], but the statistics are of '
                    f'{sorted(statistics)}. For a robot without state use state_encoding="none".'
                )
            self.state = Normalizer(statistics.get("state"), self.normalization)
        if self.action_dim is None:
            self.action_dim = self.actions.dim or self.units.dim or self.max_action_dim
        for what, dim in (("the statistics are", self.actions.dim), ("relative_actions are", self.units.dim)):
            if dim not in (None, self.action_dim):
                raise ValueError(
                    f"action_dim = {self.action_dim}, but {what} of {dim}-dimensional actions: are these the "
                    "statistics of another robot?"
                )
        if self.adapt_to_pi:
            check_pi_dimensions(self.action_dim)
        if not 1 <= self.action_dim <= self.max_action_dim:
            raise ValueError(
                f"Actions have {self.action_dim} dimensions, but max_action_dim is {self.max_action_dim}. Build "
                f"processor and model with max_action_dim of at least {self.action_dim}."
            )

    @property
    def needs_state(self) -> bool:
        """Whether it cannot act without the robot's state: the policy reads it, or actions are relative to it."""
        return self.reads_state or self.units.relative is not None

    @property
    def mean_action(self) -> np.ndarray | None:
        """(action_dim,), robot units: the average action of the data; zero without statistics, None with those of
        relative actions alone."""
        return self.units.mean if self.statistics else np.zeros(self.action_dim)

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Smallest and largest recorded actions, each (action_dim,), absolute, robot units. None if the statistics do
        not have them, or without normalisation."""
        return self.units.range

    def unnormalize(self, chunk, clip: bool, state=None) -> tuple:
        """Normalised (..., H, action_dim) -> absolute actions in robot units and, if they were clipped to
        `action_range`, what was changed (see `ActionUnits.clip`; None otherwise).

        Args:
            state: (..., Ds), robot units: that of the observation that the chunk is predicted from; only needed where
                actions are relative.
        """
        actions = self.units.unnormalize(chunk, state)
        return self.units.clip(actions) if clip else (actions, None)

    def place(
        self, given: Collection[str], names: Mapping[str, str | None] | None = None, selects: bool = False
    ) -> dict[str, str | None]:
        """Say which of the given names is which camera: see `place_cameras`."""
        return place_cameras(given, self.cameras, self.known_as, names, selects)

    def among(self, given: Collection[str], names: Mapping[str, str | None] | None = None) -> list[str] | None:
        """Which of a dataset's cameras are its own, in their order; None for all, where it has no names.

        Raises:
            ValueError: some are not there.
        """
        if self.cameras is None and names is None:
            return None
        return [name for name in self.place(given, names, selects=True).values() if name is not None]

    def missing(self, given: Collection[str]) -> list[str]:
        """Its cameras that none of these names is of."""
        return [
            camera for camera in self.cameras or () if camera not in match_known(given, self.cameras, self.known_as)
        ]

    def has_cameras(self, names: Collection[str]) -> set[str]:
        """Those of these names that are a camera of its own."""
        return set(match_known(names, self.cameras or (), self.known_as).values())

    def named(self, images, of_list: Sequence[str] | None = None, names: Mapping[str, str | None] | None = None):
        """Bring images of any names under the names of the cameras.

        Args:
            images: a dict by name; or a list in the order of the cameras, or with names of its own.
            of_list: names of a list's images, in its order.
            names: an explicit mapping, see `place_cameras`. A list without names cannot be mapped.

        Returns:
            A dict by camera, None where an image is missing; a list where there are no names, or the robot has none.

        Raises:
            ValueError: unknown or missing names; or a list without names where a mapping gives a camera another name,
                or no image.
        """
        if of_list is not None and not isinstance(images, Mapping):
            if len(of_list) != len(images) or len(set(of_list)) != len(of_list):
                raise ValueError(f"there are {len(images)} images and the names {list(of_list)}. Name each once.")
            if self.cameras is None and names is None:
                return images
            images = dict(zip(of_list, images, strict=True))
        if not isinstance(images, Mapping):
            if images is not None and names and self._renames(names):
                raise ValueError(
                    f"images are a list without names, but cameras={dict(names)} goes by names. Give a dict by name; "
                    "or, beside the list, the names of its images in `cameras`; or leave the mapping out: then the "
                    f"list is in the order of the policy's cameras{f', {self.cameras}' if self.cameras else ''}."
                )
            return images
        placed = self.place(list(images), names)
        found = {camera: None if name is None else images[name] for camera, name in placed.items()}
        return list(found.values()) if self.cameras is None else found

    def clips(self, given, is_observation: bool, history: ObservationHistory = NO_HISTORY) -> list[list[Image.Image]]:
        """The frames that are there, as RGB: of each camera, in their order, those of its clip, oldest first.

        Args:
            given: a list, a dict by camera name (see `camera_names`), or None; pictures or clips (see `clip_of`).
            is_observation: whether every camera must have its place (VLM data has any number of images, and no clips).
            history: what the policy looks back on.
        """
        given = self.named(given)
        if isinstance(given, Mapping):
            given = list(given.values())
        if given is None:
            given = []
        if not isinstance(given, list | tuple):
            raise ValueError(
                "`images` must be a list of images (one for each camera) or a dict by camera name, got "
                f"{type(given).__name__}. For one example with one camera write images=[[image]]."
            )
        if is_observation and self.cameras is not None and len(given) != len(self.cameras):
            raise ValueError(
                f"got {len(given)} images for {len(self.cameras)} cameras {self.cameras}. Pass one for each, in this "
                "order; use None for one that is missing."
            )
        past = history if is_observation else NO_HISTORY
        if past.frames > 1 and any(image is not None and not is_clip(image) for image in given):
            _say_single(past)
        return [[as_rgb(frame) for frame in clip_of(image, past)] for image in given]

    def observed_states(self, values, max_dim: int | None, history: ObservationHistory = NO_HISTORY) -> np.ndarray:
        """Check and normalise the states of an observation: rows (n, Ds), oldest first.

        Args:
            values: (Ds,), or with a history (n, Ds), the newest last.
            max_dim: room for them in the model (`flat_states`); None where they become text.
            history: what the policy looks back on.

        Raises:
            ValueError: no vectors, too many or too long ones, or of another size than the statistics.
        """
        values = state_rows(values, history)
        size = flat_size(values.shape[1], history)
        if max_dim is not None and size > max_dim:
            whole = "" if history.frames == 1 else f" ({history.frames} states, and which of the older ones are there)"
            raise ValueError(
                f"`state` has {size} values{whole}, but max_state_dim is {max_dim}. Build processor and model with "
                f"max_state_dim of at least {size}."
            )
        try:
            return self.state.normalize(self.units.state(values))
        except ValueError as error:
            raise ValueError(f"`state`: {error}") from error

    def far_state(self, state) -> int | None:
        """Find the dimension in which a state lies farthest outside all that the policy's data had; None: it does not.

        Far is three times the width of the data's range, and a twentieth of its values where they hardly vary.

        Args:
            state: (Ds,), robot units; checked before.
        """
        if self.state is None or self.normalization == "none":
            return None
        values = np.asarray(self.units.state(np.asarray(state, np.float32)))
        middle = self.state.unnormalize(np.zeros_like(values))
        width = np.abs(self.state.unnormalize(np.ones_like(values)) - middle)  # of what becomes 1
        far = np.abs(values - middle) / np.maximum(width, np.abs(middle) / 20 + 1e-6)
        worst = int(far.argmax())
        return worst if far[worst] > _FAR_STATE[self.normalization] else None

    def chunk(self, values, is_pad, chunk_size: int, state=None) -> tuple[np.ndarray, np.ndarray]:
        """Actions (steps, action_dim) in robot units -> a normalised chunk (chunk_size, action_dim), and (chunk_size,)
        bool, True on steps that are not real.

        Those hold the last real action before them (or the first after), whatever was given there; zeros if no step is
        real. Values beyond `units.bound` are clipped to it, counted in `num_clipped`, and said once.

        Args:
            state: (Ds,), robot units: that of the first observation, or (n, Ds) with it last; only needed where actions
                are relative.
        """
        values = as_numbers(values)
        if values.ndim != 2 or not len(values) or values.shape[1] != self.action_dim:
            raise ValueError(
                f"`actions` must be (steps, {self.action_dim}) in robot units, got shape {values.shape}. This "
                f"processor was made for {self.action_dim}-dimensional actions: are these of another robot?"
            )
        steps = len(values)
        if steps > chunk_size:
            raise ValueError(
                f"{steps} action steps do not fit into chunk_size = {chunk_size}. Read the data with chunk_size="
                f"{chunk_size}, or build processor and model with a longer one."
            )
        is_pad = np.zeros(steps) if is_pad is None else as_numbers(is_pad)
        if is_pad.shape != (steps,) or not np.isin(is_pad, (0, 1)).all():
            raise ValueError(
                f"`action_is_pad` must be ({steps},) like the actions, of True and False; got {is_pad.shape} of "
                f"{np.unique(is_pad)[:5].tolist()}."
            )
        is_pad = is_pad.astype(bool)
        is_pad = np.concatenate([is_pad, np.ones(chunk_size - steps, dtype=bool)])
        if is_pad.all():
            return np.zeros((chunk_size, self.action_dim), dtype=np.float32), is_pad
        held = np.maximum.accumulate(np.where(is_pad, -1, np.arange(chunk_size)))  # (chunk_size,) the step to hold
        held[held < 0] = is_pad.argmin()
        try:
            chunk = self.units.normalize(values[held], newest_state(state))
        except ValueError as error:
            raise ValueError(f"`actions`: {error}") from error
        beyond = np.abs(chunk) > self.units.bound
        if beyond.any():
            self._say_clipped(beyond)
            chunk = np.clip(chunk, -self.units.bound, self.units.bound).astype(np.float32)
        return chunk, is_pad

    def _say_clipped(self, beyond: np.ndarray) -> None:
        """Count, and say once: (chunk_size, action_dim) bool."""
        if not self.num_clipped:
            dimension = int(beyond.sum(0).argmax())
            bound = np.broadcast_to(self.units.bound, beyond.shape[1:])[dimension]
            logger.warning(
                f"Clipped {beyond.sum()} of {beyond.size} values of an action chunk: normalised they are beyond "
                f"{bound:.4g}, far outside the data that the statistics are of (dimension {dimension}). `num_clipped` "
                "of the robot goes on counting, this message is not repeated. Are there glitches in the recording?"
            )
        self.num_clipped += int(beyond.sum())

    def to_dict(self) -> dict:
        """What belongs to the robot alone, ready for JSON."""
        statistics = self.statistics
        if statistics is not None:
            statistics = {name: statistics_to_json(values) for name, values in statistics.items()}
        cameras = {name: self.known_as.get(name, name) for name in self.cameras} if self.known_as else self.cameras
        relative = None if self.units.relative is None else self.units.relative.to_json()
        others = {"relative_actions": relative if self.units.is_known else UNKNOWN, "adapt_to_pi": self.adapt_to_pi}
        given = {name: value for name, value in others.items() if value}  # nothing, where older policies say nothing
        return {"statistics": statistics, "cameras": cameras, "action_dim": self.action_dim, **given}

    def _renames(self, names: Mapping[str, str | None]) -> bool:
        """Whether a mapping gives a camera another name than its own, or none."""
        told = match_known(names, self.cameras or list(names), self.known_as)
        given = {camera: names[key] for camera, key in told.items()}
        return any(name is None or not match_known([name], [camera], self.known_as) for camera, name in given.items())

    def _check_known_names(self) -> None:
        check_names(self.known_as)
        for camera, name in self.known_as.items():
            if others := [other for other in self.cameras if other != camera and suits(name, other)]:
                raise ValueError(
                    f"the camera {camera!r} cannot be known as {name!r}, which is a name of the camera {others[0]!r}, "
                    "too. Give the policy's cameras other names."
                )


@cache
def _say_single(history: ObservationHistory) -> None:
    """Say once that what is given has no past. A clip of one says that this is meant."""
    logger.warning(
        "The policy sees %s, and is given a single picture of a camera: it takes this for the beginning of an episode. "
        "Act with ChunkExecutor or RealTimeExecutor, which keep what was observed; read data with this history; or "
        "give clips, [older, ..., newest]. (A clip of one picture says that an episode begins.)",
        history,
    )


def _distinct(cameras: Collection[str]) -> list[str]:
    if isinstance(cameras, str) or len(set(cameras)) != len(cameras):
        raise ValueError(f"`cameras` must be a list of names, each once, got {cameras!r}.")
    return list(cameras)


# What a robot has for itself
_OWN = ("statistics", "cameras", "action_dim", "relative_actions", "adapt_to_pi")


def make_robots(robots: dict[str, dict] | None, single: dict, **shared) -> dict[str | None, RobotSpec]:
    """Make the robots of a processor, by name; a single one has the name None.

    Args:
        robots: name -> `statistics`, and perhaps others of `_OWN`; or None.
        single: the same of a single robot, all None if there are `robots`.
        shared: what all have in common, see `RobotSpec`.

    Raises:
        ValueError: both were given, `robots` is empty, or a robot's numbers do not fit.
    """
    if robots is not None and any(value is not None and value is not False for value in single.values()):
        raise ValueError(
            f"Give either `robots`, or {', '.join(f'`{name}`' for name in _OWN)} of a single robot, not both."
        )
    if robots is not None and not robots:
        raise ValueError("`robots` is empty: name at least one, with its statistics.")
    return {
        name: RobotSpec(**{**dict.fromkeys(_OWN[:3]), **{own: values[own] for own in _OWN if own in values}}, **shared)
        for name, values in ({None: single} if robots is None else robots).items()
    }


def sizes_for(
    robots: dict[str | None, dict], state_encoding: str, history: ObservationHistory = NO_HISTORY
) -> dict[str, int]:
    """Choose `max_action_dim` and `max_state_dim` for robots as a processor is given them: 32, or what they need."""
    dims = {"actions": [SMALLEST_ROOM], "state": [SMALLEST_ROOM]}
    for robot in robots.values():
        statistics = robot.get("statistics") or {}
        for part, kind in (("actions", "actions"), ("actions", "relative_actions"), ("state", "state")):
            dims[part] += [np.size(values) for values in statistics.get(kind, {}).values()]
        dims["actions"] += [robot.get("action_dim") or 0]
    sizes = {"max_action_dim": max(dims["actions"])}
    if state_encoding != "continuous":
        return sizes
    return sizes | {"max_state_dim": max([SMALLEST_ROOM, *(flat_size(dim, history) for dim in dims["state"][1:])])}


def robot_from_json(values: dict) -> dict:
    """Inverse of `RobotSpec.to_dict`, as arguments."""
    statistics = values["statistics"]
    if statistics is not None:
        statistics = {name: statistics_from_json(entries) for name, entries in statistics.items()}
    return {**values, "statistics": statistics}


__all__ = ["RobotSpec", "make_robots", "robot_from_json", "sizes_for"]

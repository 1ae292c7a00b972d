"""What robots call their cameras, their state and the instruction, and how that becomes an observation of ours."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..processing.camera_names import PI_SLOTS, match_cameras, match_known, short_name

_PLAIN = ("images", "text", "state", "robot", "response")
# For real-time chunking, with any preset: what is left of the client's chunk, and the steps until it can use a new one
_REST_OF_CHUNK = ("previous_actions", "delay")
# For policies with a history, with any preset: which step of the episode it is, that one begins, earlier observations
_EPISODE = ("step", "reset", "past")

# Far beyond any robot: what is larger would cost the policy minutes and memory before it could be refused.
MAX_IMAGES = 16
MAX_IMAGE_SIDE = 4096  # pixels; also since a square is made of a strip
MAX_STATE = 1024
MAX_TEXT = 4096  # characters
MAX_PREVIOUS = 4096  # actions
MAX_PAST = 64  # earlier observations


@dataclass(frozen=True)
class ObservationKeys:
    """Keys of one kind of openpi client; nested dicts are written with a slash.

    Attributes:
        cameras: key of each image -> what the same camera is called in datasets, and its slot in π0 and π0.5.
        state: keys whose values, one after the other, are the state.
        text: key of the instruction.
    """

    cameras: dict[str, tuple[str, ...]]
    state: tuple[str, ...]
    text: str = "prompt"


PRESETS = {
    "libero": ObservationKeys(
        cameras={
            "observation/image": ("image", "agentview_image", "agentview_rgb", "base_0_rgb"),
            "observation/wrist_image": (
                *("wrist_image", "image2", "eye_in_hand_image", "eye_in_hand_rgb", "left_wrist_0_rgb"),
            ),
        },
        state=("observation/state",),
    ),
    "droid": ObservationKeys(
        cameras={
            "observation/exterior_image_1_left": ("exterior_image_1_left", "exterior_1_left", "base_0_rgb"),
            "observation/wrist_image_left": ("wrist_image_left", "wrist_left", "left_wrist_0_rgb"),
        },
        state=("observation/joint_position", "observation/gripper_position"),
    ),
    "aloha": ObservationKeys(
        cameras={
            "images/cam_high": ("cam_high", "base_0_rgb"),
            "images/cam_low": ("cam_low",),
            "images/cam_left_wrist": ("cam_left_wrist", "left_wrist_0_rgb"),
            "images/cam_right_wrist": ("cam_right_wrist", "right_wrist_0_rgb"),
        },
        state=("state",),
    ),
}
PRESET_NAMES = ("plain", *PRESETS)


def camera_keys(
    preset: str,
    cameras: Sequence[str] | None,
    names: Mapping[str, str | None] | None = None,
    known_as: Mapping[str, str] | None = None,
) -> list[str | None]:
    """The key of the image for each of a policy's cameras, in their order; None for one that stays empty.

    By name: `observation.images.wrist_image` is LIBERO's wrist camera. A slot of π0 or π0.5 for which such a robot has
    no camera stays empty, as in openpi.

    Args:
        cameras: the policy's; None if it has no names: then those of `names`, in their order.
        names: an explicit mapping, the policy's name → the robot's key (None: no image).
        known_as: what else the policy's cameras are known as.

    Raises:
        ValueError: a key that this robot does not have, a camera that is not known to be one of its, or two that are
            the same.
    """
    keys, known_as, names = list(PRESETS[preset].cameras), known_as or {}, dict(names or {})
    cameras = list(names) if cameras is None else list(cameras)
    told = {camera: names[key] for camera, key in match_known(names, cameras, known_as).items()}
    wrong = [theirs for theirs in told.values() if theirs is not None and theirs not in match_cameras(keys, [theirs])]
    if wrong:
        raise ValueError(
            f"Robots of the preset {preset!r} send no image {wrong[0]!r}; they send {', '.join(keys)}. Correct "
            "--cameras."
        )
    is_known = {name: key for key, theirs in PRESETS[preset].cameras.items() for name in theirs}
    found: dict[str, str | None] = {}
    for camera in cameras:
        if camera in told:
            theirs = told[camera]
            found[camera] = None if theirs is None else match_cameras(keys, [theirs])[theirs]
            continue
        for name in (camera, known_as.get(camera, camera)):
            if short_name(name) in is_known:
                found.setdefault(camera, is_known[short_name(name)])
    used = [key for key in found.values() if key is not None]
    slots = {camera for camera in cameras if short_name(camera) in PI_SLOTS and camera not in told}
    if used and len(slots) + len(told) == len(cameras):
        found |= dict.fromkeys(slots - found.keys())
    unclear = [camera for camera in cameras if camera not in found or used.count(found[camera]) > 1]
    if unclear or not cameras:
        options = " ".join(f"{short_name(camera)}=KEY" for camera in unclear or ["NAME"])
        raise ValueError(
            f"The policy has the cameras {cameras or 'without names'}, and robots of the preset '{preset}' send only "
            f"{keys}: it is not known which is {' and which '.join(map(repr, unclear)) or 'which'}. Say it for each: "
            f"--cameras {options}; or use --preset plain, and let the client name the cameras."
        )
    return [found[camera] for camera in cameras]


class ObservationReader:
    """A decoded request -> an observation for the pipeline.

    Args:
        preset: "plain" for observations in our own form, {"images": {...} or [...], "text": ..., "state": ...}, or a
            name of `PRESETS`.
        cameras: those of the policy's processor, and
        known_as: what else they are known as; for presets.
        names: an explicit mapping of them, for presets: the policy's name → the robot's key. Where it has every camera,
            other images of the preset are left out.
        default_text: the instruction for robots that send none.
        max_age_ms: an observation whose `timestamp` (Unix time in seconds, by the robot's clock) is further than this
            from now, in the past or the future, is refused, and so is one without. None looks at no timestamps.

    Raises:
        ValueError: the policy's cameras do not fit the preset, or `max_age_ms` is not positive.
    """

    def __init__(
        self,
        preset: str = "plain",
        cameras: Sequence[str] | None = None,
        default_text: str | None = None,
        max_age_ms: float | None = None,
        names: Mapping[str, str | None] | None = None,
        known_as: Mapping[str, str] | None = None,
    ):
        if max_age_ms is not None and not max_age_ms > 0:
            raise ValueError(f"The largest age of an observation must be positive, got {max_age_ms} ms.")
        self.keys = None if preset == "plain" else PRESETS[preset]
        # The policy's cameras → keys
        self.cameras: dict[str, str | None] | None = None
        if preset != "plain":
            keys = camera_keys(preset, cameras, names, known_as)
            own = list(names or {}) if cameras is None else list(cameras)
            self.cameras = dict(zip(own, keys, strict=True))
            told = match_known(list(names or {}), own, known_as or {})
            self._left_out = set(self.keys.cameras) - set(keys) if len(told) == len(own) else set()
        self.default_text = default_text
        self.max_age_ms = max_age_ms

    def __call__(self, request) -> dict:
        """
        Returns:
            `images` (list or dict of arrays, None for a camera that is missing), `text`, `state`, and of the plain form
            `robot` and `response` if they were given; `previous_actions` (n, action_dim) and `delay` if they were; and
            `step`, `reset` and `past` (a list of such observations, None for one that is missing) if they were.

        Raises:
            ValueError: unknown or missing keys, values of another type or far too large, or an observation that is too
                old.
        """
        if not _is_map(request):
            raise ValueError(f"An observation is a map with strings as keys, got {type(request).__name__}.")
        request = dict(request)
        self._check_age(request.pop("timestamp", None))
        rest_of_chunk = _rest_of_chunk({name: request.pop(name) for name in _REST_OF_CHUNK if name in request})
        episode = {name: request.pop(name) for name in _EPISODE if name in request}
        if "past" in episode:
            episode["past"] = self._past(episode["past"])
        return {**self._checked(request), **rest_of_chunk, **episode}

    def _past(self, past) -> list[dict | None]:
        """Earlier observations in the same form; the words of the present one hold."""
        if not isinstance(past, list) or len(past) > MAX_PAST or not all(one is None or _is_map(one) for one in past):
            raise ValueError(
                "'past' is a list of earlier observations, oldest first, None for one that is missing; at most "
                f"{MAX_PAST}."
            )
        text = "text" if self.keys is None else self.keys.text
        return [None if one is None else self._seen({text: "", **one}) for one in past]

    def _seen(self, request: dict) -> dict:
        """What was seen in an earlier observation."""
        others = ("timestamp", *_REST_OF_CHUNK, *_EPISODE)
        seen = self._checked({name: value for name, value in request.items() if name not in others})
        return {name: seen[name] for name in ("images", "state") if name in seen}

    def _checked(self, request: dict) -> dict:
        """The observation of a request, whose other parts were taken out."""
        observation = self._plain(request) if self.keys is None else self._of_preset(request)
        images = observation["images"]
        if len(images) > MAX_IMAGES:
            raise ValueError(f"There are {len(images)} images; at most {MAX_IMAGES} are taken.")
        for name, image in images.items() if isinstance(images, dict) else enumerate(images):
            # Strings above all: the pipeline would read files and URLs for whoever asks
            if not (image is None or isinstance(image, np.ndarray)):
                raise ValueError(f"Image {name!r} must be an array, or None if missing, got {type(image).__name__}.")
            if image is not None and max(image.shape, default=0) > MAX_IMAGE_SIDE:
                raise ValueError(
                    f"Image {name!r} has the shape {image.shape}; at most {MAX_IMAGE_SIDE} pixels a side are taken."
                )
        text = observation["text"]
        if not isinstance(text, str):
            raise ValueError(f"The instruction must be a string, got {type(text).__name__}.")
        for name in ("text", "robot", "response"):
            if len(observation.get(name) or "") > MAX_TEXT:
                raise ValueError(f"{name!r} has {len(observation[name])} characters; at most {MAX_TEXT} are taken.")
        return observation

    def _plain(self, request: dict) -> dict:
        unknown = sorted(set(request) - set(_PLAIN))
        if self.default_text is not None:
            request.setdefault("text", self.default_text)
        if unknown or "images" not in request or "text" not in request:
            raise ValueError(
                f"The observation has the keys {sorted(request)}; expected are 'images', 'text' and, if the policy "
                "reads the robot's state, 'state'; 'robot', 'response', 'timestamp', 'previous_actions' and "
                "'delay', and 'step', 'reset' or 'past' may be added."
            )
        images = request["images"]
        if not (isinstance(images, list) or (isinstance(images, dict) and all(isinstance(n, str) for n in images))):
            raise ValueError(f"'images' must be a list of arrays or a map by camera name, got {type(images).__name__}.")
        for name in ("robot", "response"):
            if not isinstance(request.get(name), str | None):
                raise ValueError(f"{name!r} must be a string, got {type(request[name]).__name__}.")
        if request.get("state") is not None:
            request["state"] = _numbers("state", request["state"])
        return request

    def _of_preset(self, request: dict) -> dict:
        request, keys = _flat(request), self.keys
        images = [key for key in self.cameras.values() if key is not None]
        if self.default_text is not None:
            request.setdefault(keys.text, self.default_text)
        unknown = sorted(set(request) - {*images, *self._left_out, *keys.state, keys.text})
        needed = [*images, keys.text]
        if any(key in request for key in keys.state):  # none at all: the policy knows whether it reads the state
            needed += keys.state
        missing = [key for key in needed if key not in request]
        if unknown or missing:
            problems = [f"{what} {some}" for what, some in (("lacks", missing), ("has unknown", unknown)) if some]
            hint = ""
            if any(key in keys.cameras for key in unknown):
                choice = " ".join(f"{short_name(c)}={key or ''}" for c, key in self.cameras.items())
                hint = f" To leave images out, start the server with --cameras {choice}."
            raise ValueError(
                f"The observation {' and '.join(problems)}; expected are {[*images, *keys.state, keys.text]}.{hint}"
            )
        state = [_numbers(key, request[key]) for key in keys.state if key in request]
        return {
            "images": [None if key is None else request[key] for key in self.cameras.values()],
            "text": request[keys.text],
            "state": np.concatenate(state) if state else None,
        }

    def _check_age(self, timestamp) -> None:
        if self.max_age_ms is None:
            return
        if isinstance(timestamp, bool) or not isinstance(timestamp, int | float | np.integer | np.floating):
            given = "none" if timestamp is None else type(timestamp).__name__
            raise ValueError(
                f"'timestamp' must be Unix time in seconds, got {given}: this server refuses observations older than "
                f"{self.max_age_ms:g} ms, and has to know how old they are."
            )
        age_ms = 1e3 * (time.time() - float(timestamp))
        if not abs(age_ms) <= self.max_age_ms:  # true for NaN, too; far in the future: another clock or another unit
            raise ValueError(
                f"The observation is {age_ms:.0f} ms old, allowed are {self.max_age_ms:g}. Send a newer one; are the "
                "clocks of robot and server the same, and is 'timestamp' Unix time in seconds?"
            )


def _is_map(value) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _flat(values: dict) -> dict:
    """`{"images": {"cam_high": a}}` -> `{"images/cam_high": a}`."""
    inner = {f"{outer}/{key}": v for outer, some in values.items() if isinstance(some, dict) for key, v in some.items()}
    return {key: value for key, value in values.items() if not isinstance(value, dict)} | inner


def _rest_of_chunk(given: dict) -> dict:
    """What is left of the client's chunk, and its delay; nothing if it sent neither.

    Raises:
        ValueError: one without the other, or values of another type.
    """
    if not given:
        return {}
    if len(given) < len(_REST_OF_CHUNK):
        raise ValueError(f"'previous_actions' and 'delay' go together: there is only {next(iter(given))!r}.")
    actions, delay = given["previous_actions"], given["delay"]
    if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu" or actions.ndim != 2:
        what = f"{actions.dtype} {actions.shape}" if isinstance(actions, np.ndarray) else type(actions).__name__
        raise ValueError(f"'previous_actions' must be an array of numbers (n, action_dim), got {what}.")
    if len(actions) > MAX_PREVIOUS or actions.shape[1] > MAX_STATE:
        raise ValueError(f"'previous_actions' has the shape {actions.shape}: no chunk is so large.")
    if isinstance(delay, bool) or not isinstance(delay, int | np.integer) or not 0 <= delay <= MAX_PREVIOUS:
        raise ValueError(f"'delay' must be a whole number of control steps, not negative, got {delay!r}.")
    return {"previous_actions": actions, "delay": int(delay)}


def _numbers(name: str, values) -> np.ndarray:
    """One vector of numbers; a single number is a vector of one."""
    is_list = isinstance(values, list) and all(type(value) in (int, float, bool) for value in values)
    if not (is_list or isinstance(values, np.ndarray | np.generic | int | float)):
        raise ValueError(f"{name!r} must be an array or a list of numbers, got {type(values).__name__}.")
    vector = np.atleast_1d(np.asarray(values))
    if vector.dtype.kind not in "biuf" or vector.ndim != 1:
        raise ValueError(f"{name!r} must be one vector of numbers, got shape {vector.shape} of type {vector.dtype}.")
    if len(vector) > MAX_STATE:
        raise ValueError(f"{name!r} has {len(vector)} values; at most {MAX_STATE} are taken.")
    return vector


__all__ = ["PRESETS", "PRESET_NAMES", "ObservationKeys", "ObservationReader", "camera_keys"]

"""The one place where names of cameras are matched: the same camera is `observation.images.wrist` in a dataset, `wrist`
on a robot and `observation/wrist_image` in a request."""

from collections.abc import Collection, Mapping, Sequence

CAMERAS_HELP = "Where cameras have other names than the policy's: POLICY_NAME=THEIR_NAME for each, or names to choose."

# What datasets and robots put in front of a camera's own name
_CONTAINERS = {"observation", "observations", "obs", "images", "image", "cameras"}

# The places of openpi's π0 and π0.5, in the order in which the model sees them, and what published data and openpi's
# own converters (LIBERO, DROID, ALOHA, UR5) call the cameras that belong there
PI_SLOTS: dict[str, tuple[str, ...]] = {
    "base_0_rgb": (
        *("image", "agentview_image", "agentview_rgb", "exterior_image_1_left", "exterior_1_left"),
        *("cam_high", "base_rgb"),
    ),
    "left_wrist_0_rgb": (
        *("wrist_image", "image2", "eye_in_hand_image", "eye_in_hand_rgb", "robot0_eye_in_hand_image"),
        *("wrist_image_left", "wrist_left", "cam_left_wrist", "left_wrist", "wrist_rgb"),
    ),
    "right_wrist_0_rgb": ("cam_right_wrist", "right_wrist"),
}


def short_name(camera: str) -> str:
    """Return the last part of a camera's name: `observation.images.wrist` and `observation/wrist` are `wrist`."""
    return _parts(camera)[-1]


def match_cameras(given: Collection[str], cameras: Sequence[str]) -> dict[str, str]:
    """Find each of a policy's cameras among given names: camera → the name that was given for it.

    A name matches as a whole, or without what stands in front of it (`observation.images.front` is
    `observation/front`), or by its end (`wrist` is `left_arm.wrist`); by the first of these that holds for any name,
    and only where it holds for one name and one camera. Cameras without such a name are left out.
    """
    matched = {}
    for camera in cameras:
        for is_same in (_is_equal, _is_same_camera, suits):
            names = [name for name in given if is_same(name, camera)]
            if len(names) == 1 and sum(is_same(names[0], other) for other in cameras) == 1:
                matched[camera] = names[0]
            if names:
                break
    return matched


def match_known(given: Collection[str], cameras: Sequence[str], known_as: Mapping[str, str]) -> dict[str, str]:
    """As `match_cameras`, by the cameras' own names first, and then by what else they are known as."""
    matched = match_cameras(given, cameras)
    others = {known_as[camera]: camera for camera in cameras if camera in known_as and camera not in matched}
    rest = [name for name in given if name not in matched.values()]
    return matched | {others[other]: name for other, name in match_cameras(rest, list(others)).items()}


def place_cameras(
    given: Collection[str],
    cameras: Sequence[str] | None,
    known_as: Mapping[str, str] | None = None,
    names: Mapping[str, str | None] | None = None,
    selects: bool = False,
) -> dict[str, str | None]:
    """Say which of the given names is which of a policy's cameras, all of them.

    Args:
        given: names of the images that there are.
        cameras: the policy's, in its order; None if it has no names: then those of `names`, in their order.
        known_as: another name of a policy's camera, beside its own.
        names: an explicit mapping, the policy's name → the given one; None for a camera without an image. It goes
            before all else. Where it has every camera, other images are left out.
        selects: leave out other images in any case.

    Returns:
        Every camera, in the policy's order → the given name; None for one that is mapped to none.

    Raises:
        ValueError: a camera without a name among the given, or a given name that is no camera's; the message has both
            sides, and how to map.
    """
    names, known_as = dict(names or {}), known_as or {}
    if cameras is None:
        if not names:
            raise ValueError(
                f"images are given for the cameras {sorted(given)}, but the policy has no camera names, hence no "
                "order. Give a list in the order of its training; or name its cameras in that order: --cameras "
                "FIRST=THEIR_NAME SECOND=THEIR_NAME (in Python cameras={...})."
            )
        cameras = list(names)
    told = {camera: names[key] for camera, key in match_known(names, cameras, known_as).items()}
    placed = {camera: None for camera, name in told.items() if name is None}
    wanted = {camera: name for camera, name in told.items() if name is not None}
    found = match_cameras(given, list(wanted.values()))
    placed |= {camera: found[name] for camera, name in wanted.items() if name in found}
    others = [camera for camera in cameras if camera not in told]
    placed |= match_known([name for name in given if name not in placed.values()], others, known_as)
    selects = selects or (bool(names) and not others)
    missing = [camera for camera in cameras if camera not in placed]
    unknown = [name for name in given if name not in placed.values()]
    if missing or (unknown and not selects):
        raise ValueError(_refusal(list(given), cameras, missing, unknown, wanted, placed))
    return {camera: placed[camera] for camera in cameras}


def check_names(names: Mapping[str, str | None]) -> None:
    """Check that a mapping gives no image to two cameras.

    Raises:
        ValueError: it does.
    """
    theirs = [name for name in names.values() if name is not None]
    if twice := [name for name in theirs if theirs.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} is given for two cameras of the policy in {dict(names)}. Name each once.")


def parse_cameras(entries: Sequence[str] | None) -> dict[str, str | None] | None:
    """Read `--cameras`: `["front=observation/image", "wrist"]` → `{"front": "observation/image", "wrist": "wrist"}`.

    `front=` alone says that this camera stays empty: None.

    Raises:
        ValueError: a camera without a name, or named twice.
    """
    if entries is None:
        return None
    names = {}
    for entry in entries:
        camera, is_mapped, theirs = entry.partition("=")
        if not camera or camera in names:
            raise ValueError(
                f"--cameras takes names, or POLICY_NAME=THEIR_NAME, each once; got {entry!r} in {list(entries)}."
            )
        names[camera] = (theirs or None) if is_mapped else camera
    return names


def _refusal(
    given: list[str],
    cameras: Sequence[str],
    missing: list[str],
    unknown: list[str],
    wanted: Mapping[str, str],
    placed: Mapping[str, str | None],
) -> str:
    problems = [f"there is no {wanted[camera]!r} for {camera!r}" for camera in missing if camera in wanted]
    problems += [f"none is of {camera!r}" for camera in missing if camera not in wanted]
    # One that was told to be another image is a camera of the policy all the same
    strangers = [name for name in unknown if not any(suits(name, camera) for camera in missing)]
    problems += [f"the policy has no camera {name!r}" for name in strangers]
    text = f"images are given for the cameras {given}, but the policy has {list(cameras)}: {', '.join(problems)}. "
    # With several, a guess by their order would be copied, and be wrong
    guess = unknown[0] if len(missing) == len(unknown) == 1 else "THEIR_NAME" if unknown else None
    # All cameras: a mapping is copied whole, and chooses what is read of a dataset
    mapping = {short_name(camera): placed.get(camera, guess) for camera in cameras}
    if len(mapping) < len(cameras):
        mapping = {camera: placed.get(camera, guess) for camera in cameras}
    options = f"--cameras {' '.join(map(_entry, mapping, mapping.values()))} (in Python cameras={mapping})"
    if missing and unknown:
        return f"{text}Say which is which: {options}."
    if missing:
        some = f", or say so: {options}" if any(mapping.values()) else ""
        return f"{text}Pass every camera by its name; use None for one that is missing{some}."
    return f"{text}Leave it out; or choose: {options}."


def _entry(camera: str, theirs: str | None) -> str:
    """As `parse_cameras` reads it."""
    return camera if theirs is not None and suits(theirs, camera) else f"{camera}={theirs or ''}"


def _parts(name: str) -> tuple[str, ...]:
    """`observation.images.left_arm.wrist` → left_arm, wrist."""
    parts = name.replace("/", ".").split(".")
    while len(parts) > 1 and parts[0] in _CONTAINERS:
        parts = parts[1:]
    return tuple(parts)


def suits(name: str, camera: str) -> bool:
    """Whether a name can stand for a camera where no other is meant: one is the end of the other."""
    shorter, longer = sorted((_parts(name), _parts(camera)), key=len)
    return longer[-len(shorter) :] == shorter


def _is_equal(name: str, camera: str) -> bool:
    return name == camera


def _is_same_camera(name: str, camera: str) -> bool:
    return _parts(name) == _parts(camera)


__all__ = [
    "CAMERAS_HELP",
    "PI_SLOTS",
    "check_names",
    "match_cameras",
    "match_known",
    "parse_cameras",
    "place_cameras",
    "short_name",
    "suits",
]

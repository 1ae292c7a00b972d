"""Which camera of the data goes where in a policy that is made or adapted: by name, by known aliases, or as told."""

from collections.abc import Mapping, Sequence

from ..processing.camera_names import PI_SLOTS, match_cameras, match_known, short_name


def are_same(cameras: Sequence[str], others: Sequence[str]) -> bool:
    """Whether these are names of the same cameras, in whatever order."""
    return len(cameras) == len(others) == len(match_cameras(cameras, others))


def new_names(cameras: Sequence[str], mapping: Mapping[str, str | None] | None) -> list[str] | dict[str, str]:
    """Name the cameras of a new policy: as the data do, or as `--cameras front=observation.images.cam_0` says.

    Args:
        cameras: those of the data, in the order of the mapping if there is one.

    Returns:
        The names; or a dict of them, with those of the data.

    Raises:
        ValueError: a camera without an image.
    """
    if not _is_explicit(mapping):
        return list(cameras)
    if empty := [camera for camera, theirs in mapping.items() if theirs is None]:
        raise ValueError(f"--cameras {empty[0]}= names a camera without pictures: leave it out.")
    of_data = _of_data(mapping, cameras)
    return {of_data[theirs] if camera == theirs else camera: of_data[theirs] for camera, theirs in mapping.items()}


def fill_places(
    base: str,
    places: Sequence[str] | None,
    known_as: Mapping[str, str],
    cameras: Sequence[str],
    mapping: Mapping[str, str | None] | None,
    notes: list[str],
) -> list[str] | dict[str, str]:
    """Put the cameras of new data into the places of a base policy.

    The three slots of π0 and π0.5 are filled by known names (`PI_SLOTS`) or as told. One that stays empty has no
    tokens, as it was masked when the base was trained; so a single camera is the same in any of them. Places of any
    other base are filled by name or as told; where the data have other names and nothing was told, the cameras are new
    ones, in the order of the data.

    Args:
        base: its name, for messages.
        places, known_as: the base's cameras, and what else they are known as; None if it names none.
        cameras: those of the data.
        mapping: what was told: place → camera of the data; or names of the data alone, which choose them.
        notes: gets a sentence about what was done.

    Returns:
        The names of the data, in the order of the places; with the places as second names where those are others.

    Raises:
        ValueError: a camera without a place, a place with two cameras, or a place that the base does not have.
    """
    slots = _slots(places, known_as)
    told = {place: theirs for place, theirs in (mapping or {}).items() if place != theirs}
    if not slots and (places is None or not (told and match_known(told, places, known_as))):
        if places is not None and not told and are_same(cameras, places):
            matched = match_known(cameras, places, known_as)
            return [matched[place] for place in places]
        return new_names(cameras, mapping)
    own = slots or list(places)
    found = match_known(told, own, {} if slots else known_as)
    if unknown := [place for place in told if place not in found.values()]:
        raise ValueError(f"{base} has no camera {unknown[0]!r}: --cameras {unknown[0]}=...; its places are {own}.")
    of_data = _of_data(told, cameras)
    filled = {place: of_data.get(told[key]) for place, key in found.items()}
    rest = [camera for camera in cameras if camera not in filled.values()]
    open_places = [place for place in own if place not in filled]
    filled |= _by_alias(rest, open_places) if slots else match_known(rest, open_places, known_as)
    if slots and len(cameras) == 1 and not any(filled.values()):
        filled[own[0]] = cameras[0]  # as nothing stands in for a missing one, a single camera is the first in any slot
    if left := [camera for camera in cameras if camera not in filled.values()]:
        options = " ".join(f"{place}=CAMERA" for place in own if place not in found)
        raise ValueError(
            f"{base} has the places {own} for cameras, and it is not clear where {left} of the data belong. Say it: "
            f"--cameras {options or f'{own[0]}=CAMERA'} (each that is to be used; others are left out)."
        )
    used = {place: filled[place] for place in own if filled.get(place) is not None}
    text = ", ".join(f"{place} is {camera}" for place, camera in used.items())
    empty = [place for place in own if place not in used]
    stays = (
        f"; {' and '.join(empty)} stays empty: its tokens are left out, as a missing camera is masked" if empty else ""
    )
    notes.append(f"cameras by the base's places: {text or 'none'}{stays}")
    return {camera: place for place, camera in used.items()}


def _slots(places: Sequence[str] | None, known_as: Mapping[str, str]) -> list[str]:
    """The three slots, if the places of a base are some of them."""
    names = [short_name(known_as.get(place, place)) for place in places or ()]
    return list(PI_SLOTS) if names and set(names) <= PI_SLOTS.keys() else []


def _by_alias(cameras: Sequence[str], slots: Sequence[str]) -> dict[str, str]:
    """Slot → the only camera that is known to belong there."""
    fitting = {slot: [c for c in cameras if short_name(c) in (slot, *PI_SLOTS[slot])] for slot in slots}
    return {slot: found[0] for slot, found in fitting.items() if len(found) == 1}


def _of_data(mapping: Mapping[str, str | None], cameras: Sequence[str]) -> dict[str, str]:
    """What was told → the name in the data.

    Raises:
        ValueError: the data have no such camera.
    """
    wanted = [theirs for theirs in mapping.values() if theirs is not None]
    found = match_cameras(cameras, wanted)
    if missing := [theirs for theirs in wanted if theirs not in found]:
        raise ValueError(f"The data have no camera {missing[0]!r}; they have {list(cameras)} (--cameras).")
    return found


def _is_explicit(mapping: Mapping[str, str | None] | None) -> bool:
    return mapping is not None and any(camera != theirs for camera, theirs in mapping.items())


__all__ = ["are_same", "fill_places", "new_names"]

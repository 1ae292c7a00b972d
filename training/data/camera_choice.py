"""The cameras of a dataset that somebody asks for by name."""

from collections.abc import Sequence

from ...processing.camera_names import match_cameras, suits


def choose_cameras(name: str, there: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Find cameras of a dataset by their names, or by parts that mean only one (`match_cameras`).

    Args:
        name: the dataset's, for messages.
        there: all that it has.
        wanted: None for all.

    Returns:
        The dataset's names of those that are wanted, in their order.

    Raises:
        ValueError: one is unknown, means several, or is wanted twice.
    """
    if wanted is None:
        return list(there)
    if isinstance(wanted, str):
        raise ValueError(f"{name}: cameras is a list of names, such as [{wanted!r}], got {wanted!r}.")
    found = match_cameras(there, wanted)
    for camera in wanted:
        meant = [found[camera]] if camera in found else [own for own in there if suits(camera, own)]
        if not meant:
            raise ValueError(f"{name} has no camera {camera!r}. It has: {', '.join(there) or 'no camera at all'}.")
        if len(meant) > 1:
            raise ValueError(f"{name}: {camera!r} names more than one camera: {meant}. Give the whole name.")
    if len(found) < len(wanted) or len(set(found.values())) < len(found):
        raise ValueError(f"{name}: a camera is selected twice in {list(wanted)}.")
    return [found[camera] for camera in wanted]


__all__ = ["choose_cameras"]

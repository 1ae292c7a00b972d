"""Episodes that are wrong as a whole: in other units, at another scale, or without their actions.

They are told once, and left out of all that is measured over episodes: one of them would stretch every range.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .findings import Finding, limit, some

# Below so many episodes none can be called unusual.
_FEW = 4
# Of an episode in other units: so many dimensions must vary, and may be so many times more or less than in the others.
_JOINTS, _AS_USUAL = 3, 4


class Sizes:
    """How large a vector is in each episode, (E, D) each.

    Args:
        name: "state" or "actions".
        names: of the dimensions.

    Attributes:
        largest, usual: the largest absolute value, and the median of the absolute values.
        width: the range.
    """

    def __init__(self, name: str, names: Sequence[str]):
        self.name, self.names = name, tuple(names)
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, values: np.ndarray) -> None:
        """Measure an episode, (T, D)."""
        size = np.abs(values)
        self._rows.append((size.max(axis=0), np.median(size, axis=0), np.ptp(values, axis=0)))

    @property
    def largest(self) -> np.ndarray:
        return np.array([row[0] for row in self._rows])

    @property
    def usual(self) -> np.ndarray:
        return np.array([row[1] for row in self._rows])

    @property
    def width(self) -> np.ndarray:
        return np.array([row[2] for row in self._rows])


def check_spoilt(sizes: Mapping[str, Sizes], episodes: Sequence[int], paired: np.ndarray) -> list[Finding]:
    """All of what is told here.

    Args:
        sizes: of "actions" and perhaps "state".
        episodes: (E,) their numbers.
        paired: (P, 2) which action belongs to which state.
    """
    if len(episodes) < _FEW:
        return []
    findings = [finding for size in sizes.values() for finding in check_units(size, episodes)]
    findings += check_still(sizes["actions"], episodes)
    if "state" in sizes:
        other = {episode for finding in findings for episode in finding.episodes}
        sound = np.array([episode not in other for episode in episodes])
        findings += check_scale(sizes["actions"], sizes["state"], paired, episodes, sound)
        findings += check_scale(sizes["state"], sizes["actions"], paired[:, ::-1], episodes, sound)
    return findings


def check_units(size: Sizes, episodes: Sequence[int]) -> list[Finding]:
    """A few episodes in degrees among others in radians: nearly all dimensions are about 57 times larger."""
    largest = size.largest
    usual = np.median(largest, axis=0)
    if (usual > 0).sum() < _JOINTS:
        return []
    times = largest[:, usual > 0] / usual[usual > 0] / np.degrees(1)
    is_other = ((times > 1 / _AS_USUAL) & (times < _AS_USUAL)).mean(axis=1) >= limit("other_units")
    if not is_other.any() or is_other.mean() > 0.5:
        return []
    found = tuple(episode for episode, other in zip(episodes, is_other, strict=True) if other)
    text = f"The {size.name} of these episodes is some 57 times larger than of the others: {some(found)}. "
    text += "Degrees among radians? Convert them, or leave them out."
    return [Finding("other_units", text, size.name, episodes=found)]


def check_still(actions: Sizes, episodes: Sequence[int]) -> list[Finding]:
    """A few episodes in which no action ever changes."""
    is_still = (actions.width == 0).all(axis=1)
    if not is_still.any() or is_still.mean() > 0.5:
        return []
    found = tuple(episode for episode, still in zip(episodes, is_still, strict=True) if still)
    text = f"The actions never change in these episodes, and do in the others: {some(found)}. Leave them out."
    return [Finding("still_actions", text, "actions", episodes=found)]


def check_scale(
    size: Sizes, partner: Sizes, paired: np.ndarray, episodes: Sequence[int], sound: np.ndarray
) -> list[Finding]:
    """One dimension at another scale in an episode, while its partner moves as in the others.

    Args:
        size, partner: of the vector that is looked at, and of the other one.
        paired: (P, 2) its dimensions and their partners.
        sound: (E,) bool, the episodes to look at.
    """
    findings = []
    largest, usual, width = size.largest[sound], size.usual[sound], partner.width[sound]
    numbers = [episode for episode, is_sound in zip(episodes, sound, strict=True) if is_sound]
    if len(numbers) < _FEW:
        return []
    for i, j in paired:
        others, others_width = _largest_of_others(largest[:, i]), _largest_of_others(width[:, j])
        times = usual[:, i] / np.where(others > 0, others, np.inf)
        is_other = (times >= limit("other_scale")) & (width[:, j] < limit("other_scale") * others_width)
        if is_other.any():
            first = int(np.argmax(is_other))  # there is only one: of two, neither is far beyond all others
            text = (
                f"{size.names[i]} of the {size.name} is {times[first]:.3g} times larger in episode {numbers[first]} "
                f"than ever in the others, and the {partner.name} moves as there. Another unit? Convert it, or leave "
                "the episode out."
            )
            findings.append(Finding("other_scale", text, size.name, (size.names[i],), (numbers[first],)))
    return findings


def _largest_of_others(values: np.ndarray) -> np.ndarray:
    """(E,) of each the largest of all others, (E,)."""
    second, first = np.sort(values)[-2:]
    return np.where(np.arange(len(values)) == np.argmax(values), second, first)


__all__ = ["Sizes", "check_spoilt"]

"""Episodes that are wrong as a whole: in other units, at another scale, or without their actions.

They are told once, and left out of all that is measured over episodes: one of them would stretch every range.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .findings import Finding, limit, some

# Below so many episodes none can be called unusual; and one joint is at another scale in no larger share of them.
_FEW, _FEW_OF_THEM = 4, 0.25
# Of an episode in other units: so many dimensions must vary. It is so many times larger or smaller than the others, but
# for a factor: millimetres among metres, degrees among radians, radians among degrees. (Smaller yet is at rest.)
_JOINTS, _TIMES, _AS_USUAL = 3, np.degrees(1), 4


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
    findings = check_still(sizes["actions"], episodes)
    if len(episodes) < _FEW:
        return findings
    findings = [finding for size in sizes.values() for finding in check_units(size, episodes)] + findings
    if "state" in sizes:
        other = {episode for finding in findings for episode in finding.episodes}
        sound = np.array([episode not in other for episode in episodes])
        findings += check_scale(sizes["actions"], sizes["state"], paired, episodes, sound)
        findings += check_scale(sizes["state"], sizes["actions"], paired[:, ::-1], episodes, sound)
    return findings


def check_units(size: Sizes, episodes: Sequence[int]) -> list[Finding]:
    """A few episodes in degrees among others in radians, or the other way round.

    Nearly all dimensions are about 57 times larger, or smaller. Larger by more is another unit, too.
    """
    largest = size.largest
    usual = np.median(largest, axis=0)
    if (usual > 0).sum() < _JOINTS:
        return []
    times = largest[:, usual > 0] / usual[usual > 0]
    is_larger = (times > _TIMES / _AS_USUAL).mean(axis=1) >= limit("other_units")
    is_smaller = ((times < _AS_USUAL / _TIMES) & (times > 1 / _TIMES / _AS_USUAL)).mean(axis=1) >= limit("other_units")
    findings = []
    for is_other, what in ((is_larger, "larger"), (is_smaller, "smaller")):
        if not is_other.any() or is_other.mean() > 0.5:
            continue
        found = tuple(episode for episode, other in zip(episodes, is_other, strict=True) if other)
        factor = float(np.median(times[is_other]))
        factor = factor if what == "larger" else 1 / factor
        text = (
            f"The {size.name} of these episodes is some {factor:,.0f} times {what} than of the others: {some(found)}. "
        )
        text += "Degrees and radians, or millimetres and metres? Convert them, or leave them out."
        findings.append(Finding("other_units", text, size.name, episodes=found))
    return findings


def check_still(actions: Sizes, episodes: Sequence[int]) -> list[Finding]:
    """Episodes in which no action ever changes."""
    is_still = (actions.width == 0).all(axis=1)
    if not is_still.any() or is_still.all():
        return []
    found = tuple(episode for episode, still in zip(episodes, is_still, strict=True) if still)
    text = f"The actions never change in these episodes, and do in the others: {some(found)}. Leave them out."
    return [Finding("still_actions", text, "actions", episodes=found)]


def check_scale(
    size: Sizes, partner: Sizes, paired: np.ndarray, episodes: Sequence[int], sound: np.ndarray
) -> list[Finding]:
    """One dimension at another scale in a few episodes, while its partner is as in the others.

    Args:
        size, partner: of the vector that is looked at, and of the other one.
        paired: (P, 2) its dimensions and their partners.
        sound: (E,) bool, the episodes to look at.
    """
    findings = []
    largest, usual, of_partner = size.largest[sound], size.usual[sound], partner.largest[sound]
    numbers = [episode for episode, is_sound in zip(episodes, sound, strict=True) if is_sound]
    if len(numbers) < _FEW:
        return []
    for i, j in paired:
        order = np.argsort(-usual[:, i])
        # Of the first 1, 2, ... episodes in this order, beside all others
        least, most = usual[order[:-1], i], _most_from(largest[order, i])[1:]
        partner_most = np.maximum.accumulate(of_partner[order[:-1], j])
        partner_usual = _most_from(of_partner[order, j])[1:]
        times = least / np.where(most > 0, most, np.inf)
        is_other = (times >= limit("other_scale")) & (partner_most < limit("other_scale") * partner_usual)
        counts = np.flatnonzero(is_other[: max(int(_FEW_OF_THEM * len(numbers)), 1)]) + 1
        if len(counts):
            found = tuple(numbers[k] for k in sorted(order[: counts[-1]].tolist()))
            text = (
                f"{size.names[i]} of the {size.name} is {times[counts[-1] - 1]:,.0f} times larger in these episodes "
                f"than ever in the others, and the {partner.name} is not: {some(found)}. Another unit? Convert it, or "
                "leave them out."
            )
            findings.append(Finding("other_scale", text, size.name, (size.names[i],), found))
    return findings


def _most_from(values: np.ndarray) -> np.ndarray:
    """The largest of each value and all after it."""
    return np.maximum.accumulate(values[::-1])[::-1]


__all__ = ["Sizes", "check_spoilt"]

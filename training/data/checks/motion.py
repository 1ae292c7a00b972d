"""How states and actions move from frame to frame: jumps, standstills, repeated rows, and who follows whom."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .dimensions import Dimensions
from .findings import Finding, counted, limit, some

# A jump is so many times larger than the steps around it, and than 90 % of all steps.
TIMES_AROUND, TIMES_USUAL = 5, 3
# Of the range of an action, within the time of a standstill: below, there was nothing to follow.
_ACTION_MOVES = 0.1
# Correlation below which nothing follows anything: an arm is close to the positions that it is told, and its steps are
# what it makes of commanded ones.
_CORRELATED = {"positions": 0.9, "steps": 0.5}
# The state is first only if what is not explained shrinks to this part: slow motion correlates with itself at any lag.
_CLEARLY = 0.7
# Joints that turn without end begin anew after these (radians, degrees, ticks of usual encoders); the jump is so close.
_TURNS, _CLOSE = (2 * np.pi, 360, 4096), 0.95


# Dimension → (episode, frame) of each place
Places = dict[int, list[tuple[int, int]]]


def jumps(values: np.ndarray, width: np.ndarray, usual_step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames into which a dimension jumps, and the dimensions: two (n,) int arrays.

    A jump is a large part of the range in one step, while the steps before and after are small. One frame that is out
    of place is one jump: the step back is not another.

    Args:
        values: (T, D) of an episode.
        width: (D,) the whole range.
        usual_step: (D,) what 90 % of all steps do not exceed.
    """
    if len(values) < 2:
        return np.empty(0, int), np.empty(0, int)
    steps = np.abs(np.diff(values, axis=0))  # (T - 1, D)
    padded = np.pad(steps, ((1, 2), (0, 0)))
    around = np.maximum(padded[:-3], padded[3:])  # the step before, and the second after: a jump back may lie between
    large = steps > np.maximum(limit("jump") * width, TIMES_USUAL * usual_step)
    frames, dimensions = np.nonzero(large & (steps > TIMES_AROUND * around))
    return frames + 1, dimensions


def standstills(state: np.ndarray, actions: np.ndarray, action_width: np.ndarray, fps: float) -> list[tuple[int, int]]:
    """Runs of frames [first, end) without any change of the state, long enough, while the actions move."""
    same = np.r_[False, (state[1:] == state[:-1]).all(axis=1), False]
    first, last = np.flatnonzero(~same[:-1] & same[1:]), np.flatnonzero(same[:-1] & ~same[1:])
    moves = np.where(action_width > 0, _ACTION_MOVES * action_width, np.inf)
    return [
        (int(begin), int(end) + 1)
        for begin, end in zip(first, last, strict=True)
        if end - begin >= max(limit("stuck") * fps, 3) and (np.ptp(actions[begin : end + 1], axis=0) > moves).any()
    ]


def repeated_rows(state: np.ndarray) -> tuple[int, int]:
    """How many frames repeat the state of the frame before though it moves before and after; and how many move."""
    changes = (state[1:] != state[:-1]).any(axis=1)
    if len(changes) < 3:
        return 0, int(changes.sum())
    repeated = ~changes[1:-1] & changes[:-2] & changes[2:]
    return int(repeated.sum()), int(changes.sum() + repeated.sum())


# ------------------------------------------------------------------------------------------------------- who is first
@dataclass(frozen=True)
class Lag:
    """By how many frames the state follows the actions.

    Attributes:
        frames: negative where the actions follow the state; None where nothing follows anything.
        correlation: of the two at that lag, the median over the dimensions.
        dimensions: names of the pairs that it was measured on.
        meaning: "positions" if actions are positions of the state, "steps" if they are its changes.
        same: share of frames in which all paired actions are the same frame's state.
    """

    frames: int | None
    correlation: float
    dimensions: tuple[str, ...]
    meaning: str
    same: float


def pairs(action_names: Sequence[str], state_names: Sequence[str]) -> np.ndarray:
    """(P, 2) which action belongs to which state: by place where there are as many of both, else by name."""
    if len(action_names) == len(state_names) and set(action_names) != set(state_names):
        found = [(i, i) for i in range(len(action_names))]
    else:
        found = [(i, list(state_names).index(name)) for i, name in enumerate(action_names) if name in state_names]
    return np.array(found, int).reshape(-1, 2)


def measure_lag(
    episodes: Iterable[tuple[np.ndarray, np.ndarray]], actions: Dimensions, state: Dimensions, fps: float
) -> Lag:
    """Correlate actions with later and earlier states, dimension by dimension; and with the states' changes.

    Args:
        episodes: (T, Da) actions and (T, Ds) state of each; short ones are left out.
        fps: frames per second; lags up to a second are looked at, or to a quarter of the usual episode.
    """
    paired = pairs(actions.names, state.names)
    ordinary = ~actions.is_constant[paired[:, 0]] & ~state.is_constant[paired[:, 1]] & ~actions.is_switch[paired[:, 0]]
    paired = paired[ordinary]
    names = tuple(actions.names[i] for i in paired[:, 0])
    if not len(paired):
        return Lag(None, 0.0, (), "positions", 0.0)
    episodes = list(episodes)
    longest = max(min(round(fps), int(np.median([len(actions) for actions, _ in episodes])) // 4), 1)
    lags = np.arange(-longest, longest + 1)
    sums = np.zeros((2, len(lags), 6, len(paired)))  # meaning, lag, moments, pair
    same, frames = 0, 0
    for all_actions, all_states in episodes:
        if len(all_actions) < 4 * longest:
            continue
        # Zero is the middle of the range: sums of squares of values far from it would lose digits.
        a = (all_actions[:, paired[:, 0]] - actions.mean[paired[:, 0]]).astype(np.float64)
        s = (all_states[:, paired[:, 1]] - state.mean[paired[:, 1]]).astype(np.float64)
        same += int(np.isclose(all_actions[:, paired[:, 0]], all_states[:, paired[:, 1]], atol=1e-6).all(axis=1).sum())
        frames += len(a)
        change = np.diff(s, axis=0)  # what the action of the first of two frames may have caused
        for meaning, (x, y) in enumerate(((a, s), (a[:-1], change))):
            for j, lag in enumerate(lags):
                early, late = (x[: len(x) - lag], y[lag:]) if lag >= 0 else (x[-lag:], y[: len(y) + lag])
                moments = (np.ones_like(early), early, late, early**2, late**2, early * late)
                sums[meaning, j] += [moment.sum(axis=0) for moment in moments]
    if not frames:
        return Lag(None, 0.0, names, "positions", 0.0)
    count, x, y, xx, yy, xy = np.moveaxis(sums, 2, 0)
    spread = np.sqrt(np.maximum(xx - x**2 / count, 0) * np.maximum(yy - y**2 / count, 0))
    correlations = np.where(spread > 0, (xy - x * y / count) / np.where(spread > 0, spread, 1), 0)  # (2, lags, P)
    best = correlations.max(axis=1)  # (2, P)
    medians = np.median(best, axis=1)
    meanings = [i for i, least in enumerate(_CORRELATED.values()) if medians[i] >= least]
    if not meanings:
        return Lag(None, float(medians.max()), names, "positions", same / frames)
    number = max(meanings, key=lambda i: medians[i])
    meaning = list(_CORRELATED)[number]
    believed = best[number] >= _CORRELATED[meaning]
    # The dimensions move together: one lag for all, that of the mean of those that follow.
    by_lag = correlations[number][:, believed].mean(axis=1)
    after = by_lag[longest:]
    if 1 - by_lag.max() > _CLEARLY * (1 - after.max()):
        by_lag = np.r_[np.full(longest, -1), after]
    names = tuple(name for name, yes in zip(names, believed, strict=True) if yes)
    return Lag(int(lags[by_lag.argmax()]), float(medians[number]), names, meaning, same / frames)


def check_lag(lag: Lag, fps: float) -> list[Finding]:
    """What the offset between actions and state means."""
    if lag.same >= limit("action_is_state"):
        text = (
            "The action of every frame is the state of the same frame: a policy learns to stay where it is. Shift the "
            "actions by a frame (action of frame t = state of frame t + 1), or record what was commanded."
        )
        return [Finding("action_is_state", text, "actions", lag.dimensions)]
    if lag.frames is None:
        return []
    seconds = abs(lag.frames) / fps
    if lag.frames <= -limit("state_first"):
        text = (
            f"The actions follow the state by {-lag.frames} frames ({seconds:.2f} s; correlation "
            f"{lag.correlation:.2f}): they are shifted, or were recorded late. A policy would learn to repeat "
            "what has been done."
        )
        return [Finding("state_first", text, "actions", lag.dimensions)]
    kind = "positions for the state" if lag.meaning == "positions" else "changes of the state"
    text = f"Actions are {kind}, which follows them by {lag.frames} frames ({seconds:.2f} s; correlation "
    text += f"{lag.correlation:.2f})."
    if seconds > limit("long_lag"):
        text += " That is slower than arms are: do pictures, states and actions come from one clock?"
        return [Finding("long_lag", text, "actions", lag.dimensions)]
    return [Finding("lag", text, "actions", lag.dimensions)]


def exchanged(
    actions: np.ndarray, state: np.ndarray, paired: np.ndarray, lag: int, width: np.ndarray
) -> list[tuple[int, int]]:
    """Pairs of dimensions, of `paired`, in which the state of each follows the other's action, and not its own.

    Args:
        actions, state: (T, D) of an episode; actions are positions.
        paired: (P, 2) which action belongs to which state.
        lag: frames by which the state follows.
        width: (P,) the whole range of each.
    """
    lag = max(lag, 0)
    if len(state) <= lag + 1:
        return []
    told, done = actions[: len(actions) - lag, paired[:, 0]], state[lag:, paired[:, 1]]
    off = np.stack([np.abs(told - done[:, [j]]).mean(axis=0) for j in range(len(paired))])  # (P state, P action)
    own = np.diag(off)
    other = (off < limit("exchanged") * own[:, None]) & (own > _ACTION_MOVES * width)[:, None]
    return [(int(i), int(j)) for i, j in np.argwhere(other & other.T) if i < j]


def check_exchanged(found: dict[tuple[str, str], list[int]]) -> list[Finding]:
    """`found`: names of two dimensions → the episodes in which they are exchanged."""
    return [
        Finding(
            "exchanged",
            f"The state of {one} follows the actions of {other}, and the other way round, in {some(episodes)}: "
            "exchanged when it was recorded?",
            "state",
            (one, other),
            tuple(episodes),
        )
        for (one, other), episodes in found.items()
    ]


def describe_jumps(found: Places, table: Dimensions, episodes: int) -> list[Finding]:
    """One finding for each dimension that jumps.

    Args:
        found: the frames of each.
        episodes: how many were looked at.
    """
    findings = []
    for dimension, places in sorted(found.items()):
        name, first = table.names[dimension], ", ".join(f"episode {e} frame {t}" for e, t in places[:3])
        jumping = tuple(dict.fromkeys(episode for episode, _ in places))
        turns = any(_CLOSE * turn <= table.range[dimension] <= turn * 1.01 for turn in _TURNS)
        if len(jumping) > 2 and len(jumping) >= limit("in_steps") * episodes and not turns:
            text = (
                f"{name} of the {table.name} moves in single steps, in {len(jumping)} of {episodes} episodes: {first}."
            )
            findings.append(Finding("in_steps", text, table.name, (name,), jumping, places=tuple(places)))
            continue
        text = f"{name} of the {table.name} jumps within one frame, {counted(len(places), 'time')}: {first}"
        text += " ..." if len(places) > 3 else ""
        text += (
            ". An angle that begins anew after a whole turn: unwrap it, or learn it as an angle that wraps "
            "(--relative_actions, --wrapping_angles)."
            if turns
            else (". Lost frames, or a bad reading: mend these episodes, or leave them out.")
        )
        findings.append(Finding("jump", text, table.name, (name,), jumping, places=tuple(places)))
    return findings


def describe_standstills(found: Sequence[tuple[int, int, int]], fps: float) -> list[Finding]:
    """`found`: episode, first frame and end of each."""
    if not found:
        return []
    places = some([f"episode {episode} frames {first} to {end - 1}" for episode, first, end in found], 3)
    longest = max(end - first for _, first, end in found) / fps
    text = f"The state stands still while the actions move, for up to {longest:.1f} s: {places}. A lost connection?"
    episodes = tuple(dict.fromkeys(episode for episode, _, _ in found))
    return [Finding("stuck", text, "state", episodes=episodes, places=tuple(place[:2] for place in found))]


__all__ = [
    "TIMES_AROUND",
    "TIMES_USUAL",
    "Lag",
    "Places",
    "check_exchanged",
    "check_lag",
    "describe_jumps",
    "describe_standstills",
    "exchanged",
    "jumps",
    "measure_lag",
    "pairs",
    "repeated_rows",
    "standstills",
]

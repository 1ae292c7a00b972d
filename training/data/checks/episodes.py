"""Episodes against each other: lengths, how they end, copies, times, instructions."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .findings import Finding, counted, limit, some

# Below so many episodes none can be called unusual.
_FEW = 4
# Median deviations of the lengths from their median, beyond which one is unusual: three standard deviations or so.
_SPREAD = 4.5
# Of the mean speed of the episode's moving half: slower is rest. Its last part is so many seconds.
_REST, _END = 0.25, 0.2
_AROUND = 5  # frames before and after a step in time
_COMPARED = 20  # episodes that may be the same, each with the next ones: of those that stand still all may be
_PLACEHOLDERS = {"test", "asdf", "todo", "tbd", "na", "none", "null", "xxx", "placeholder", "task", "valid", "no task"}


def end_speed(values: np.ndarray, width: np.ndarray, fps: float) -> float:
    """How fast an episode ends, relative to how fast it usually moves: about 0 at rest, about 1 in full motion.

    Args:
        values: (T, D) states, or actions that are positions.
        width: (D,) the whole range; dimensions without one are left out.
        fps: frames per second.
    """
    varies = width > 0
    speed = np.linalg.norm(np.diff(values[:, varies], axis=0) / width[varies], axis=1)  # (T - 1,)
    moving = speed[speed >= np.median(speed)] if len(speed) else speed
    usual = float(moving.mean()) if len(moving) else 0.0
    return float(speed[-max(round(_END * fps), 1) :].mean()) / usual if usual else 0.0


def check_endings(episodes: Sequence[int], speeds: Sequence[float]) -> list[Finding]:
    """Episodes that end in motion where nearly all others end at rest."""
    at_rest = np.array(speeds) < _REST
    if len(episodes) < _FEW or at_rest.all() or at_rest.mean() < limit("ends_moving"):
        return []
    cut = tuple(episode for episode, rest in zip(episodes, at_rest, strict=True) if not rest)
    text = (
        f"Of {len(episodes)} episodes these end in full motion, the others at rest: {some(cut)}. They look "
        "cut off: leave them out, or look at their last frames."
    )
    return [Finding("ends_moving", text, episodes=cut)]


def check_lengths(episodes: Sequence[int], lengths: Sequence[int], fps: float) -> list[Finding]:
    """Episodes far shorter or longer than the median."""
    findings, median = [], float(np.median(lengths))
    sizes = np.array(lengths)
    ordinary = _SPREAD * np.median(np.abs(sizes - median))  # frames from the median: some tasks take any time
    for code, chosen, word in (
        ("short_episode", sizes < min(limit("short_episode") * median, median - ordinary), "shorter"),
        ("long_episode", sizes > max(limit("long_episode") * median, median + ordinary), "longer"),
    ):
        if len(episodes) >= _FEW and chosen.any():
            found = tuple(int(episodes[i]) for i in np.flatnonzero(chosen))
            places = some([f"{episodes[i]} ({sizes[i] / fps:.1f} s)" for i in np.flatnonzero(chosen)])
            text = f"Far {word} than the median of {median / fps:.1f} s, of {len(episodes)} episodes: "
            findings.append(Finding(code, f"{text}{places}.", episodes=found))
    return findings


def fingerprint(vectors: np.ndarray, width: np.ndarray) -> tuple[float, ...]:
    """A few numbers that differ by less than `limit("same_episode")` between copies, and hardly for anything else.

    Args:
        vectors: (T, D), all that is recorded of an episode.
        width: (D,) the whole range; dimensions without one are left out.
    """
    varies = width > 0
    scaled = vectors[:, varies] / np.where(width, width, 1)[varies]
    weights = np.cos(np.arange(scaled.shape[1])) / max(scaled.shape[1], 1)  # of all dimensions, at most 1 in all
    return len(vectors), *(scaled[len(vectors) * quarter // 4] @ weights for quarter in (1, 2, 3))


def find_copies(prints: Mapping[int, tuple[float, ...]], are_same: Callable[[int, int], bool]) -> list[list[int]]:
    """Group the episodes that are the same; others are left out.

    Args:
        prints: of each episode, see `fingerprint`.
        are_same: compares two episodes that may be.
    """
    waiting = sorted(prints, key=lambda episode: prints[episode])
    group_of: dict[int, list[int]] = {}
    for i, one in enumerate(waiting):
        for other in waiting[i + 1 : i + 1 + _COMPARED]:
            (length, first, *rest), (other_length, other_first, *other_rest) = prints[one], prints[other]
            if length != other_length or other_first - first > limit("same_episode"):
                break
            apart = np.abs(np.subtract(rest, other_rest)).max()
            if other not in group_of and apart <= limit("same_episode") and are_same(one, other):
                group_of[other] = group_of.setdefault(one, [one])
                group_of[other].append(other)
    return sorted(sorted(group) for group in {id(group): group for group in group_of.values()}.values())


def check_copies(groups: Sequence[Sequence[int]]) -> list[Finding]:
    """Episodes with the same actions and states."""
    if not groups:
        return []
    equal = some([" = ".join(map(str, group)) for group in groups])
    text = f"Episodes with the same states and actions: {equal}. Keep one of each."
    return [Finding("same_episode", text, episodes=tuple(episode for group in groups for episode in group))]


def check_rate(seconds: float, steps: int, fps: float) -> list[Finding]:
    """Times that run at another rate than the data is said to have.

    Args:
        seconds, steps: of all episodes together, see `time_taken`.
    """
    if not (steps and seconds > 0) or abs(steps / seconds / fps - 1) <= limit("other_rate"):
        return []
    text = (
        f"By its timestamps the data has {steps / seconds:.4g} frames a second, by its description {fps:g}: a policy "
        "acts at the second. Correct the one that is wrong."
    )
    return [Finding("other_rate", text)]


def time_taken(times: np.ndarray) -> tuple[float, int]:
    """Seconds of an episode, (T,) times, and steps from row to row in them; both without the gaps at its own rate.

    Measured times are uneven, but not as a whole.
    """
    taken = float(times[-1] - times[0])
    if not (np.isfinite(times).all() and taken > 0):
        return 0.0, 0
    steps, gaps = np.diff(times), time_gaps(times, (len(times) - 1) / taken) - 1
    return taken - float(steps[gaps].sum()), len(steps) - len(gaps)


def time_gaps(times: np.ndarray, fps: float) -> np.ndarray:
    """Frames before which time is missing, (n,): a long step, after which the clock stays behind.

    Times that were measured are uneven, but the next ones make up for a late one.
    """
    steps = np.flatnonzero(np.diff(times) * fps > limit("time_gap") + 1e-3) + 1
    late = times * fps - np.arange(len(times))  # frames
    stays = [
        np.median(late[frame : frame + _AROUND]) - np.median(late[max(frame - _AROUND, 0) : frame]) for frame in steps
    ]
    return steps[np.array(stays) > limit("time_gap") / 2]


def check_gaps(gaps: Mapping[int, tuple[int, float]], frames: int) -> list[Finding]:
    """`gaps`: episode → how many gaps it has, and the longest in seconds."""
    if not gaps:
        return []
    count, longest = sum(number for number, _ in gaps.values()), max(seconds for _, seconds in gaps.values())
    text = (
        f"Time is missing between two of {frames} frames in {counted(count, 'place')}, up to {longest:.2f} s (episodes "
        f"{some(list(gaps))}). Actions there are further apart than a chunk thinks."
    )
    return [Finding("time_gap", text, episodes=tuple(gaps))]


def check_texts(by_episode: Mapping[int, Sequence[str]], tasks: Sequence[str]) -> list[Finding]:
    """Instructions: empty, placeholders, two spellings of one, and tasks that no frame has.

    Args:
        by_episode: the instructions of each episode.
        tasks: of the task table.
    """
    findings, users = [], defaultdict(list)
    for episode, texts in by_episode.items():
        for text in texts:
            users[text].append(episode)
    if empty := tuple(users.pop("", ()) or ()):
        text = f"The instruction of {counted(len(empty), 'episode')} is empty: {some(empty)}. Give the task a sentence."
        findings.append(Finding("no_text", text, episodes=empty))
    spellings = defaultdict(list)
    for text in users:
        plain = re.sub(r"[\W_]+", " ", text).strip().lower()
        spellings[plain].append(text)
        if plain in _PLACEHOLDERS:
            said = f"The instruction of {counted(len(users[text]), 'episode')} is {text!r}. Write what is done there."
            findings.append(Finding("placeholder", said, episodes=tuple(users[text])))
    for same in spellings.values():
        if len(same) > 1:
            episodes = tuple(episode for text in same for episode in users[text])
            said = f"One instruction in {len(same)} spellings: {some([repr(text) for text in same])}."
            findings.append(Finding("spellings", said, episodes=episodes))
    if unused := [text for text in tasks if text and text not in users]:
        findings.append(Finding("unused_task", f"No frame has the task {some([repr(text) for text in unused])}."))
    return findings


__all__ = [
    "check_copies",
    "check_endings",
    "check_gaps",
    "check_lengths",
    "check_rate",
    "check_texts",
    "end_speed",
    "find_copies",
    "fingerprint",
    "time_gaps",
    "time_taken",
]

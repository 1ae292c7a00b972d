"""What is looked at in every row when a dataset is opened, once and a block at a time."""

from collections.abc import Mapping, Sequence

import numpy as np

from .frame_table import ROW_NUMBER

# A step between two rows that is further from 1 / fps than this share of it is not even.
_EVEN = 0.1
# How far the rate of the times may be from fps: a robot's real rate is seldom the one it was asked for.
_RATES = (2 / 3, 3 / 2)
# Even times, though, were computed from a rate, or kept by a good clock: one that is further from fps than the first
# share is said, than the second refused. Fewer steps than these may be even by chance. Of uneven times a rate
# that is further away than the second share is said.
_DRIFT, _OTHER_RATE, _ENOUGH_STEPS = 0.01, 0.05, 8
_GAP = 1.9  # frames from row to row, from where on one was lost between them
# Steps of float32 that are coarser than this share of a dimension's standard deviation are said.
_COARSE = 0.1


class FrameChecks:
    """Faults and peculiarities of the rows of some episodes. Give all blocks to `add`, then ask.

    Args:
        name: of the dataset.
        fps: by its metadata.
        episodes, first_rows, lengths: (E,) number, first row and rows of each.
        known_tasks: numbers of the tasks, or None if rows have none.

    Attributes:
        first_tasks: (E,) the task of each episode's first row.
    """

    def __init__(
        self,
        name: str,
        fps: float,
        episodes: np.ndarray,
        first_rows: np.ndarray,
        lengths: np.ndarray,
        known_tasks: Sequence[int] | None,
    ):
        self._name, self._fps = name, fps
        self._episodes, self._first_rows, self._lengths = episodes, first_rows, lengths
        self._known_tasks = None if known_tasks is None else np.array(known_tasks, np.int64)
        count = len(episodes)
        self.first_tasks = np.zeros(count, np.int64)
        self._times = np.full((2, count), np.nan)  # of the first and last row
        self._shortest, self._longest = np.full(count, np.inf), np.full(count, -np.inf)  # steps
        self._near = np.zeros((2, count))  # seconds and number of steps that are no gaps
        self._last_time = self._last_number = np.nan
        self._has_times = self._is_numbered = False
        self._has_gaps = np.zeros(count, bool)  # in the numbers of the frames
        self._not_finite: dict[str, list] = {}  # by vector: how many rows, and the first one's place
        # By vector, (D,) each: smallest and largest values; a value, how many there are, their sum and sum of squares
        # from there (of large values that change little, plain squares would lose what they change by)
        self._ranges: dict[str, list] = {}

    def add(self, rows: np.ndarray, episodes: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Look at a block.

        Args:
            rows, episodes: (n,) as from `frame_table.blocks`.
            columns: those of `timestamp`, `frame_index`, `index` and `task_index` that there are, (n,); `actions` and
                `state` (n, D), as they are stored.

        Raises:
            ValueError: a row's number is not after the one before; an unknown task.
        """
        frames = rows - self._first_rows[episodes]  # counted from 0 in each episode
        if "frame_index" in columns:
            self._add_numbers(frames, episodes, columns["frame_index"])
        elif ROW_NUMBER in columns:
            self._add_order(frames, episodes, columns[ROW_NUMBER])
        if "timestamp" in columns:
            self._add_times(frames, episodes, columns["timestamp"])
        if "task_index" in columns and self._known_tasks is not None:
            unknown = ~np.isin(columns["task_index"], self._known_tasks)
            if unknown.any():
                first = int(np.argmax(unknown))
                if np.isnan(columns["task_index"][first]):
                    raise ValueError(
                        f"{self._name}: episode {self._episodes[episodes[first]]}, frame {frames[first]}, has no task: "
                        "its task_index is empty. Give it one, or leave the episode out with `episodes=[...]`."
                    )
                raise ValueError(
                    f"{self._name}: episode {self._episodes[episodes[first]]} has the task "
                    f"{columns['task_index'][first]}, but the task table has only "
                    f"{', '.join(map(str, self._known_tasks[:20]))}."
                )
            self.first_tasks[episodes[frames == 0]] = columns["task_index"][frames == 0]
        for name in columns.keys() & {"actions", "state"}:
            self._add_vectors(name, frames, episodes, columns[name])

    def _add_numbers(self, frames: np.ndarray, episodes: np.ndarray, numbers: np.ndarray) -> None:
        self._is_numbered = True
        steps = np.diff(numbers, prepend=self._last_number)
        self._last_number = numbers[-1]
        wrong = (frames > 0) & ~(steps >= 1)
        if wrong.any():
            episode = episodes[int(np.argmax(wrong))]
            raise ValueError(
                f"{self._name}: the frames of episode {self._episodes[episode]} are not numbered 0 to "
                f"{self._lengths[episode] - 1}, nor in any order that grows."
            )
        self._has_gaps[episodes[numbers != frames]] = True

    def _add_order(self, frames: np.ndarray, episodes: np.ndarray, numbers: np.ndarray) -> None:
        steps = np.diff(numbers, prepend=self._last_number)
        self._last_number = numbers[-1]
        wrong = (frames > 0) & (steps < 0)
        if wrong.any():
            episode = self._episodes[episodes[int(np.argmax(wrong))]]
            raise ValueError(
                f"{self._name}: the rows of episode {episode} are not in the order of their column {ROW_NUMBER!r}, and "
                "without frame_index nobody can tell which is right. Sort them, or export the dataset again."
            )

    def _add_times(self, frames: np.ndarray, episodes: np.ndarray, times: np.ndarray) -> None:
        self._has_times = True
        steps = np.diff(times, prepend=self._last_time)
        self._last_time = times[-1]
        is_first = frames == 0
        self._times[0, episodes[is_first]] = times[is_first]
        is_last = frames == self._lengths[episodes] - 1
        self._times[1, episodes[is_last]] = times[is_last]
        steps, episodes = steps[~is_first], episodes[~is_first]
        is_near = steps * self._fps < _GAP
        np.add.at(self._near[0], episodes[is_near], steps[is_near])
        np.add.at(self._near[1], episodes[is_near], 1)
        with np.errstate(invalid="ignore"):  # NaN stays
            np.minimum.at(self._shortest, episodes, steps)
            np.maximum.at(self._longest, episodes, steps)

    def _add_vectors(self, name: str, frames: np.ndarray, episodes: np.ndarray, values: np.ndarray) -> None:
        if values.dtype.kind not in "iub":
            with np.errstate(over="ignore"):
                bad = ~np.isfinite(values.astype(np.float32, copy=False)).all(axis=1)
            if bad.any():
                first = int(np.argmax(bad))
                found = self._not_finite.setdefault(name, [0, self._episodes[episodes[first]], frames[first]])
                found[0] += int(bad.sum())
                values = values[~bad]
                if not len(values):
                    return
        low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
        lowest, highest, middle, count, total, squares = self._ranges.get(name, (low, high, low, 0, 0.0, 0.0))
        away = values.astype(np.float64) - middle
        moments = [count + len(values), total + away.sum(axis=0), squares + (away**2).sum(axis=0)]
        self._ranges[name] = [np.minimum(low, lowest), np.maximum(high, highest), middle, *moments]

    def refuse_unfinite(self, keys: dict[str, str]) -> None:
        """
        Args:
            keys: what the vectors are called in the dataset.

        Raises:
            ValueError: there is NaN or infinity among actions or states.
        """
        for name, (count, episode, frame) in self._not_finite.items():
            raise ValueError(
                f"{self._name}: {keys[name]!r} holds NaN or infinity in {count} frames; the first is episode "
                f"{episode}, frame {frame}. Repair these frames, or leave the episodes out with `episodes=[...]`."
            )

    def check_times(self) -> list[str]:
        """What there is to say of the times, a sentence each.

        Raises:
            ValueError: rows go back in time, and no numbers say that their order is right; or the times run at another
                rate than the dataset is said to have.
        """
        notes = []
        if self._has_gaps.any():
            notes.append(
                f"frame_index leaves numbers out, or does not begin at 0, in {self._some(self._has_gaps)}: frames are "
                "numbered in the order of the rows."
            )
        if not self._has_times:
            return notes
        many = self._lengths > 1
        goes_back = self._shortest < -1e-9
        if goes_back.any() and not self._is_numbered:
            raise ValueError(
                f"{self._name}: the timestamps go back in {self._some(goes_back)}, and without frame_index nobody can "
                "tell in which order the rows are."
            )
        unusable = many & ~(np.isfinite(self._shortest) & np.isfinite(self._longest) & np.isfinite(self._times[0]))
        still = many & ~unusable & (self._shortest == 0) & (self._longest == 0)
        runs = many & ~unusable & ~still
        durations = (self._times[1] - self._times[0]) / np.maximum(self._lengths - 1, 1)
        if (runs & ~goes_back).any():
            step = float(np.median(durations[runs & ~goes_back]))
            if not _RATES[0] <= step * self._fps <= _RATES[1]:
                raise ValueError(
                    f"{self._name}: at {self._fps} fps frames are {1 / self._fps:.4f} s apart, but the timestamps are "
                    f"{step:.4g} s apart. Correct fps in meta/info.json, or the timestamps (in seconds)."
                )
        with np.errstate(invalid="ignore"):  # of times that are no numbers
            spread = (self._longest - self._shortest) * self._fps
        even = runs & ~goes_back & (spread <= _EVEN)
        short = even & (self._lengths <= _ENOUGH_STEPS)
        if short.any() and (
            (self._lengths - 1)[short].sum() <= _ENOUGH_STEPS
            or (self._longest[short].max() - self._shortest[short].min()) * self._fps > _EVEN
        ):  # not even all together
            even &= ~short
        off = np.abs(durations * self._fps - 1)
        if (other := even & (off > _OTHER_RATE)).any():
            worst = float(durations[np.argmax(np.where(other, off, 0))])
            raise ValueError(
                f"{self._name}: the timestamps are evenly {worst:.4g} s apart in {self._some(other)}, which is "
                f"{1 / worst:.4g} frames a second, but meta/info.json says fps = {self._fps}. A policy acts at that "
                "rate: correct the one that is wrong."
            )
        late = np.isfinite(self._times[0]) & (np.abs(self._times[0]) * self._fps > _EVEN)
        drifts = even & (off > _DRIFT)
        uneven = runs & (np.maximum(self._longest * self._fps - 1, 1 - self._shortest * self._fps) > _EVEN)
        if unusable.any():
            notes.append(f"Some timestamps are no numbers in {self._some(unusable)}.")
        if still.any():
            notes.append(f"The timestamps do not move in {self._some(still)}.")
        if late.any():
            begin = self._times[0, late]
            places = f"{begin.min():.4g} s" + (f" to {begin.max():.4g} s" if np.ptp(begin) > 1e-6 else "")
            notes.append(f"The timestamps begin at {places} and not at 0 in {self._some(late)}.")
        if drifts.any():
            rate = float((self._lengths - 1)[drifts].sum() / (self._times[1] - self._times[0])[drifts].sum())
            notes.append(
                f"The timestamps run at {rate:.4g} frames a second where fps is {self._fps}, in {self._some(drifts)}: "
                f"{self._fps} is what a policy acts at."
            )
        if uneven.any():
            notes.append(
                f"The timestamps are uneven, {self._shortest[uneven].min():.4g} to {self._longest[uneven].max():.4g} s "
                f"apart where {self._fps} fps are {1 / self._fps:.4g} s, in {self._some(uneven)}."
            )
        if rate := self._uneven_rate(other := runs & ~goes_back & ~even):
            notes.append(
                f"The timestamps run at some {rate:.4g} frames a second, unevenly, where fps is {self._fps}, in "
                f"{self._some(other)}: {self._fps} is what a policy acts at. Correct the one that is wrong."
            )
        return notes

    def _uneven_rate(self, chosen: np.ndarray) -> float | None:
        """Frames a second of episodes with uneven times; None if it is about fps.

        Lost frames and pauses make all steps together too long, and bursts of rows those that are no gaps too short: it
        is another rate if both say so.
        """
        seconds = np.array([(self._times[1] - self._times[0])[chosen].sum(), self._near[0, chosen].sum()])
        steps = np.array([(self._lengths - 1)[chosen].sum(), self._near[1, chosen].sum()])
        if not (seconds > 0).all():
            return None
        rates = steps / seconds
        off = rates / self._fps - 1
        if (off > _OTHER_RATE).all() or (off < -_OTHER_RATE).all():
            return float(rates[0])
        return None

    def rounding(self, names: Mapping[str, Sequence[str]]) -> list[str]:
        """Where float32, in which policies compute, is coarse for what was recorded, a sentence each.

        Args:
            names: of the dimensions of each vector.
        """
        notes = []
        for name, (low, high, _, count, total, squares) in self._ranges.items():
            largest = np.maximum(np.abs(low), np.abs(high))
            spacing = np.spacing(largest.astype(np.float32)).astype(np.float64)
            std = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
            coarse = (high > low) & (spacing > _COARSE * std)
            if coarse.any():
                worst = int(np.argmax(np.where(coarse, spacing / np.maximum(std, 1e-300), 0)))
                verb = "dimension changes" if coarse.sum() == 1 else "dimensions change"
                notes.append(
                    f"{int(coarse.sum())} {verb} so little in the {name}, for values so large, that float32 rounds "
                    f"away what matters, most of {names[name][worst]!r}: {low[worst]:.10g} to {high[worst]:.10g}, in "
                    f"steps of {spacing[worst]:.4g}."
                )
        return notes

    def _some(self, chosen: np.ndarray) -> str:
        count, first = int(chosen.sum()), self._episodes[int(np.argmax(chosen))]
        if count == 1:
            return f"episode {first}"
        return f"{'all ' if count == len(chosen) else ''}{count} episodes (the first is {first})"


__all__ = ["FrameChecks"]

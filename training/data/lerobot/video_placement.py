"""Which frame of a video belongs to which row of an episode. What cannot be told for certain is refused.

A video and the rows beside it are recorded by two programs. They agree where an episode has as many frames in the video
as rows: then row k has frame k, whatever the clocks say. Where the numbers differ (a dropped row, a video of another
frame rate) the times decide, if both begin and end together. In a file with several episodes those must lie one after
the other: an episode that is said to begin a frame too late would otherwise show the wrong pictures, and nobody would
see it.
"""

from dataclasses import dataclass

import numpy as np

_EVEN = 0.1  # how far a video's frame may be from its place in an even row of them, as a share of its duration


class PlacementError(ValueError):
    """Rows for which the frames cannot be told.

    Attributes:
        episode: the number of the episode, where it is one of several in a file.
    """

    def __init__(self, message: str, episode: int | None = None):
        super().__init__(message)
        self.episode = episode


@dataclass(frozen=True)
class VideoTimes:
    """When the frames of a video file are shown.

    Attributes:
        seconds: (F,) in order, from 0.
        duration: of one frame, the median.
    """

    seconds: np.ndarray
    duration: float

    @classmethod
    def of(cls, seconds: np.ndarray, fps: float) -> "VideoTimes":
        """Take `fps` for the rate of a video of a single frame."""
        return cls(seconds, float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1 / fps)

    @property
    def rate(self) -> float:
        """Frames per second, but for gaps; written times may be rounded, their mean is not."""
        steps = np.diff(self.seconds)
        steps = steps[np.abs(steps - self.duration) < self.duration / 2]
        return 1 / float(steps.mean() if len(steps) else self.duration)

    @property
    def end(self) -> float:
        return float(self.seconds[-1]) + self.duration

    def has_rate(self, fps: float) -> bool:
        """Whether a frame lasts as long as a row, so that there should be one for each."""
        return abs(self.duration * fps - 1) < 0.1


@dataclass(frozen=True)
class PlacedRows:
    """Where the rows of an episode are in their video.

    Attributes:
        first: the frame of the first row.
        numbers: (n,) the frame of every row where they do not simply follow each other, otherwise None.
        off: (n,) how far the rows' times are from those frames', in seconds; None if times did not matter.
        ends_off: how many seconds the video ends before or after the rows, where only the tolerance allows that.
        gap: the first row before which the video's clock leaves a frame out and the rows' times do not; or None.
    """

    first: int
    numbers: np.ndarray | None = None
    off: np.ndarray | None = None
    ends_off: float = 0.0
    gap: int | None = None


def place_rows(
    row_times: np.ndarray, video: VideoTimes, first: int, end: int, fps: float, tolerance: float
) -> PlacedRows:
    """Place the rows of an episode among the frames `first` to `end` of a video.

    Args:
        row_times: (n,) seconds.
        fps: of the rows.
        tolerance: how many seconds a row may be from its frame. With more than half a frame the video may also end so
            much before or after the rows.

    Raises:
        PlacementError: the numbers differ, and the times do not tell.
    """
    rows, frames = len(row_times), end - first
    if rows == frames:
        return PlacedRows(first, gap=_gap(row_times, video, first, fps))
    numbers = f"{rows} rows, and {max(frames, 0)} frames in the video"
    if frames < 1:
        raise PlacementError(f"{numbers}.")
    if not (np.isfinite(row_times).all() and (np.diff(row_times) > 0).all()):
        raise PlacementError(f"{numbers}; its times do not grow from row to row, so they cannot tell which is which.")
    if abs(row_times[0]) > tolerance:
        raise PlacementError(
            f"{numbers}; its times begin at {row_times[0]:.4g} s and not at 0, so they cannot tell which is which."
        )
    seconds = video.seconds[first:end] - video.seconds[first]
    is_strict = tolerance <= 0.5 / fps  # nobody has asked for more
    if video.has_rate(fps) and is_strict:
        lost = int((np.diff(row_times) * fps).round().sum()) - rows + 1
        if lost != frames - rows:
            raise PlacementError(
                f"{numbers} of the same rate, while the rows' times have gaps for {lost} more: nobody can tell which "
                "frame is missing or too many."
            )
    tolerance += 1e-6  # of times as they are written down
    nearest = _nearest(seconds, row_times)
    off = np.abs(seconds[nearest] - row_times)
    slack = video.duration / 2 + 1e-6
    after_last_row = float(seconds[-1] - row_times[-1])
    ends_off = max(-after_last_row, after_last_row - (1 / fps - video.duration), 0.0)
    if ends_off > (slack if is_strict else tolerance):
        raise PlacementError(
            f"{numbers}, which has its last one {after_last_row:.4g} s after the last row: nobody can tell where "
            "frames are missing or too many."
        )
    if (far := off > tolerance).any():
        raise PlacementError(
            f"{numbers}; {int(far.sum())} rows have no frame within {tolerance:.4g} s, the worst is {off.max():.4g} s "
            f"off (row {int(off.argmax())})."
        )
    return PlacedRows(first, (first + nearest).astype(np.int32), off, ends_off if ends_off > slack else 0.0)


def _gap(row_times: np.ndarray, video: VideoTimes, first: int, fps: float) -> int | None:
    """See `PlacedRows.gap`; of a video that is even otherwise: if its times were measured, gaps say nothing."""
    steps = np.diff(video.seconds[first : first + len(row_times)]) / video.duration
    if (np.abs(steps - steps.round()) > _EVEN).any():
        return None
    with np.errstate(invalid="ignore"):  # of times that are no numbers
        gaps = np.flatnonzero((steps > 1.5) & ~(np.diff(row_times) * fps > 1.5))
    return int(gaps[0]) + 1 if len(gaps) else None


def frames_of_episodes(
    video: VideoTimes,
    episodes: np.ndarray,
    lengths: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    is_used: np.ndarray,
    known: np.ndarray,
    fps: float,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Find the frames of the episodes that are in one video file, one after the other.

    If the file has as many frames as all its episodes have rows, they are counted. Otherwise the table's times say
    where an episode lies.

    Args:
        episodes: (n,) their numbers, growing.
        lengths: (n,) their rows.
        starts, ends: (n,) where they lie by the episode table, in seconds; an end may be NaN.
        is_used: (n,) whether the episode matters.
        known: numbers of all episodes of the dataset.
        fps: of the rows.
        tolerance: with more than half a frame (seconds) the video may go on for so long after its last episode.

    Returns:
        (n,) the first frame, and (n,) one past the last, of those that are used; by how many seconds the table's times
        are off where frames were counted; and for how many the video goes on after its last episode, where only the
        tolerance allows that.

    Raises:
        PlacementError: up to the last one that is used and its neighbour, episodes overlap, have another order than
            their numbers, or leave frames out between them for no reason; one lies past the end of the video; or the
            video goes on after the last one.
    """
    ends = np.where(np.isnan(ends), np.append(starts[1:], video.end), ends)
    last = int(np.flatnonzero(is_used)[-1])
    has_hole = _check_neighbours(episodes[: last + 2], starts[: last + 2], ends[: last + 2], known, video.duration)
    first, end = np.zeros(len(episodes), np.int64), np.zeros(len(episodes), np.int64)
    if not has_hole and lengths.sum() == len(video.seconds):
        end = np.cumsum(lengths)
        first = end - lengths
        return first, end, float(np.abs(video.seconds[first] - starts).max()), 0.0
    # Frames after the last episode may as well be too many before the first: then every picture is another one's.
    was_removed = episodes[-1] < known.max() and episodes[-1] + 1 not in known
    tail = 0.0 if was_removed else video.end - float(ends[-1])
    slack = video.duration / 2 + 1e-6
    if tail > (tolerance + 1e-6 if tolerance > 0.5 / fps else slack):
        raise PlacementError(
            f"the video goes on for {tail:.4g} s after it, the last one in the file, and has {len(video.seconds)} "
            f"frames for {lengths.sum()} rows: nobody can tell whether the frames too many are at its end.",
            int(episodes[-1]),
        )
    same_rate = video.has_rate(fps)
    for i in range(last + 1):
        if is_used[i] or same_rate:
            first[i], end[i] = _frames_between(video, int(episodes[i]), float(starts[i]), float(ends[i]))
        # Times that were counted at the rows' rate fall behind a video of another one: by frames, after many
        is_counted = end[i] - first[i] == lengths[i] and abs((ends[i] - starts[i]) * fps - lengths[i]) < 0.01
        if is_used[i] and same_rate and is_counted and starts[i] * abs(video.rate - fps) > 0.5:
            raise PlacementError(
                f"the episode table's times are those of {fps} fps, the video runs at {video.rate:.4g}, and the "
                "frames before it cannot be counted: nobody can tell where in the video it is.",
                int(episodes[i]),
            )
        if not is_used[i] and same_rate and end[i] - first[i] != lengths[i]:
            raise PlacementError(
                f"it comes after episode {episodes[i]}, which has {lengths[i]} rows and {end[i] - first[i]} frames in "
                "the same video: the episode table's times are not those of the video.",
                int(episodes[np.argmax(is_used & (np.arange(len(episodes)) > i))]),
            )
    return first, end, 0.0, tail if tail > slack else 0.0


def _frames_between(video: VideoTimes, episode: int, start: float, end: float) -> tuple[int, int]:
    """The frames from `start` to `end` (seconds): the first one, and one past the last."""
    half = video.duration / 2
    where = f"it is said to lie from {start:.4f} s to {end:.4f} s of a video of {video.end:.4f} s"
    if not start < end:
        raise PlacementError(f"{where}, which is nothing.", episode)
    if end > video.end + half:
        raise PlacementError(f"{where}: the video is too short.", episode)
    first = int(_nearest(video.seconds, np.array([start]))[0])
    if abs(video.seconds[first] - start) > half:
        raise PlacementError(f"{where}, and there is no frame at its beginning.", episode)
    return first, int(np.searchsorted(video.seconds, end - half))


def _check_neighbours(
    episodes: np.ndarray, starts: np.ndarray, ends: np.ndarray, known: np.ndarray, frame: float
) -> bool:
    """Check that the episodes lie one after the other, and say whether there is a hole between them.

    A hole is fine where an episode is not in the table any more.
    """
    gaps = starts - np.append(0.0, ends[:-1])
    for i in np.flatnonzero(~(np.abs(gaps) <= frame / 2)).tolist():
        place = f"it lies from {starts[i]:.4f} s to {ends[i]:.4f} s of its video"
        before = f"episode {episodes[i - 1]} before it ends at {ends[i - 1]:.4f} s" if i else "the video begins at 0 s"
        was_removed = episodes[i] > 0 and episodes[i] - 1 not in known
        if gaps[i] < 0 or not was_removed:
            raise PlacementError(f"{place}, but {before}.", int(episodes[i]))
    return bool((gaps > frame / 2).any())


def _nearest(seconds: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n,) the index of the time nearest to each wanted one; of two that are as near, the earlier one."""
    after = np.searchsorted(seconds, wanted).clip(1, max(len(seconds) - 1, 1))
    if len(seconds) == 1:
        return np.zeros(len(wanted), np.int64)
    before = after - 1
    return np.where(wanted - seconds[before] <= seconds[after] - wanted + 1e-6, before, after)


__all__ = ["PlacedRows", "PlacementError", "VideoTimes", "frames_of_episodes", "place_rows"]

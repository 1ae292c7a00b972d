"""The frames of videos that the rows of episodes have: placed when a dataset is opened, or when a video is fetched."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ..file_windows import FileWindows
from .metadata import LeRobotMetadata
from .streamed_videos import StreamedVideos
from .video_file import VideoReadError, check_video_file
from .video_placement import PlacementError, VideoTimes, frames_of_episodes, place_rows

T = TypeVar("T")
SAME_RATE = 0.02  # how far a video's rate may be from that of the rows, as a share of it, before it is another one
_ONLY_THE_END = (
    "It is assumed that only their ends are wrong: were a frame missing or too many before, later rows would have the "
    "picture of another one."
)
_MANY_FILES = 50  # to be looked at, from where on there is a progress bar


@dataclass(frozen=True)
class _Off:
    """What does not agree in a video that is placed nevertheless, in seconds.

    Attributes:
        drift: how far the episode table's times are off, if by more than half a frame.
        offs: of each episode that is placed by time, how far its rows are from their frames.
        ends_off: how far the video's end is from that of its rows, where only the tolerance allows that.
        gap: the first frame before which the video's clock leaves time out and the rows' times do not; or None.
    """

    drift: float
    offs: list[np.ndarray]
    ends_off: float
    gap: str | None


class EpisodeVideos:
    """The videos of a dataset's selected episodes; which frame a row has is found, or the dataset is refused.

    An episode is given by its number among the selected ones.

    Args:
        name: the dataset's, for messages.
        cameras: those that are stored as video; perhaps none.
        positions: (E,) of the selected episodes, see `LeRobotMetadata`.
        times: the times of an episode's rows, in seconds.
        tolerance_s: see `LeRobotDataset`.
        stream: fetches the videos; then a video's frames are found when it is fetched, and it is refused then.

    Attributes:
        notes: what was assumed, a sentence each.
        other_rates: camera → frames per second of videos that have a frame for each row, and run at another rate.

    Raises:
        ValueError: a video is damaged, or nobody can tell which frames are whose.
    """

    def __init__(
        self,
        name: str,
        metadata: LeRobotMetadata,
        cameras: Sequence[str],
        positions: np.ndarray,
        times: Callable[[int], np.ndarray],
        tolerance_s: float,
        stream: StreamedVideos | None,
    ):
        self._name, self._metadata, self._cameras, self._positions = name, metadata, list(cameras), positions
        self._times, self._fps, self._tolerance_s, self._stream = times, metadata.info["fps"], tolerance_s, stream
        self.notes: list[str] = []
        self.other_rates: dict[str, list[float]] = {camera: [] for camera in cameras}
        # Camera → of each episode; -1 is not found yet
        self._first_frames = {camera: np.full(len(positions), -1, np.int64) for camera in cameras}
        # Camera → episode → frames of its rows
        self._frame_numbers: dict[str, dict[int, np.ndarray]] = {camera: {} for camera in cameras}
        # Camera → "by row", "by time" → an episode of videos of a very different rate than the rows
        self._how_placed: dict[str, dict[str, int]] = {camera: {} for camera in cameras}
        self._readers: Any = None  # `VideoReaders`
        self._streamed_files: dict[str, dict[Path, np.ndarray]] = {}
        if not cameras:
            return
        from .video import VideoReaders  # PyAV is an optional dependency

        files = {camera: metadata.video_files(camera, positions) for camera in cameras}
        if stream is not None:
            self._streamed_files = files
            self._readers = VideoReaders(open_file=self._open)
            if tolerance_s > 0.5 / self._fps:
                self.notes.append(
                    f"Videos may end up to {tolerance_s:.4g} s before or after their rows (tolerance_s). "
                    f"{_ONLY_THE_END}"
                )
            return
        self._readers = VideoReaders()
        count = sum(map(len, files.values()))
        progress = tqdm(total=count, desc="Looking at videos", unit="file", disable=count < _MANY_FILES)
        for camera in cameras:
            self._place_all(camera, files[camera], progress)
        progress.close()

    def read(self, camera: str, episode: int, rows: Sequence[int]) -> list[np.ndarray]:
        """The pictures of some of an episode's rows, each uint8 (height, width, 3).

        Raises:
            VideoReadError: it cannot be decoded.
        """
        position = int(self._positions[episode])
        if self._first_frames[camera][episode] < 0:
            self._place_streamed(camera, position)
        numbers = self._frame_numbers[camera].get(episode)
        first = int(self._first_frames[camera][episode])
        wanted = [first + row if numbers is None else int(numbers[row]) for row in rows]
        return self._readers.read(self._metadata.video(camera, position), wanted)

    def files(self) -> dict[str, list[Path]]:
        """The video files, by camera; they are read by `read_file`."""
        return {camera: list(self._metadata.video_files(camera, self._positions)) for camera in self._cameras}

    def read_file(self, path: Path, read: Callable[[Path], T]) -> T:
        """Read a video file, which is fetched first if it is streamed."""
        return read(path) if self._stream is None else self._stream.use(path, read)

    def windows(self, ends: np.ndarray) -> FileWindows | None:
        """The order to train in; None if nothing is streamed.

        Args:
            ends: (E,) one past each episode's last item.
        """
        if self._stream is None or not self._streamed_files:
            return None
        selected = self._selected()
        files = {
            camera: {path: selected[held] for path, held in by_path.items()}
            for camera, by_path in self._streamed_files.items()
        }
        try:
            return self._stream.windows(list(files.values()), ends)
        except ValueError as error:
            raise ValueError(f"{self._name}: {error}") from error

    def digests(self, camera: str) -> list[str]:
        """What a camera's videos hold, in short, and which frames rows have where their times decided."""
        paths = self._metadata.video_files(camera, self._positions)
        if self._stream is not None:  # they are not here, and placed as they come
            return [self._stream.digest(path) for path in paths]
        placed = [hashlib.sha256(frames.tobytes()).hexdigest() for frames in self._frame_numbers[camera].values()]
        return [digest_of_ends(path) for path in paths] + placed

    @property
    def index_bytes(self) -> int:
        """Memory of the arrays with a number for every episode."""
        arrays = [*self._first_frames.values()]
        arrays += [numbers for by_episode in self._frame_numbers.values() for numbers in by_episode.values()]
        return sum(array.nbytes for array in arrays)

    def _place_all(self, camera: str, files: dict[Path, np.ndarray], progress: tqdm) -> None:
        selected = self._selected()
        beside = self._metadata.episodes_beside(camera, [int(held[0]) for held in files.values()])
        drifts, offs, ends, gaps = [], [], [], []  # in seconds; and places
        for i, (path, held) in enumerate(files.items()):
            found = self._place(camera, path, held, None if beside is None else beside[i], selected)
            drifts += [found.drift] if found.drift else []
            offs += found.offs
            ends += [found.ends_off] if found.ends_off else []
            gaps += [found.gap] if found.gap else []
            progress.update()
        if drifts:
            self.notes.append(
                f"{camera}: the episode table's times are up to {max(drifts):.4g} s off those of {len(drifts)} videos, "
                "which have as many frames as rows: the frames are counted."
            )
        if offs:
            off = np.concatenate(offs)
            self.notes.append(
                f"{camera}: {len(offs)} of {len(self._positions)} episodes have more or fewer frames than rows. Each "
                f"row has the frame nearest in time: {int((off < 1e-3).sum())} of {len(off)} within 1 ms, the furthest "
                f"{off.max():.4g} s off (tolerance {self._tolerance_s:.4g} s)."
            )
        if gaps:
            self.notes.append(
                f"{camera}: the clock of {len(gaps)} of {len(files)} videos leaves time out where the rows do not, "
                f"first before {gaps[0]}. There are as many frames as rows, which are counted: were a frame lost there "
                "and one too many at the end, the rows between would have the picture of another one."
            )
        if ends:
            self.notes.append(
                f"{camera}: {len(ends)} of {len(files)} videos end up to {max(ends):.4g} s before or after their rows, "
                f"which tolerance_s allows. {_ONLY_THE_END}"
            )

    def _place_streamed(self, camera: str, position: int) -> None:
        """Find the frames of all selected episodes that are in the same video of a camera as this one."""
        path = self._metadata.video(camera, position)
        beside = self._metadata.episodes_beside(camera, [position])
        held = self._streamed_files[camera][path]
        self._place(camera, path, held, None if beside is None else beside[0], self._selected())

    def _place(
        self, camera: str, path: Path, held: np.ndarray, beside: np.ndarray | None, selected: np.ndarray
    ) -> "_Off":
        """Find the frames of the selected episodes in a video.

        Args:
            held, beside: see `_spans`.
            selected: see `_selected`.
        """
        from .video import frame_times

        def read_times(file: Path) -> np.ndarray:
            check_video_file(file)
            return frame_times(file)

        try:
            video = VideoTimes.of(self.read_file(path, read_times), self._fps)
        except VideoReadError as error:
            raise ValueError(f"{self._name}: camera {camera!r}: {error}") from error
        episode, rows, how_placed = None, {}, self._how_placed[camera]
        try:
            spans, drift, tail = self._spans(camera, held, video, beside)
            for position, first, end in spans:
                episode, number = self._metadata.episode_indices[position], int(selected[position])
                placed = place_rows(self._times(number), video, first, end, self._fps, self._tolerance_s)
                rows[number] = placed
                if not video.has_rate(self._fps) and len(video.seconds) > 1:
                    how_placed["by row" if placed.numbers is None else "by time"] = episode
                if self._stream is not None and "by row" in how_placed:
                    raise PlacementError(
                        f"the video does not run at {self._fps} fps, but has a frame for each row. If that is right, "
                        "the other videos tell, which are not here: leave out streaming."
                    )
                if len(how_placed) > 1:
                    raise PlacementError(
                        f"the videos do not run at {self._fps} fps, but episode {how_placed['by row']} has a frame "
                        f"for each row and episode {how_placed['by time']} has not: their times mean nothing."
                    )
        except PlacementError as error:
            episode = episode if error.episode is None else error.episode
            raise ValueError(
                f"{self._name}: camera {camera!r}, episode {episode} in {path}: {error} Leave the episode or the "
                "camera out, or export the dataset again. If you know that only the end of the video is wrong, allow "
                "more with tolerance_s."
            ) from error
        if any(placed.numbers is None for placed in rows.values()) and abs(video.rate / self._fps - 1) > SAME_RATE:
            self.other_rates[camera].append(video.rate)
        for number, placed in rows.items():  # all of the file, or none
            self._first_frames[camera][number] = placed.first
            if placed.numbers is not None:
                self._frame_numbers[camera][number] = placed.numbers
        offs = [placed.off for placed in rows.values() if placed.off is not None]
        ends_off = max([tail, *(placed.ends_off for placed in rows.values())])
        gaps = ((number, placed.gap) for number, placed in rows.items() if placed.gap is not None)
        gap = next(
            (
                f"frame {frame} of episode {self._metadata.episode_indices[self._positions[number]]}"
                for number, frame in gaps
            ),
            None,
        )
        return _Off(drift if drift > video.duration / 2 else 0.0, offs, ends_off, gap)

    def _spans(
        self, camera: str, held: np.ndarray, video: VideoTimes, beside: np.ndarray | None
    ) -> tuple[list[tuple[int, int, int]], float, float]:
        """(position, first frame, one past the last) of the selected episodes in a video; the table's drift; and for
        how many seconds the video goes on after them.

        Args:
            held: positions of the selected episodes in it.
            beside: positions of all episodes in it, or None if every episode has a video of its own.
        """
        indices = self._metadata.episode_indices
        if beside is None:
            return [(int(held[0]), 0, len(video.seconds))], 0.0, 0.0
        group = beside[np.argsort(indices[beside])]
        is_used = np.isin(group, held)
        starts, ends = self._metadata.video_spans(camera, group)
        first, end, drift, tail = frames_of_episodes(
            video,
            indices[group],
            self._metadata.episode_lengths[group],
            starts,
            ends,
            is_used,
            indices,
            self._fps,
            self._tolerance_s,
        )
        chosen = zip(group[is_used].tolist(), first[is_used].tolist(), end[is_used].tolist(), strict=True)
        return list(chosen), drift, tail

    def _selected(self) -> np.ndarray:
        """Position of an episode → its number among the selected ones, or -1."""
        selected = np.full(len(self._metadata.episode_indices), -1)
        selected[self._positions] = np.arange(len(self._positions))
        return selected

    def _open(self, path: Path) -> Any:
        from .video import VideoReader

        return self.read_file(path, VideoReader)


def digest_of_ends(path: Path, length: int = 1 << 14) -> str:
    """A digest of a file's size, beginning and end: video and parquet files say there what they hold."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        digest = hashlib.sha256(f"{size} ".encode() + stream.read(length))
        stream.seek(max(size - length, 0))
        digest.update(stream.read(length))
    return digest.hexdigest()


__all__ = ["SAME_RATE", "EpisodeVideos", "digest_of_ends"]

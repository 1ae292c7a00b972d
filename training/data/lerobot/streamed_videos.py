"""Videos of a dataset on the Hub that are fetched when they are needed, and of which only so many are kept."""

import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from ..file_windows import FileWindows
from .hub_files import HubFolder
from .video_file import VideoReadError

T = TypeVar("T")
_AT_ONCE = 16  # downloads by all processes together
_LEFT_AFTER_S = 3600  # a download that has not grown for so long is of a process that was killed


class StreamedVideos:
    """A folder of its own for the videos of a dataset, which never holds more than a number of bytes.

    The files that were opened longest ago make room for new ones. All processes of a machine share the folder (ranks,
    loader workers, runs): a file that several want is fetched by one of them, and a run that goes on finds what it
    left there. Files that are in the Hub's cache already are read there, and nothing is ever deleted there.

    Args:
        hub: the dataset.
        max_bytes: how much is kept. (While files are fetched, it may be as many more as are fetched at once. A file
            that is deleted while a process has it open is gone when that closes it.)

    Attributes:
        folder: where the files are: `kivla/streamed` in `HF_HOME`.
    """

    def __init__(self, hub: HubFolder, max_bytes: int):
        self.hub, self.max_bytes = hub, max_bytes
        streamed = Path(constants.HF_HOME) / "kivla" / "streamed"
        self.folder = streamed / hub.repo.replace("/", "--")
        self._locks = streamed / ".locks" / self.folder.name
        self._locks.mkdir(parents=True, exist_ok=True)
        now = time.time()
        for path in self.folder.glob("*/.cache/**/*.incomplete"):
            if now - path.stat().st_mtime > _LEFT_AFTER_S:
                path.unlink(missing_ok=True)

    def use(self, path: Path, read: Callable[[Path], T]) -> T:
        """Read a file, given by its place in the dataset's folder, after it was fetched if it is not there.

        Args:
            read: opens the file, and what was opened can be read on. It is called again if another process deletes the
                file before it is open.
        """
        if path.is_file():
            return read(path)
        streamed = self.folder / self.hub.commit / self.hub.name_of(path)
        while True:
            try:
                os.utime(streamed)  # used now
                return read(streamed)
            except (OSError, VideoReadError):
                if streamed.is_file():  # otherwise another process has made room
                    raise
            self._fetch(path, streamed)

    def size(self, path: Path) -> int:
        """Bytes of a file, fetched or not."""
        return self.hub.listing[self.hub.name_of(path)].size

    def digest(self, path: Path) -> str:
        """Digest of a file's content, fetched or not, as the Hub has it."""
        return self.hub.listing[self.hub.name_of(path)].digest

    def windows(self, files: Sequence[Mapping[Path, np.ndarray]], ends: np.ndarray) -> FileWindows:
        """Group episodes by the files of the camera that has the fewest: the order to train in.

        A file of another camera with episodes of two groups is counted, and perhaps fetched, for both.

        Args:
            files: for each camera, file → the (n,) episodes that it has.
            ends: (E,) one past each episode's last item.

        Raises:
            ValueError: two groups do not fit.
        """
        groups = list(min(files, key=len).values())
        group_of = np.empty(len(ends), np.int64)
        for number, episodes in enumerate(groups):
            group_of[episodes] = number
        sizes = np.zeros(len(groups), np.int64)
        for by_path in files:
            for path, episodes in by_path.items():
                sizes[np.unique(group_of[episodes])] += self.size(path)
        # Half of the space is for the window that is trained on, and half for what is loaded ahead, the next one.
        window_bytes = self.max_bytes // 2
        if sizes.max() > window_bytes:
            raise ValueError(
                "stream_gb must be twice as large as the videos that belong together, "
                f"{2 * sizes.max() / 1e9:.3g} GB, got {self.max_bytes / 1e9:.3g}."
            )
        starts = np.append(0, ends[:-1])
        pieces = [np.stack([starts[episodes], (ends - starts)[episodes]], axis=1) for episodes in groups]
        return FileWindows(pieces, sizes, window_bytes)

    def files(self) -> list[Path]:
        """The files that are there, of any revision, those used longest ago first."""
        # Not what `huggingface_hub` notes down beside them, in `.cache` of each revision.
        tops = [path for path in self.folder.glob("*/*") if path.name != ".cache"]
        files = [path for top in tops for path in (top, *top.rglob("*")) if path.is_file()]
        return sorted(files, key=lambda path: path.stat().st_mtime_ns)

    def _fetch(self, path: Path, streamed: Path) -> None:
        """Download a file; of several processes that want it one does, and the others wait."""
        number = zlib.crc32(streamed.name.encode()) % _AT_ONCE
        with WeakFileLock(self._locks / f"{number}.lock"):
            if streamed.is_file():
                return
            with WeakFileLock(self._locks / "room.lock"):
                self._make_room(self.size(path))
            self.hub.download(path, self.folder / self.hub.commit)

    def _make_room(self, size: int) -> None:
        files = [(path, path.stat().st_size) for path in self.files()]
        kept = sum(size for _, size in files)
        for path, freed in files:
            if kept + size <= self.max_bytes:
                return
            kept -= freed
            path.unlink()


__all__ = ["StreamedVideos"]

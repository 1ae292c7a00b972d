"""Videos of a dataset on the Hub that are fetched when they are needed, and of which only so many are kept."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from .hub_files import HubFolder

T = TypeVar("T")


class StreamedVideos:
    """A folder of its own for the videos of a dataset, which never holds more than a number of bytes.

    The files that were used longest ago make room for new ones. All processes of a machine share the folder (ranks,
    loader workers, runs), and a run that goes on finds what it left there. Files that are in the Hub's cache already
    are read there, and nothing is ever deleted there.

    Args:
        hub: the dataset.
        max_bytes: how much is kept. (A file that is deleted while a process has it open is gone when that closes it.)

    Attributes:
        folder: where the files are: `kivla/streamed` in `HF_HOME`.
    """

    def __init__(self, hub: HubFolder, max_bytes: int):
        self.hub, self.max_bytes = hub, max_bytes
        self.folder = Path(constants.HF_HOME) / "kivla" / "streamed" / hub.repo.replace("/", "--")

    def use(self, path: Path, read: Callable[[Path], T]) -> T:
        """Read a file, given by its place in the dataset's folder, after it was fetched if it is not there.

        Args:
            read: opens the file. It stays there until this returns; what was opened can be read on.
        """
        if path.is_file():
            return read(path)
        streamed = self.folder / self.hub.commit / self.hub.name_of(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder.with_suffix(".lock")
        while True:
            with WeakFileLock(lock):
                if streamed.is_file():
                    streamed.touch()  # used now
                    return read(streamed)
                self._make_room(self.hub.listing[self.hub.name_of(path)].size)
            self.hub.download(path, self.folder / self.hub.commit)  # others may read meanwhile

    def files(self) -> list[Path]:
        """The files that are there, of any revision, those used longest ago first."""
        # Not what `huggingface_hub` notes down beside them, in `.cache` of each revision.
        revisions = self.folder.glob("*/*")
        own = [path for top in revisions if top.name != ".cache" for path in (top, *top.rglob("*"))]
        files = [path for path in own if path.is_file()]
        return sorted(files, key=lambda path: path.stat().st_mtime_ns)

    def _make_room(self, size: int) -> None:
        files = self.files()
        kept = sum(path.stat().st_size for path in files)
        for path in files:
            if kept + size <= self.max_bytes:
                return
            kept -= path.stat().st_size
            path.unlink()


__all__ = ["StreamedVideos"]

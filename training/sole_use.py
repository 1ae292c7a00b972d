"""One process at a time fills a folder: two would mix their checkpoints, and neither would say so."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

# In the folder while a process fills it. (What begins with _ is not uploaded.)
IN_USE = "_in_use"
# One that was told to stop writes a checkpoint first, and the next may be there already.
PATIENCE = 60.0  # seconds
_POLL = 0.5
# File systems without locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: set[Path] = set()  # by this process


class InUseError(ValueError):
    """Another process fills the folder."""


@contextmanager
def sole_use(folder: str | Path, patience: float = PATIENCE) -> Iterator[None]:
    """Keep a folder to this process, which may ask for it again; it is free again however the process ends.

    A folder that is not there is made, and removed again if nothing came into it. On a file system without locks nobody
    is kept out, and that is said.

    Args:
        patience: seconds to wait for another process that has it.

    Raises:
        InUseError: it still has it then. The message says which process.
    """
    folder = Path(folder).resolve()
    if folder in _held:
        yield
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    file = folder / IN_USE
    lock = _take(file, time.monotonic() + patience)
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
    _held.add(folder)
    try:
        yield
    finally:
        _held.discard(folder)
        file.unlink(missing_ok=True)  # a forked worker may keep the old one open: the next process makes its own
        os.close(lock)
        with suppress(OSError):  # the first that is not empty, and those above it, stay
            for path in new:
                path.rmdir()


def _take(file: Path, until: float) -> int:
    """Open and lock the file, which is taken away by whoever had it before."""
    has_said = False
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        if _is_locked(lock, file):
            if os.fstat(lock).st_nlink:
                return lock
            os.close(lock)  # it was taken away in between: another one counts now
            continue
        holder = os.read(lock, 200).decode() or "another process"
        os.close(lock)
        if time.monotonic() >= until:
            raise InUseError(
                f"{file.parent} is being filled by {holder}. Two at once would spoil it: stop that one, or wait for "
                "it; or give another output_dir."
            )
        if not has_said:
            logger.warning("%s is being filled by %s: waiting for it to end.", file.parent, holder)
            has_said = True
        time.sleep(_POLL)


def _is_locked(lock: int, file: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "%s is on a file system without locks: see to it that one process at a time fills it.", file.parent
        )
    return True


__all__ = ["IN_USE", "PATIENCE", "InUseError", "sole_use"]

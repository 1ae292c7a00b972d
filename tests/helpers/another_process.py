"""Another process that fills a folder: the lock is of an open file, so a second one stands for a process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kivla.training.sole_use import IN_USE


@contextmanager
def another_process(folder: Path, name: str = "process 7 on robot") -> Iterator[None]:
    """Hold the folder as a process of this name would; its file stays, as that of one that was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(lock, name.encode())
    try:
        yield
    finally:
        os.close(lock)

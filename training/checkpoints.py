"""Checkpoint folders that are either whole or recognised as not whole.

A checkpoint is written to `_unfinished/checkpoint-N`, gets a manifest with the size and hash of every file, is brought
to the disk (fsync) and only then becomes `checkpoint-N`, by one rename. A process may be killed at any moment: what is
called `checkpoint-N` was complete once, and whether it still is, the manifest tells.

The manifest also says which run wrote the checkpoint (`run_identity`), and `_run_identity.json` whose the folder is: a
folder holds one run.
"""

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .run_identity import differences, format_differences
from .sole_use import IN_USE

UNFINISHED = "_unfinished"  # names that begin with _ are not pushed to the Hub
MANIFEST = "manifest.json"
RUN_FILE = "_run_identity.json"
EARLIER_RUN = "_earlier_run"
PART_SIZE = 64 * 2**20  # files are hashed in parts, side by side: one large file would keep one core busy
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or the one that was named is damaged."""


class OtherRunError(ValueError):
    """A folder or a checkpoint is of another run than the one that wants to use it."""


# ------------------------------------------------------------------------------------------------------------ writing
def write_manifest(folder: Path, run: dict | None = None) -> None:
    """Write `manifest.json`: size and hash of every file in the folder, and which run wrote them.

    Files and folders are brought to the disk first.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": digest(path)} for path in files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"part_size": PART_SIZE, "files": entries, "run": run}, indent=1) + "\n")
    for path in (*files, manifest, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        fsync(path)


def digest(path: Path, part_size: int = PART_SIZE) -> str:
    """Compute SHA-256 over the SHA-256 digests of the file's parts."""
    starts = range(0, path.stat().st_size, part_size)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = pool.map(lambda start: _digest_of_part(path, start, part_size), starts)
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _digest_of_part(path: Path, start: int, size: int) -> bytes:
    result = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(start)
        while size > 0 and (block := stream.read(min(size, 2**20))):
            result.update(block)
            size -= len(block)
    return result.digest()


def fsync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(folder: Path, final: Path, run: dict | None = None) -> None:
    """Give a complete folder of the same disk its manifest and its name; what had the name before goes."""
    write_manifest(folder, run)
    if final.exists():
        replaced = folder.with_name(f"replaced-{final.name}")
        final.rename(replaced)
        folder.rename(final)
        shutil.rmtree(replaced)
    else:
        folder.rename(final)
    fsync(final.parent)


@contextmanager
def written_aside(folder: Path, is_writer: bool) -> Iterator[Path]:
    """Open a folder to write a model into; its files come into `folder` when all of them are on the disk.

    The model in `folder` is never half old and half new without being recognised: `config.json`, without which nothing
    loads, is taken away first and comes back last.

    Args:
        is_writer: False on the devices that write nothing.
    """
    aside = folder / UNFINISHED / "model"
    if is_writer:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    yield aside
    if not is_writer:
        return
    files = sorted(path.relative_to(aside) for path in aside.rglob("*") if path.is_file())
    for file in files:
        fsync(aside / file)
    (folder / "config.json").unlink(missing_ok=True)
    for file in sorted(files, key=lambda file: file == Path("config.json")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside / file, folder / file)
    fsync(folder)
    shutil.rmtree(folder / UNFINISHED)


# ------------------------------------------------------------------------------------------------------------ reading
def problem_of(checkpoint: Path) -> str | None:
    """Say why a checkpoint cannot be resumed from; None if every file is as it was written.

    Reads all of it: about a second for each gigabyte and core.
    """
    if not checkpoint.is_dir():
        return "there is no such folder"
    if not (checkpoint / MANIFEST).is_file():
        return f"it has no {MANIFEST}: it was being removed, or was written by another program"
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files, part_size = manifest["files"], manifest["part_size"]
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is damaged"
    for name, entry in files.items():  # sizes first: that takes no time
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes, but {entry['size']} were written"
    for name, entry in files.items():
        if digest(checkpoint / name, part_size) != entry["sha256"]:
            return f"the content of {name} is not what was written"
    if "progress_0.json" not in files:
        return "it holds weights only (save_only_model)"
    return None


def checkpoints(folder: Path) -> list[Path]:
    """List the folders `checkpoint-N`, newest (largest N) first."""
    found = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(_CHECKPOINT.fullmatch(path.name)[1]), reverse=True)


def newest_good_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint that can be resumed from.

    Newer ones that cannot are named in a warning, with the reason, and become `_damaged-checkpoint-N`: they neither
    count as the newest when old checkpoints are removed, nor are they lost.
    """
    for checkpoint in checkpoints(folder):
        problem = problem_of(checkpoint)
        if problem is None:
            return checkpoint
        aside = folder / f"_damaged-{checkpoint.name}"
        if aside.exists():
            shutil.rmtree(aside)
        checkpoint.rename(aside)
        logger.warning(
            "%s cannot be resumed from: %s. It is now called %s; going on with the checkpoint before.",
            checkpoint,
            problem,
            aside.name,
        )
    return None


# ------------------------------------------------------------------------------------------------ one run, one folder
def run_of(checkpoint: Path) -> dict | None:
    """Read the identity of the run that wrote a whole checkpoint; None if it was written before checkpoints knew it."""
    return json.loads((checkpoint / MANIFEST).read_text()).get("run")


def owner_of(folder: Path) -> dict | None:
    """Read the identity of the run that an output folder is of; None where nothing says it."""
    try:
        return json.loads((folder / RUN_FILE).read_text())
    except (FileNotFoundError, ValueError):  # none, or cut off
        return None


def check_is_same_run(before: dict | None, run: dict, holder: Path, ways_out: str) -> None:
    """Check that what was found in a folder is of this run.

    Args:
        before: the identity that was found in `holder`, a checkpoint or a folder; None if it has none.
        ways_out: what to do.

    Raises:
        OtherRunError: it is that of another run; every difference is format_differences.
    """
    if before is None:
        raise OtherRunError(
            f"{holder} does not say which run made it: an earlier version or another program. {ways_out}"
        )
    if lines := differences(before, run):
        raise OtherRunError(f"{holder} is of another run, which differs in:{format_differences(lines)}\n{ways_out}")


def check_folder(folder: Path, run: dict) -> None:
    """Check that a folder is this run's, or free.

    Raises:
        OtherRunError: it holds checkpoints or a model of another run, or of an unknown one.
    """
    if not _is_used(folder):
        return
    ways_out = (
        "Give this run an output_dir of its own; or start it anew here with restart (`--restart`), which puts what is "
        "there aside."
    )
    newest = next((path for path in checkpoints(folder) if (path / MANIFEST).is_file()), None)
    if newest is None or (folder / RUN_FILE).is_file():
        check_is_same_run(owner_of(folder), run, folder, ways_out)
    if newest is not None:
        by_name = f" If it is certain that {newest.name} is of this run, resume from it by its name."
        before = run_of(newest)
        check_is_same_run(before, run, newest, ways_out + (by_name if before is None else ""))


def claim(folder: Path, run: dict) -> None:
    """Write down that a folder is this run's. What another one left that came to nothing is put aside.

    Raises:
        OtherRunError: see `check_folder`.
    """
    check_folder(folder, run)
    if (folder / RUN_FILE).is_file() and not _is_used(folder):
        before = owner_of(folder)
        if before is None or differences(before, run):
            put_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_run_file(folder, run)


def write_run_file(folder: Path, run: dict) -> None:
    """Write into a folder whose it is."""
    unfinished = folder / f"{RUN_FILE}.unfinished"
    unfinished.write_text(json.dumps(run, indent=1) + "\n")
    fsync(unfinished)
    os.replace(unfinished, folder / RUN_FILE)
    fsync(folder)


def put_aside(folder: Path) -> Path | None:
    """Move what a run left in a folder to `_earlier_run_1` (2, ...) inside it. Nothing is deleted.

    That is: all files, and the folders that training makes. Other folders stay, and so does everything where no run has
    been. If it is interrupted, what is left still counts as the earlier run's: its mark goes last.

    Returns:
        The new folder; None if there was no run.
    """
    if not (_is_used(folder) or (folder / RUN_FILE).is_file() or _has_stages(folder)):
        return None
    was_used = _is_used(folder)
    names = (folder / f"{EARLIER_RUN}_{number}" for number in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    aside.mkdir()
    names = [path for path in folder.iterdir() if path.name != IN_USE]
    ours = [path for path in names if path.is_file() or _OUR_FOLDERS.fullmatch(path.name)]
    for path in sorted(ours, key=lambda path: (path.name == RUN_FILE, path.name == "config.json", path.name)):
        path.rename(aside / path.name)
    fsync(folder)
    if was_used:
        logger.warning(
            "What an earlier run left in %s is now in %s; remove it if it is not needed. To go on after an "
            "interruption, leave out restart.",
            folder,
            aside,
        )
    else:
        logger.warning("An earlier run in %s ended before it saved anything. What it left is in %s.", folder, aside)
    return aside


# Patterns of files of which one is there where a run has been
RUN_MARKS = (RUN_FILE, "config.json", "checkpoint-*", "stage_*", "_stage_*", f"{EARLIER_RUN}_*")
_OUR_FOLDERS = re.compile(r"(_damaged-)?checkpoint-\d+|_unfinished|_?stage_\d+|adapter|vlm_processor|runs")


def _is_used(folder: Path) -> bool:
    """Whether there is something that must not be mixed with, or lost to, another run: a checkpoint or a model."""
    is_marked = (folder / RUN_FILE).is_file()
    return bool(checkpoints(folder)) or (folder / "config.json").is_file() or (is_marked and _has_stages(folder))


def _has_stages(folder: Path) -> bool:
    stages = (*folder.glob("stage_*"), *folder.glob("_stage_*"))  # `_stage_1` where the policy is pushed
    return any(_is_used(path) for path in stages if path.is_dir())


# --------------------------------------------------------------------------------------------------------------- room
def check_output_folder(folder: Path, needed: int, wanted: int) -> None:
    """Check before the first step that checkpoints can be written.

    Args:
        needed: bytes without which the run cannot end well.
        wanted: bytes of all checkpoints that will be kept together.

    Raises:
        OSError: the folder cannot be written to, or its disk has less than `needed` bytes free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"kivla")
    except OSError as error:
        raise OSError(
            error.errno, f"Checkpoints cannot be written to {folder}: {error.strerror}. Choose another output_dir."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"The disk of {folder} has {_gigabytes(free)} free, but a checkpoint and the final policy take about "
            f"{_gigabytes(needed)}. Make room, or choose another output_dir",
        )
    if free < wanted:
        logger.warning(
            "The disk of %s has %s free, but the checkpoints of this run will take about %s. Set save_total_limit, or "
            "make room.",
            folder,
            _gigabytes(free),
            _gigabytes(wanted),
        )


def not_written(checkpoint: Path, error: Exception) -> CheckpointError:
    """Make the error that says what people need to know when a checkpoint could not be written."""
    folder = checkpoint.parent
    last = next((path.name for path in checkpoints(folder) if (path / MANIFEST).is_file()), None)
    left = f"{last} is whole: start the same command again to go on from there" if last else "No checkpoint was written"
    free = f"{_gigabytes(shutil.disk_usage(folder).free)} are free. " if folder.is_dir() else ""
    return CheckpointError(
        f"{checkpoint} could not be written ({type(error).__name__}: {error}). {free}Nothing half-written was left. "
        f"{left}."
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


__all__ = [
    "MANIFEST",
    "RUN_FILE",
    "RUN_MARKS",
    "UNFINISHED",
    "CheckpointError",
    "OtherRunError",
    "check_folder",
    "check_is_same_run",
    "check_output_folder",
    "checkpoints",
    "claim",
    "newest_good_checkpoint",
    "not_written",
    "owner_of",
    "problem_of",
    "publish",
    "put_aside",
    "run_of",
    "write_run_file",
    "written_aside",
]

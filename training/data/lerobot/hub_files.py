"""A dataset on the Hub of which only those files are downloaded that are needed."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.contrib.concurrent import thread_map

_WORKERS = 8
_MANY = 8  # files, from where on there is a progress bar


class HubFolder:
    """The folder of a dataset in the Hub's cache: `meta/` at once, other files when they are asked for.

    Files that are there already are not asked for again: an interrupted download goes on where it was.

    Args:
        name: id of the dataset, perhaps with `@` and a branch, tag or commit.
        revision: the same, given apart.

    Attributes:
        root: the folder.
        repo: the id alone.
        revision: what was asked for, or None.

    Raises:
        FileNotFoundError: there is no such dataset, or no such revision.
    """

    def __init__(self, name: str, revision: str | None):
        self.repo, _, given = name.partition("@")
        if given and revision not in (None, given):
            raise ValueError(f"{name!r} and revision={revision!r} do not say the same.")
        self.revision = revision or given or None
        try:
            folder = snapshot_download(
                self.repo, repo_type="dataset", revision=self.revision, allow_patterns=["meta/*"]
            )
        except RevisionNotFoundError as error:
            raise FileNotFoundError(f"The dataset {self.repo} has no revision {self.revision!r}.") from error
        except (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(
                f"{name!r} is neither a folder here nor a dataset that can be had from the Hugging Face Hub. Check the "
                f"spelling, and for a private dataset log in with `hf auth login`. ({error})"
            ) from error
        self.root = Path(folder)
        self._commit = self.root.name  # all files are of one commit, whatever a branch does meanwhile

    def fetch(self, paths: Sequence[Path]) -> None:
        """Download files of the folder; those that the dataset does not have are passed over."""
        missing = [path for path in paths if not path.is_file()]
        if missing:
            thread_map(
                self._fetch,
                missing,
                max_workers=_WORKERS,
                desc="Downloading",
                unit="file",
                disable=len(missing) < _MANY,
            )

    def has(self, path: Path) -> bool:
        """Whether the dataset has a file; nothing is downloaded."""
        if path.is_file():
            return True
        try:
            return HfApi().file_exists(self.repo, self._name(path), repo_type="dataset", revision=self._commit)
        except OfflineModeIsEnabled:
            return False

    def _fetch(self, path: Path) -> None:
        try:
            hf_hub_download(self.repo, self._name(path), repo_type="dataset", revision=self._commit)
        except EntryNotFoundError:
            return

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


__all__ = ["HubFolder"]

"""A dataset on the Hub of which only those files are downloaded that are needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import HfApi, RepoFile, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the client in use: httpx, or httpx2
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.contrib.concurrent import thread_map

from ....named_models import not_found

_WORKERS = 8
_MANY = 8  # files, from where on there is a progress bar


@dataclass(frozen=True)
class HubFile:
    """What the Hub says of a file.

    Attributes:
        size: in bytes.
        digest: of its content.
    """

    size: int
    digest: str


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
        commit: what that is; all files are of it, whatever a branch does meanwhile.

    Raises:
        FileNotFoundError: there is no such dataset, or no such revision.
    """

    def __init__(self, name: str, revision: str | None):
        self.repo, _, given = name.partition("@")
        if given and revision not in (None, given):
            raise ValueError(f"{name!r} and revision={revision!r} do not say the same.")
        self.revision = revision or given or None
        try:
            with _connected(f"meta/ of the dataset {self.repo}"):
                folder = snapshot_download(
                    self.repo, repo_type="dataset", revision=self.revision, allow_patterns=["meta/*"]
                )
        except RevisionNotFoundError as error:
            raise FileNotFoundError(f"The dataset {self.repo} has no revision {self.revision!r}.") from error
        except (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError) as error:
            raise not_found(name, "dataset", error) from error
        self.root = Path(folder)
        self.commit = self.root.name

    @cached_property
    def listing(self) -> dict[str, HubFile]:
        """All files that the dataset has, by their names in it."""
        with _connected(f"the list of files of the dataset {self.repo}"):
            tree = HfApi().list_repo_tree(self.repo, recursive=True, revision=self.commit, repo_type="dataset")
            files = [entry for entry in tree if isinstance(entry, RepoFile)]
        return {file.path: HubFile(file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in files}

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

    def fetch_all(self) -> Path:
        """Download every file of the dataset, and return the folder."""
        self.fetch([self.root / name for name in self.listing])
        return self.root

    def has(self, path: Path) -> bool:
        """Whether the dataset has a file; nothing is downloaded."""
        if path.is_file():
            return True
        try:
            with _connected(f"what the dataset {self.repo} has"):
                return HfApi().file_exists(self.repo, self.name_of(path), repo_type="dataset", revision=self.commit)
        except OfflineModeIsEnabled:
            return False

    def lists(self, path: Path) -> bool:
        """Whether a file is here or in the listing."""
        return path.is_file() or self.name_of(path) in self.listing

    def download(self, path: Path, folder: Path) -> None:
        """Download a file into another folder, not into the cache."""
        name = self.name_of(path)
        with _connected(f"{name} of the dataset {self.repo}"):
            hf_hub_download(self.repo, name, repo_type="dataset", revision=self.commit, local_dir=folder)

    def _fetch(self, path: Path) -> None:
        try:
            with _connected(f"{self.name_of(path)} of the dataset {self.repo}"):
                hf_hub_download(self.repo, self.name_of(path), repo_type="dataset", revision=self.commit)
        except EntryNotFoundError:
            return

    def name_of(self, path: Path) -> str:
        """The name of a file of the folder in the dataset."""
        return path.relative_to(self.root).as_posix()


def on_hub(folder_or_hub_id: str | Path, revision: str | None = None) -> HubFolder | None:
    """The dataset on the Hub; None if it is a folder of this machine."""
    if not str(folder_or_hub_id):
        raise ValueError("the name of the dataset is empty; expected is a folder, or an id on the Hub.")
    if not Path(folder_or_hub_id).expanduser().is_dir():
        if str(folder_or_hub_id).startswith(("/", ".", "~")):  # no id on the Hub does
            raise FileNotFoundError(f"There is no folder {folder_or_hub_id}.")
        return HubFolder(str(folder_or_hub_id), revision)
    if revision is not None:
        raise ValueError(f"{folder_or_hub_id} is a folder, which has no revision {revision!r}.")
    return None


@contextmanager
def _connected(what: str) -> Iterator[None]:
    """Say which download broke off. (Answers of the Hub say so themselves.)"""
    try:
        yield
    except HfHubHTTPError:
        raise
    except HTTPError as error:
        raise ConnectionError(
            f"{what} could not be downloaded: {error}. Try again; what is here already is kept."
        ) from error


__all__ = ["HubFolder", "on_hub"]

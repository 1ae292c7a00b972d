"""The common tests of the transformers that is installed: fetched, imported, never part of this repository."""

import importlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from filelock import FileLock

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kivla" / "library_tests"
PACKAGE = "library_tests"
# What the tests import and their source distribution does not have: the names, and what stands in for them.
_ABSENT = {
    f"{PACKAGE}.exporters": {},
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation": {},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{PACKAGE}.utils": {},
    f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": {}},
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
}


class NoPackageIndexError(RuntimeError):
    """The sources are not in the cache and cannot be fetched."""


def fetch() -> Path:
    """The folder with the tests and what they need; downloaded with pip once for each version of transformers.

    Raises:
        NoPackageIndexError: see there.
    """
    folder = CACHE / transformers.__version__
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # every worker of pytest comes by
        if not (folder / "tests" / "__init__.py").is_file():  # written last
            _download(folder)
    return folder


def _download(folder: Path) -> None:
    name = f"transformers-{transformers.__version__}"
    source = ["download", "--no-binary", "transformers", "--dest", folder, name.replace("-", "==")]
    for command in (source, ["install", "--target", folder / "needed", "parameterized"]):
        pip = [sys.executable, "-m", "pip", "--quiet", *map(str, command), "--no-deps", "--retries", "1"]
        result = subprocess.run(pip, capture_output=True, text=True)
        if result.returncode:
            raise NoPackageIndexError(f"pip {command[0]} failed: {(result.stderr.strip() or '?').splitlines()[-1]}")
    with tarfile.open(folder / f"{name}.tar.gz") as archive:
        members = [member for member in archive if member.name.startswith(f"{name}/tests/")]
        for member in members:
            member.name = member.name.removeprefix(f"{name}/")
        archive.extractall(folder, members, filter="data")
    (folder / "tests" / "__init__.py").touch()


def library_module(name: str) -> ModuleType:
    """A module of the library's tests, e.g. `test_modeling_common`; skips the module that asks if it cannot be had."""
    try:
        folder = fetch()
    except NoPackageIndexError as error:
        pytest.skip(f"transformers' tests cannot be had: {error}", allow_module_level=True)
    if PACKAGE not in sys.modules:
        sys.path.append(str(folder / "needed"))
        package = ModuleType(PACKAGE)
        package.__path__ = [str(folder / "tests")]
        sys.modules[PACKAGE] = package
        for absent, names in _ABSENT.items():
            stand_in = ModuleType(absent)
            vars(stand_in).update(names, __path__=[])
            sys.modules[absent] = stand_in
    return importlib.import_module(f"{PACKAGE}.{name}")

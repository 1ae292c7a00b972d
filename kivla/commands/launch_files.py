"""`kivla launch-files`: files that start `kivla train` on several devices, to be used as they are or changed."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import training
from ..command_line import parse

LAUNCH_FILES = Path(training.__file__).parent / "launch"


@dataclass
class LaunchFilesArguments:
    folder: str = field(default="launch", metadata={"help": "Where to put them."})


def run(arguments: Sequence[str]) -> None:
    """Files that are there already are left alone."""
    (options,) = parse((LaunchFilesArguments,), arguments, prog="kivla launch-files", positional="folder")
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(LAUNCH_FILES.iterdir()):
        target = folder / source.name
        if target.exists():
            print(f"{target}: is there already, left as it is")
            continue
        shutil.copyfile(source, target)
        print(target)
    print(f"\naccelerate launch --config_file {folder}/fsdp2.yaml --num_processes 8 -m kivla.cli train ...")

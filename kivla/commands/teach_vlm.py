"""`kivla teach-vlm`: a pretrained VLM learns to see the tabletop, and keeps what it knows."""

from collections.abc import Sequence

from ..command_line import parse
from ..demo.teaching import TeachArguments, teach


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((TeachArguments,), arguments, prog="kivla teach-vlm", positional="output_dir")
    teach(args)

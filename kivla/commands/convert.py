"""`kivla convert`: π0 and π0.5 of openpi, LeRobot and transformers into a KIVLA policy, and back to LeRobot."""

from collections.abc import Sequence

from ..command_line import parse
from ..conversion.convert import ConvertArguments, convert


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((ConvertArguments,), arguments, prog="kivla convert", positional=("source", "output_dir"))
    print(convert(args))

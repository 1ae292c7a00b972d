"""`kivla pretrain-tiny`: a small VLM that sees the tabletop and answers questions about it, trained from nothing."""

from collections.abc import Sequence

from ..command_line import parse
from ..demo.pretraining import PretrainArguments, pretrain


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((PretrainArguments,), arguments, prog="kivla pretrain-tiny", positional="output_dir")
    pretrain(args)

"""Options on a command line: their types, which say what a value must be, and the folder that results go to."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from kivla.training.run_folder import claim_folder


def count(text: str) -> int:
    """Read a number of things, of which there is one at least: `parser.add_argument("--threads", type=count)`.

    Raises:
        ArgumentTypeError: it is none; argparse names the option.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of 1 or more, got {text}")
    return int(text)


def natural(text: str) -> int:
    """Read a whole number that may be 0, as seeds are.

    Raises:
        ArgumentTypeError: it is none; argparse names the option.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number of 0 or more, got {text}")
    return int(text)


class Distinct(argparse.Action):
    """Refuse a list with the same thing twice, which would be counted twice: `nargs="+", action=Distinct`."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(set(values)) < len(values):
            parser.error(f"{option_string}: each once, got {' '.join(map(str, values))}")
        setattr(namespace, self.dest, values)


def claim(parser: argparse.ArgumentParser, output: Path, facts: dict, marks: Iterable[str]) -> None:
    """Make the folder of `--output` that of these facts (`claim_folder`); what speaks against it ends the program."""
    try:
        claim_folder(output, facts, marks, option="output")
    except (ValueError, OSError) as error:
        parser.error(str(error))

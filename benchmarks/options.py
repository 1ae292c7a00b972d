"""Types of options on a command line, which say what a value must be."""

import argparse


def count(text: str) -> int:
    """Read a number of things, of which there is one at least: `parser.add_argument("--threads", type=count)`.

    Raises:
        ArgumentTypeError: it is none; argparse names the option.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of 1 or more, got {text}")
    return int(text)

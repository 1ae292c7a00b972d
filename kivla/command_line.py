"""Options of a command: from dataclasses, the command line and YAML files."""

import difflib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from itertools import takewhile
from pathlib import Path

import yaml
from transformers import HfArgumentParser, pipeline

from .named_models import model_type


def parse(
    dataclass_types: Sequence[type],
    arguments: Sequence[str],
    prog: str,
    positional: str | Sequence[str] = (),
    required: Sequence[str] = (),
) -> tuple:
    """Command-line options, with defaults from a YAML file if the first argument is one.

    Args:
        dataclass_types: as for `HfArgumentParser`.
        arguments: what follows the command's name.
        positional: the option, or the options in order, that may also be given first and without their names.
        required: options that must be given although their field has a default.

    Raises:
        SystemExit: an unknown option, an unknown key in the file, or options that do not go together.
    """
    names = [positional] if isinstance(positional, str) else positional
    usage = " ".join([prog, *(f"[{name.upper()}]" for name in names), "[--option value ...]"])
    # No abbreviations: a misspelt option is none that happens to begin alike.
    parser = HfArgumentParser(dataclass_types, prog=prog, usage=usage, allow_abbrev=False)
    for action in parser._actions:  # argparse has no public way to change this
        action.required = action.required or action.dest in required
    arguments = list(arguments)
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        file = arguments.pop(0)
        if not Path(file).is_file():
            parser.error(f"there is no file {file}.")
        with open(file, encoding="utf-8") as stream:
            defaults = yaml.safe_load(stream) or {}
        known = {field.name for kind in dataclass_types for field in fields(kind)}
        if unknown := sorted(set(defaults) - known):
            parser.error(f"{file} has unknown keys: {', '.join(unknown)}. `{prog} --help` lists what there is.")
        parser.set_defaults(**defaults)
        for action in parser._actions:  # a default fulfils a requirement
            action.required = action.required and action.dest not in defaults
    else:
        words = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
        if too_many := words[len(names) :]:
            parser.error(f"there is no place for {' '.join(too_many)}. `{prog} --help` lists what there is.")
        for i, (name, _) in enumerate(zip(names, words, strict=False)):
            arguments.insert(2 * i, f"--{name}")
    # Before argparse says what is missing: a misspelt option is the reason why it is.
    options = [option for action in parser._actions for option in action.option_strings]
    for name in [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]:
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"`{prog} --help` lists what there is."
            parser.error(f"there is no option {name}. {hint}")
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    except ValueError as error:  # whoever raises it: nothing but options is looked at
        raise Refused(f"{prog}: {error}") from error
    if rest:
        parser.error(f"there is no place for {' '.join(rest)}. `{prog} --help` lists what there is.")
    return tuple(parsed)


def policy_pipeline(policy: str, **options):
    """Load the policy that a command was given, as `pipeline("action-prediction")`.

    Args:
        policy: a folder or a Hub id.
        options: of the pipeline.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: it is something else, such as a VLM.
    """
    kind = model_type(policy, "policy")
    if kind not in (None, "kivla"):
        raise ValueError(
            f"{policy} is no KIVLA policy: its config.json has model_type = {kind!r}. A VLM becomes one by "
            "`kivla train --vlm`, and π0 or π0.5 by `kivla convert`."
        )
    return pipeline("action-prediction", model=policy, **options)


class Refused(SystemExit):
    """What a command refuses: one line on stderr, and exit status 2, as for an option that does not exist.

    `kivla.cli` makes it of errors that are written for people.
    """

    def __init__(self, message: str):
        print(message, file=sys.stderr)
        super().__init__(2)
        self.message = message

    def __str__(self) -> str:
        return self.message


def at_least_one(options, *names: str) -> None:
    """Check options that count something.

    Args:
        options: what `parse` gave.

    Raises:
        ValueError: one of them is given and below 1.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")


def command_line(prog: str, *options, always: Sequence[str] = (), without: Sequence[str] = ()) -> str:
    """The command with these options: those that are not at their default; some `always`, and some not at all.

    Args:
        options: what `parse` gave.
    """
    words = [prog]
    for part in options:
        for entry in [entry for entry in fields(part) if entry.name not in without]:
            value = getattr(part, entry.name)
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            if value is not None and (value != default or entry.name in always):
                values = value if isinstance(value, list) else [value]
                texts = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
                words += [f"--{entry.name}", *map(shlex.quote, texts)]
    return " ".join(words)

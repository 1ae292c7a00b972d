"""Options of a command: from dataclasses, the command line and YAML files."""

import argparse
import difflib
import inspect
import json
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

import yaml
from transformers import AutoConfig, HfArgumentParser, pipeline
from transformers.hf_argparser import string_to_bool

from .named_models import find_vlm, model_type
from .option_ranges import check_ranges

_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


def parse(
    dataclass_types: Sequence[type],
    arguments: Sequence[str],
    prog: str,
    positional: str | Sequence[str] = (),
    required: Sequence[str] = (),
    presets: Mapping[str, Mapping] | None = None,
    advanced: Collection[str] = (),
) -> tuple:
    """Command-line options, with defaults from a YAML file if the first argument is one.

    What is told later counts more: a field's default, then the preset, then the file, then the command line.

    Args:
        dataclass_types: as for `HfArgumentParser`.
        arguments: what follows the command's name.
        positional: the option, or the options in order, that may also be given first and without their names.
        required: options that must be given although their field has a default.
        presets: what each value of the option `preset` stands for.
        advanced: options that `--help` leaves out, and `--help-all` lists after the others.

    Raises:
        SystemExit: an unknown option, an unknown key in the file, or options that do not go together.
    """
    parser, arguments = _prepared(dataclass_types, arguments, prog, positional, required, presets, advanced)
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(
            arguments, return_remaining_strings=True, look_for_args_file=False
        )
        for options in parsed:
            check_ranges(options)
    except ValueError as error:  # whoever raises it: nothing but options is looked at
        raise Refused(f"{prog}: {error}") from error
    if rest:
        parser.error(f"there is no place for {' '.join(rest)}. `{prog} --help` lists what there is.")
    return tuple(parsed)


def option_values(dataclass_types: Sequence[type], arguments: Sequence[str], prog: str, **settings) -> dict:
    """Every option that has a value, given or by default, as a YAML file of options has it.

    Args:
        settings: the others of `parse`, with which `arguments` were read.
    """
    settings = {"positional": (), "required": (), "presets": None, "advanced": (), **settings}
    parser, arguments = _prepared(dataclass_types, arguments, prog, **settings)
    values = vars(parser.parse_args(arguments))
    return {
        name: value.value if isinstance(value, Enum) else value for name, value in values.items() if value is not None
    }


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """An option once, with its default where it has one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        name = next((option for option in action.option_strings if option.startswith("--")), action.option_strings[0])
        return " ".join([name, self._format_args(action, "VALUE")] if action.nargs != 0 else [name])

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default == []
        return action.help if says_nothing else super()._get_help_string(action)


def _put_first(parser: argparse.ArgumentParser, dataclass_types: Sequence[type], names: Sequence[str]) -> None:
    """Order the options as people look for them: these, then a command's own, then those that it has from others.

    `--no_x` beside a switch `--x` is accepted and not listed: `--x false` is the same.
    """
    own = [name for kind in dataclass_types for name in kind.__annotations__]
    rank = {name: i for i, name in reversed([*enumerate(["help", *names, *own])])}
    switches = {f"no_{field.name}" for kind in dataclass_types for field in fields(kind)}
    for group in parser._action_groups:  # argparse has no public way to move an option
        group._group_actions.sort(key=lambda action: rank.get(action.dest, len(rank) + 1))
    for action in parser._actions:
        if {option.removeprefix("--") for option in action.option_strings} & switches:
            action.help = argparse.SUPPRESS


class _Parser(HfArgumentParser):
    """Whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{self.prog}: {message}")


def _prepared(
    dataclass_types: Sequence[type],
    arguments: Sequence[str],
    prog: str,
    positional: str | Sequence[str],
    required: Sequence[str],
    presets: Mapping[str, Mapping] | None,
    advanced: Collection[str],
) -> tuple[_Parser, list[str]]:
    """Make the parser with its defaults, and arguments that are all options."""
    names = [positional] if isinstance(positional, str) else positional
    usage = " ".join([prog, *(f"[{name.upper()}]" for name in names), "[--option value ...]"])
    # No abbreviations: a misspelt option is none that happens to begin alike.
    parser = _Parser(dataclass_types, prog=prog, usage=usage, allow_abbrev=False, formatter_class=_Help)
    parser._negative_number_matcher = _NEGATIVE  # argparse's own takes -1e-3 for an option
    _put_first(parser, dataclass_types, (*names, *required))
    if advanced:
        _set_aside(parser, advanced, arguments)
    for action in parser._actions:  # argparse has no public way to change this
        action.required = action.required or action.dest in required
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True  # a switch is one with any default: --x is --x true
    arguments, defaults = list(arguments), {}
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        words, defaults = _read_options(arguments.pop(0), dataclass_types, parser)
        arguments = [*words, *arguments]  # what is told later counts
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
            parser.error(f"there is no option {name}. {_hint(name, options, prog)}")
    if presets is not None:
        preset = _word_of("preset", arguments) or defaults.get("preset")
        if preset is not None and preset not in presets:
            parser.error(f"there is no preset {preset}. Presets: {', '.join(presets)}.")
        defaults = {**presets.get(preset, {}), **defaults}
    parser.set_defaults(**defaults)
    for action in parser._actions:  # a default fulfils a requirement
        action.required = action.required and action.dest not in defaults
    return parser, arguments


def _read_options(file: str, dataclass_types: Sequence[type], parser: _Parser) -> tuple[list[str], dict]:
    """Read a YAML file of options: as words of the command line, and what no word can say (null, an empty list)."""
    if not Path(file).is_file():
        parser.error(f"there is no file {file}.")
    try:
        values = yaml.load(Path(file).read_text(encoding="utf-8"), _UniqueKeys) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"{file} is not valid YAML: {error}")
    if not isinstance(values, dict):
        parser.error(f"{file} must have lines of the form `option: value`.")
    known = [field.name for kind in dataclass_types for field in fields(kind)]
    if unknown := sorted(map(str, values.keys() - set(known))):
        parser.error(f"{file} has unknown keys: {', '.join(unknown)}. {_hint(unknown[0], known, parser.prog)}")
    actions = {action.dest: action for action in parser._actions}
    annotations = [inspect.get_annotations(base) for kind in dataclass_types for base in kind.__mro__]
    may_lack = {name for own in annotations for name, kind in own.items() if re.search("None|Optional|list", str(kind))}
    defaults = {name: value for name, value in values.items() if value is None or value == []}
    if wrong := sorted(name for name in defaults if actions[name].required or name not in may_lack):
        parser.error(f"{file} gives {wrong[0]} no value. Give it one, or leave out the line.")
    told = {name: value for name, value in values.items() if name not in defaults}
    words = [word for name, value in told.items() for word in _as_words(value, actions[name])]
    return words, defaults


class _UniqueKeys(yaml.SafeLoader):
    """Of two lines for one option YAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]} is there more than once.")
        return super().construct_mapping(node, deep)


def _as_words(value, action: argparse.Action) -> list[str]:
    """An option of a YAML file as it is written on the command line; a mapping in a list as NAME=VALUE."""
    if isinstance(value, dict) and action.nargs in ("+", "*"):
        value = [f"{key}={one}" for key, one in value.items()]
    if isinstance(value, bool) and action.type is not string_to_bool:
        value = "yes" if value else "no"  # which YAML takes for a switch
    if isinstance(value, list):
        return [f"--{action.dest}", *map(_as_word, value)]
    return [f"--{action.dest}={_as_word(value)}"]


def _as_word(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _hint(name: str, options: Sequence[str], prog: str) -> str:
    plain = {option.lstrip("-"): option for option in options}  # dashes are not what is alike
    near = difflib.get_close_matches(name.lstrip("-"), plain, n=1)
    return f"Did you mean {plain[near[0]]}?" if near else f"`{prog} --help` lists what there is."


def _word_of(name: str, arguments: Sequence[str]) -> str | None:
    """The last value that an option is given on the command line."""
    found = None
    for i, argument in enumerate(arguments):
        option, has_value, value = argument.partition("=")
        if option == f"--{name}":
            found = value if has_value else " ".join(arguments[i + 1 : i + 2])
    return found


HELP_ALL = "--help-all"


def _set_aside(parser: _Parser, advanced: Collection[str], arguments: Sequence[str]) -> None:
    """Put these options behind the others, and out of sight unless all are asked for."""
    parser.add_argument(HELP_ALL, action="help", help="show all options, the library's among them")
    group = parser.add_argument_group("of transformers' Trainer (--help-all)")
    shows_all = HELP_ALL in arguments
    for other in parser._action_groups[:-1]:  # argparse has no public way to move an option
        moved = [action for action in other._group_actions if action.dest in advanced]
        other._group_actions = [action for action in other._group_actions if action.dest not in advanced]
        group._group_actions += moved if shows_all else []


def policy_pipeline(policy: str, trust_remote_code: bool = False, **options):
    """Load the policy that a command was given, as `pipeline("action-prediction")`.

    Args:
        policy: a folder or a Hub id.
        trust_remote_code: run the code that a policy brings along for its VLM.
        options: of the pipeline.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: it is something else, such as a VLM; or it brings code along that nobody trusts.
    """
    kind = model_type(find_vlm(policy), "policy")
    if kind not in (None, "kivla"):
        raise ValueError(
            f"{policy} is no KIVLA policy: its config.json has model_type = {kind!r}. A VLM becomes one by "
            "`kivla train --vlm`, and π0 or π0.5 by `kivla convert`."
        )
    if kind is not None and not trust_remote_code:
        AutoConfig.from_pretrained(policy).read_vlm_config()
    return pipeline("action-prediction", model=policy, trust_remote_code=trust_remote_code, **options)


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

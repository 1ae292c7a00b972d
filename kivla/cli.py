"""The `kivla` command and its sub-commands."""

import difflib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from itertools import takewhile

import yaml
from transformers import HfArgumentParser

COMMANDS = {
    "train": "fine-tune a VLM into a robot policy on a LeRobot dataset",
    "launch-files": "write files for `accelerate launch` and SLURM: DDP, FSDP2, DeepSpeed, several machines",
    "card": "write the card of a trained policy or of a LeRobot dataset",
    "profile": "show where the time of a training step goes, with the options of train",
    "recipes": "list the training recipes",
    "record": "write demonstrations of a simulator's scripted expert as a LeRobot dataset",
    "predict": "predict action chunks with a trained policy, on a dataset or on images",
    "pretrain-tiny": "train a small VLM from nothing that sees the tabletop and answers questions",
    "convert": "convert π0 and π0.5 checkpoints of openpi, LeRobot and transformers, and back to LeRobot",
    "evaluate": "measure a policy on a dataset: errors by dimension and step, jerk, answers; one page of plots",
    "rollout": "let a policy act in a simulator: success, and whether the instruction matters",
    "study": "compare recipes on the tabletop: same budget, same data, several seeds",
    "tokenizers": "compare action tokenizers on held-out chunks: tokens, error, clipping",
    "inspect": "show what the action expert reads of a VLM or policy: layers, tokens, masks",
    "serve": "let robots ask a policy for actions over the network, as openpi's clients do",
    "demo": "from a small VLM to a policy that does as it is told, in minutes, with a report",
}


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: kivla COMMAND [CONFIG.yaml] [--option value ...]\n")
        for name, description in COMMANDS.items():
            print(f"  {name:15}{description}")
        print("\n`kivla COMMAND --help` lists the options of a command.")
        return
    command, *rest = arguments
    if command not in COMMANDS:
        sys.exit(f"kivla: there is no command '{command}'. Commands: {', '.join(COMMANDS)}.")
    import_module(f"kivla.{command.replace('-', '_')}").run(rest)


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
        SystemExit: an unknown option, or an unknown key in the file.
    """
    parser = HfArgumentParser(dataclass_types, prog=prog)
    for action in parser._actions:  # argparse has no public way to change this
        action.required = action.required or action.dest in required
    arguments = list(arguments)
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        file = arguments.pop(0)
        with open(file, encoding="utf-8") as stream:
            defaults = yaml.safe_load(stream) or {}
        known = {field.name for kind in dataclass_types for field in fields(kind)}
        if unknown := sorted(set(defaults) - known):
            parser.error(f"{file} has unknown keys: {', '.join(unknown)}. `{prog} --help` lists what there is.")
        parser.set_defaults(**defaults)
        for action in parser._actions:  # a default fulfils a requirement
            action.required = action.required and action.dest not in defaults
    else:
        names = [positional] if isinstance(positional, str) else positional
        words = takewhile(lambda argument: not argument.startswith("-"), list(arguments))
        for i, (name, _) in enumerate(zip(names, words, strict=False)):
            arguments.insert(2 * i, f"--{name}")
    *parsed, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if rest:
        options = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(rest[0], options, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"`{prog} --help` lists what there is."
        parser.error(f"there is no option {' '.join(rest)}. {hint}")
    return tuple(parsed)


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


if __name__ == "__main__":
    main()

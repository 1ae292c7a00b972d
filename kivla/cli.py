"""The `kivla` command: finds the sub-command and runs it.

Imports nothing of ours or heavy: installed, this file is also the module `kivla_cli`, where the console script finds
it without importing `kivla`, so that `kivla --help` answers at once.
"""

import difflib
import dis
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType

# In the order in which a newcomer needs them
COMMANDS = {
    "demo": "from a small VLM to a policy that does as it is told, in minutes, with a report",
    "inspect": "show what the action expert reads of a VLM or policy: layers, tokens, masks",
    "check-data": "look at a dataset before training: what it is, what was assumed, what to mend",
    "transcode": "write a dataset again with videos that can be entered anywhere, for faster training",
    "tokenizers": "compare action tokenizers on held-out chunks: tokens, error, clipping",
    "recipes": "list the training recipes",
    "train": "fine-tune a VLM into a robot policy on a LeRobot dataset",
    "predict": "predict action chunks with a trained policy, on a dataset or on images",
    "evaluate": "measure a policy on a dataset: errors by dimension and step, jerk, answers; one page of plots",
    "serve": "let robots ask a policy for actions over the network, as openpi's clients do",
    "rollout": "let a policy act in a simulator: success, and whether the instruction matters",
    "record": "write demonstrations of a simulator's scripted expert as a LeRobot dataset",
    "convert": "convert π0 and π0.5 checkpoints of openpi, LeRobot and transformers, and back to LeRobot",
    "card": "write the card of a trained policy or of a LeRobot dataset",
    "profile": "show where the time of a training step goes, with the options of train",
    "launch-files": "write files for `accelerate launch` and SLURM: DDP, FSDP2, DeepSpeed, several machines",
    "study": "compare recipes: what each costs the VLM and how well it acts, in one figure",
    "assemble-vlm": "make a VLM of a pretrained language model and a pretrained vision tower",
    "teach-vlm": "teach a pretrained VLM to see the tabletop, with replay of plain texts",
    "pretrain-tiny": "train a small VLM from nothing that sees the tabletop and answers questions",
}


# Commands that keep what they have done, wherever they are stopped
RESUMES = ("demo", "study", "teach-vlm", "pretrain-tiny")
# What some commands need beside the core, and the extra that brings it (pyproject.toml)
EXTRAS = {
    **{"gymnasium": "sim", "metaworld": "metaworld", "websockets": "server", "msgpack": "server"},
    **dict.fromkeys(("torchvision", "num2words", "timm", "sentencepiece", "tiktoken"), "vlm"),
}
IMPORT = "--import"
TRACEBACK = "KIVLA_TRACEBACK"  # set it to see where in the code a refusal comes from


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: kivla COMMAND [CONFIG.yaml] [--option value ...]\n")
        for name, description in COMMANDS.items():
            print(f"  {name:15}{description}")
        print("\n`kivla COMMAND --help` lists the options of a command. Each takes `--import MODULE`: for a policy")
        print("with an action tokenizer of your own, whose class must be known when it is loaded. `kivla --version`")
        print("says the versions that a report of a fault should name.")
        return
    if arguments[0] == "--version":
        print(_versions())
        return
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Commands: {', '.join(COMMANDS)}."
        print(f"kivla: there is no command '{command}'. {hint}", file=sys.stderr)
        sys.exit(2)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it hides nothing: pkg.module:Class of one's own is found here
    rest = _import_modules(command, rest)
    try:
        import_module(f"kivla.commands.{command.replace('-', '_')}").run(rest)
    except KeyboardInterrupt:  # as shells report it; whoever pressed Ctrl-C knows why
        if command in RESUMES:
            print(f"\nStopped. The same `kivla {command}` command goes on from what is done.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = _for_people(error, rest)
        if not message or os.environ.get(TRACEBACK):
            raise
        from kivla.command_line import Refused

        raise Refused(f"kivla {command}: {message}") from error


def _for_people(error: Exception, words: Sequence[str]) -> str | None:
    """What to say instead of a traceback; None of what is a slip of the code.

    Args:
        words: of the command line.
    """
    from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError

    if isinstance(error, StrictDataclassError):  # a config refused a value: in the library's words, or around ours
        cause = error.__cause__ or error
        return str(cause) if isinstance(error, StrictDataclassFieldValidationError) else _words_of_ours(cause)
    named = isinstance(error, RuntimeError) and type(error) is not RuntimeError  # one with a name of its own
    if not named and not isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        return None
    return _missing_extra(error) or _named_file(error, words) or _words_of_ours(error) or _missing_library(error)


def _versions() -> str:
    """What is installed; nothing of it is imported."""
    from importlib.metadata import version

    packages = [f"{package} {version(package)}" for package in ("kivla", "torch", "transformers")]
    return ", ".join([*packages, f"Python {sys.version.split()[0]}"])


def _missing_extra(error: Exception) -> str | None:
    """Say which extra brings the module that is not there."""
    if not isinstance(error, ImportError) or error.name not in EXTRAS:
        return None
    return f"it needs {error.name}. Install the extra: pip install 'kivla[{EXTRAS[error.name]}]'"


def _missing_library(error: Exception) -> str | None:
    """Say which extra brings what a VLM's code asks for: transformers names the library alone, in words."""
    if not isinstance(error, ImportError):
        return None
    wanted = [
        name
        for name in EXTRAS
        if re.search(rf"\b{name}\b", str(error), re.IGNORECASE) and importlib.util.find_spec(name) is None
    ]
    return f"it needs {wanted[0]}. Install the extra: pip install 'kivla[{EXTRAS[wanted[0]]}]'" if wanted else None


def _named_file(error: Exception, words: Sequence[str]) -> str | None:
    """Say what the system has against a file that was named on the command line."""
    is_named = isinstance(error, OSError) and error.filename is not None and str(error.filename) in words
    return f"{error.filename}: {error.strerror}" if is_named else None


def _words_of_ours(error: BaseException) -> str | None:
    """What the error says, if a `raise` of ours made it: then it was written for people, who need no traceback.

    What Python or a library raises in the middle of our code is a slip, and keeps its traceback.
    """
    trace: TracebackType = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, module = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__", "")
    is_raised = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    if not is_raised or module.partition(".")[0] != "kivla":
        return None
    has_number = isinstance(error, OSError) and error.strerror and error.filename is None
    return error.strerror if has_number else str(error)  # without "[Errno 28]"


def _import_modules(command: str, words: Sequence[str]) -> list[str]:
    """Import what `--import MODULE` and `--import=MODULE` name, and return the other words."""
    others, rest = [], iter(words)
    for word in rest:
        option, is_one, module = word.partition("=")
        if option != IMPORT:
            others.append(word)
        elif module or (not is_one and (module := next(rest, ""))):
            _import(command, module)
        else:
            print(f"kivla {command}: {IMPORT} needs the name of a module.", file=sys.stderr)
            sys.exit(2)
    return others


def _import(command: str, module: str) -> None:
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and needs another one that is not
        hint = "Run from the folder that it is in, or set PYTHONPATH."
        print(f"kivla {command}: --import {module}: there is no such module here. {hint}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

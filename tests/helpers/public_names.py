"""What other programs and scripts are written against: exported names, signatures, commands and their options, fields.

Found by asking the package, wherever its modules are.
"""

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import io
import typing

from transformers import PreTrainedConfig, TrainingArguments

import kivla
from kivla.cli import COMMANDS, main
from kivla.processing.processing_kivla import SETTINGS

PACKAGES = (
    "kivla",
    *(f"kivla.{name}" for name in ("acting", "hub_cards", "modeling_kivla", "processing", "simulation", "training")),
)
# Of these the constructor alone, or the fields alone: the rest is the library's, or between a trainer and its parts
CONSTRUCTOR_ALONE = ("KIVLATrainer",)
FIELDS_ALONE = ("KIVLAConfig", "KIVLAExpertConfig", "KIVLATrainingArguments", "KIVLAOutput")


def public_names() -> dict:
    return {
        "exports": {name: sorted(importlib.import_module(name).__all__) for name in PACKAGES},
        "signatures": signatures(),
        "commands": {name: options(name) for name in COMMANDS},
        "positional": {name: positional(name) for name in COMMANDS},
        "KIVLAConfig": own_fields(kivla.KIVLAConfig, PreTrainedConfig),
        "KIVLAExpertConfig": own_fields(kivla.KIVLAExpertConfig, PreTrainedConfig),
        "KIVLATrainingArguments": own_fields(kivla.KIVLATrainingArguments, TrainingArguments),
        "processor_settings": list(SETTINGS),
    }


def signatures() -> dict[str, list]:
    """Parameters, as `[name, default]`, of everything that is exported and can be called."""
    found = {}
    for package in PACKAGES:
        for name in importlib.import_module(package).__all__:
            thing = getattr(importlib.import_module(package), name)
            of_library = name in FIELDS_ALONE or (isinstance(thing, type) and issubclass(thing, Exception))
            if of_library or not callable(thing):
                continue
            found[name] = parameters(thing)
            if isinstance(thing, type) and name not in CONSTRUCTOR_ALONE:
                found |= {f"{name}.{method}": value for method, value in methods(thing).items()}
    return dict(sorted(found.items()))


def methods(kind: type) -> dict[str, list]:
    """Public methods that are defined by kivla."""
    found = {}
    for name in ("__call__", *(name for name in dir(kind) if not name.startswith("_"))):
        method = inspect.getattr_static(kind, name, None)
        method = getattr(method, "__func__", method)
        if inspect.isfunction(method) and method.__module__.startswith("kivla."):
            found[name] = parameters(method)
    return found


def parameters(thing) -> list:
    found = inspect.signature(thing).parameters.values()
    return [
        [f"{'*' * (p.kind is p.VAR_POSITIONAL) or '**' * (p.kind is p.VAR_KEYWORD)}{p.name}", shown(p.default)]
        for p in found
    ]


def own_fields(kind: type, parent: type) -> dict[str, str]:
    """Default of every field that the parent does not have, or has with another default."""
    inherited = {field.name: shown(default_of(field)) for field in dataclasses.fields(parent)}
    found = {field.name: shown(default_of(field)) for field in dataclasses.fields(kind)}
    return {name: default for name, default in found.items() if inherited.get(name) != default}


def default_of(field: dataclasses.Field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


class _Parsing(BaseException):
    """Carries the parser of a command, and the words that reached it, out of the command."""


def _parse(command: str, *words: str) -> tuple[argparse.ArgumentParser, list[str]] | None:
    """What a command does with these words before it parses them; None if it parses nothing."""

    def stop(parser, args=None, namespace=None):
        raise _Parsing(parser, list(args))

    original, argparse.ArgumentParser.parse_known_args = argparse.ArgumentParser.parse_known_args, stop
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main([command, *words])
    except _Parsing as caught:
        return caught.args
    finally:
        argparse.ArgumentParser.parse_known_args = original
    return None


def options(command: str) -> dict[str, dict]:
    """Type, default and more of every option that is ours, not the library's `TrainingArguments`."""
    parsed = _parse(command)
    if parsed is None:
        return {}
    not_ours = {"help", *(field.name for field in dataclasses.fields(TrainingArguments))}
    return {
        action.dest: {
            "flags": list(action.option_strings),
            "type": getattr(action.type, "__name__", str(action.type)),
            "default": shown(action.default),
            "nargs": action.nargs,
            "choices": [str(choice) for choice in action.choices or ()],
            "required": action.required,
        }
        for action in parsed[0]._actions
        if action.dest not in not_ours or action.required
    }


def positional(command: str) -> list[str]:
    """Options that a command takes without their names, in order."""
    if _parse(command) is None:
        return []
    for count in (3, 2, 1):  # words that have no place are refused
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            return [word for word in _parse(command, *["word"] * count)[1] if word.startswith("--")]
    return []


def shown(value: typing.Any) -> str:
    """The value as text; of a path of this machine its last part."""
    if value is inspect.Parameter.empty or value is dataclasses.MISSING:
        return "required"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    text = str(value)
    return text.rsplit("/", 1)[-1] if text.startswith("/") else repr(value)

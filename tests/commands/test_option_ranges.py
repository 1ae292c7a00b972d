"""Every command refuses a number that an option cannot have, by the option's name, before it does anything."""

import importlib
from dataclasses import fields

import pytest

from kivla.command_line import Refused, parse
from kivla.option_ranges import _ANY, _is_of_library

# What each command needs to be told, so that any option may be.
WORDS = {
    "serve": ["p"],
    "predict": ["p", "--dataset", "d"],
    "evaluate": ["p", "--dataset", "d", "--text_dataset", "t"],
    "rollout": ["p"],
    "record": ["out"],
    "inspect": ["m"],
    "transcode": ["d", "--output_dir", "o"],
    "tokenizers": ["d"],
    "check_data": ["d", "--plot", "p.png"],
    "convert": ["p", "--output_dir", "o"],
    "card": ["p"],
    "train": ["--vlm", "tabletop", "--dataset", "d", "--output_dir", "o"],
    "profile": ["--vlm", "tabletop", "--dataset", "d", "--output_dir", "o"],
    "study": ["--text_dataset", "t", "--eval_text_dataset", "t"],
    "demo": [],
    "teach_vlm": ["o", "--vlm", "v", "--text_dataset", "t"],
    "pretrain_tiny": ["o"],
    "assemble_vlm": ["o", "--text_model", "a", "--vision_tower", "b"],
}


class Parsed(Exception):
    """Carries the classes of a command's options."""


def stopping_run(command: str, monkeypatch):
    """The command's `run`, which stops as soon as its options are read."""
    module = importlib.import_module(f"kivla.commands.{command}")

    def stop_behind_parsing(kinds, arguments, **settings):
        parse(kinds, arguments, **settings)
        raise Parsed(kinds)

    monkeypatch.setattr(module, "parse", stop_behind_parsing)
    return module.run


@pytest.mark.parametrize("command", WORDS)
def test_a_number_out_of_range_is_refused_by_name(command, monkeypatch):
    run = stopping_run(command, monkeypatch)
    with pytest.raises(Parsed) as found:
        run(WORDS[command])
    numbers = [
        (field.name, value)
        for kind in found.value.args[0]
        for field in fields(kind)
        if field.init and not _is_of_library(kind, field) and "str" not in str(field.type)
        for value in ("-1", "nan")
        if "float" in str(field.type) or ("int" in str(field.type) and value == "-1")
        if value == "nan" or field.name not in _ANY
    ]
    assert numbers or command == "card"
    for name, value in numbers:
        with pytest.raises(Refused) as refused:
            run([*WORDS[command], f"--{name}", value])
        assert name in str(refused.value), f"--{name} {value}: {refused.value}"


@pytest.mark.parametrize(
    ("command", "option", "value", "said"),
    [
        ("rollout", "max_steps", "0", "at least 1"),
        ("rollout", "latency_steps", "0", None),
        ("record", "empty_grips", "1.5", "a share"),
        ("tokenizers", "scales", "0", "above 0"),
        ("predict", "state", "-1", None),
        ("predict", "state", "-1e-3", None),
        ("train", "eval_episodes", "0", None),
        ("train", "max_steps", "-1", None),
        ("train", "learning_rate", "nan", "finite"),
    ],
)
def test_what_may_be_none_or_negative_is_taken(command, option, value, said, monkeypatch):
    run = stopping_run(command, monkeypatch)
    words = ["p", "--images", "a.png"] if option == "state" else WORDS[command]
    with pytest.raises(Parsed if said is None else Refused, match=said):
        run([*words, f"--{option}", value])

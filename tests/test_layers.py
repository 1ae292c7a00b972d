"""Which room may import which: every import of ours, at the top of a file or inside a function, goes downwards."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room with those that it may import beside itself. A module belongs to the longest name that fits.
ROOMS = {
    "hub_cards": {"named_models"},
    "modeling_kivla": set(),  # its files travel with a policy, and so do those of processing
    "processing": set(),
    "named_models": set(),
    "option_ranges": set(),
    "command_line": {"named_models", "option_ranges"},
    "acting": {"modeling_kivla", "processing"},
    "assembly": set(),
    "training.data": {"named_models", "modeling_kivla", "processing", "acting"},
}
ROOMS["training.evaluation"] = {"training.data", *ROOMS["training.data"]}
ROOMS["training"] = {"training.evaluation", "hub_cards", *ROOMS["training.evaluation"]}
ROOMS["serving"] = ROOMS["conversion"] = {"hub_cards", *ROOMS["training.data"]}
ROOMS["simulation"] = {"training", *ROOMS["training"]}
ROOMS["demo"] = ROOMS["study"] = {"demo", "simulation", "command_line", "option_ranges", *ROOMS["simulation"]}
ROOMS["commands"] = set(ROOMS)
ROOMS["cli"] = {"commands", "command_line"}
FILES = [
    *(file for name in ("acting", "hub_cards", "modeling_kivla", "processing") for file in (ROOT / name).glob("*.py")),
    *(file for name in ("simulation", "training", "kivla") for file in (ROOT / name).rglob("*.py")),
]


def module_of(file: Path) -> str:
    """`training.trainer` for training/trainer.py, `commands.train` for kivla/commands/train.py."""
    words = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(words[words[0] == "kivla" :])


def room_of(module: str) -> str | None:
    """The room of a module or of a name in one; None is the package `kivla` itself."""
    names = [module.rsplit(".", dots)[0] for dots in range(module.count(".") + 1)]
    return next((name for name in names if name in ROOMS), None)


def imported(module: str, source: str) -> Iterator[str]:
    """The modules of ours, or names in them, that the source of a module imports."""
    package = ["kivla", *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            names = [".".join(filter(None, [*base, node.module, alias.name])) for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("kivla.") for name in names if name.split(".")[0] == "kivla")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_downwards(file):
    room = room_of(module_of(file))
    if room is None:
        assert file == ROOT / "kivla" / "__init__.py", "a new room: name it above, with what it may import"
        return
    itself = set() if room == "commands" else {room}  # no command imports another
    for name in imported(module_of(file), file.read_text(encoding="utf-8")):
        assert room_of(name) in ROOMS[room] | itself, f"{room} must not import {name}"


def test_every_import_is_seen():
    """Relative and absolute ones, at the top and inside functions."""
    source = "from ..trainer import a\ndef f():\n    from .. import b\n    import kivla.cli\n    from kivla import c\n"
    assert list(imported("training.data.mixture", source)) == ["training.trainer.a", "training.b", "cli", "c"]

"""What the pages of the documentation hold: blocks of code, shell commands, and the `kivla` commands among them."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path

import pytest

from kivla.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
READMES = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "examples/README.md",
        "lerobot_policy_kivla/README.md",
        "simulation/tabletop_vlm/README.md",
    )
    if (ROOT / name).is_file()
]
DOCUMENTS = [*READMES, *PAGES]
RUNNABLE = ("sh", "bash", "python")
OTHER_LANGUAGES = ("text", "json", "yaml", "toml", "bibtex")
OUT_OF_TREE = ROOT / "tests/out_of_tree"

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n\n?)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.M | re.S,
)
_ASSIGNMENT = re.compile(r"^\w+=")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        title: the name of a file in `tests/out_of_tree` that the block shows, or None.
        reason: why it is not run, None if it is.
    """

    document: Path
    line: int
    language: str
    text: str
    title: str | None
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


documents = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


def blocks_of(document: Path) -> list[Block]:
    content = document.read_text(encoding="utf-8")
    blocks = []
    for match in _BLOCK.finditer(content):
        line = content.count("\n", 0, match.start("language")) + 1
        blocks.append(Block(document, line, match["language"], match["text"], match["title"], match["reason"]))
    return blocks


def shell_commands(text: str) -> list[list[str]]:
    """The words of every command, without comments and variables set in front of it."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                command.append(word)
                continue
            while command and _ASSIGNMENT.match(command[0]):
                del command[0]
            if command:
                commands.append(command)
            command = []
    return commands


def kivla_arguments(words: list[str]) -> list[str] | None:
    """What `kivla` is called with, by itself or through Python, `accelerate` or SLURM; None if it is not called."""
    if words[0] == "kivla":
        return words[1:]
    if "kivla.cli" in words:
        return words[words.index("kivla.cli") + 1 :]
    scripts = [i for i, word in enumerate(words) if word.endswith("slurm.sh")]
    return ["train", *words[scripts[0] + 2 :]] if scripts else None


@contextmanager
def commands_stop_after_parsing(options: list[tuple] | None = None) -> Iterator[None]:
    """Let every command check its options and do nothing else.

    Args:
        options: gets the dataclasses of every command that is called, before they are filled.
    """

    with pytest.MonkeyPatch.context() as patch:
        for name in COMMANDS:
            module = import_module(f"kivla.commands.{name.replace('-', '_')}")
            if not hasattr(module, "parse"):
                continue

            def parse(kinds, arguments, *rest, really=module.parse, **named):
                if options is None:
                    really(kinds, arguments, *rest, **named)
                else:
                    options.append(kinds)
                raise Parsed

            patch.setattr(module, "parse", parse)
        yield


class Parsed(Exception):
    """The options of a command are right."""


def all_options() -> set[str]:
    """The options of all commands, without dashes."""
    kinds: list[tuple] = []
    with commands_stop_after_parsing(kinds):
        for name in COMMANDS:
            with suppress(Parsed):
                import_module(f"kivla.commands.{name.replace('-', '_')}").run([])
    return {field.name for group in kinds for kind in group for field in fields(kind)}

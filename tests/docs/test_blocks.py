"""Every block of code in README and docs: commands and Python run at test size; what cannot is marked, and parsed.

A block that needs a GPU, the Hub, a robot or hours says so in a comment before it, `<!-- not run: REASON -->`. It must
still be right as far as that can be seen: options exist, Python compiles, what it imports from kivla is there.
"""

import ast
import re
import shutil
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from kivla.cli import COMMANDS, main
from tests.docs.markdown import (
    DOCUMENTS,
    OTHER_LANGUAGES,
    OUT_OF_TREE,
    ROOT,
    RUNNABLE,
    Block,
    Parsed,
    blocks_of,
    commands_stop_after_parsing,
    documents,
    kivla_arguments,
    name_of,
    shell_commands,
)
from tests.docs.stand_ins import image, make_python_small, make_stand_ins, small

OTHER_PROGRAMS = (".", "apt", "cd", "git", "hf", "lerobot-eval", "lerobot-record", "lerobot-rollout", "python3", "uv")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)


@documents
def test_every_block_is_right_as_far_as_it_can_be_read(document):
    fences = re.findall(r"^\s*```", document.read_text(encoding="utf-8"), re.M)
    assert len(fences) == 2 * len(blocks_of(document)), "a block is indented, not closed, or has more than a title"
    with commands_stop_after_parsing():
        for block in blocks_of(document):
            known = (*RUNNABLE, *OTHER_LANGUAGES)
            assert block.language in known, f"{block.place}: name the language of the block, one of {known}"
            if block.title is not None:
                assert block.text == (OUT_OF_TREE / block.title).read_text(), f"{block.place}: not the file of the test"
            elif block.language == "python":
                check_python(block)
            elif block.language in RUNNABLE:
                for words in shell_commands(block.text):
                    check_command(block, [word for word in words if word != "..."])


def check_python(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text, filename=block.place)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "kivla":
            module = import_module(node.module)
            missing = [name.name for name in node.names if name.name != "*" and not hasattr(module, name.name)]
            assert not missing, f"{block.place}: {node.module} has no {missing}"


def check_command(block: Block, words: list[str]) -> None:
    """A command that exists, with options and files that exist."""
    place, program = f"{block.place}: {' '.join(words)}", words[0]
    arguments = kivla_arguments(words)
    if arguments is not None:
        if not arguments or arguments[0].startswith("-"):
            return
        assert arguments[0] in COMMANDS, place
        if "--import" in arguments:  # a file of the reader's own: here it is among those of test_extending.py
            at = arguments.index("--import")
            assert (ROOT / "tests" / "out_of_tree" / f"{arguments[at + 1]}.py").is_file(), place
            arguments = arguments[:at] + arguments[at + 2 :]
        on_cpu = ["--use_cpu", "true"] if arguments[0] in ("train", "profile") else []  # for --bf16
        try:
            main([*arguments, *on_cpu])
        except Parsed:
            return
        except SystemExit as error:
            pytest.fail(f"{place}: {error}")
        assert arguments == ["recipes"], place
    elif program == "make":
        assert set(words[1:]) <= {*TARGETS, *(word for word in words if "=" in word)}, place
    elif "pip" in words or program == "pip":
        named = {
            name for group in re.findall(r"(?:kivla|\.)\[([\w,]+)\]", " ".join(words)) for name in group.split(",")
        }
        assert named <= set(EXTRAS), f"{place}: there are the extras {sorted(EXTRAS)}"
    elif program == "python" and words[1] == "-m":
        path = ROOT.joinpath(*words[2].split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), place
    elif program in ("python", "pytest"):
        words = words[1:2] if program == "python" else words[1:]  # what a script is given may be yet to be made
        files = [word.partition("::")[0] for word in words if "/" in word]
        assert files and all((ROOT / file).exists() for file in files), place
    else:
        assert program in OTHER_PROGRAMS or program.startswith(("accelerate", "sbatch")), place


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stand_ins")
    make_stand_ins(folder)
    return folder


def runs(document: Path) -> list[Block]:
    """The blocks that are run here; those with a title are files of `tests/test_extending.py`, which runs them."""
    blocks = blocks_of(document)
    return [block for block in blocks if block.language in RUNNABLE and block.title is None and block.reason is None]


@pytest.mark.slow
@pytest.mark.parametrize("document", [document for document in DOCUMENTS if runs(document)], ids=name_of)
def test_every_block_runs(document, stand_ins, tmp_path, monkeypatch):
    """The blocks of a page one after the other, in one folder and one Python."""
    world = tmp_path / "world"
    shutil.copytree(stand_ins, world)
    monkeypatch.chdir(world)
    make_python_small(monkeypatch)
    names = {"base": image(0), "wrist": image(1), "state": [0.0] * 5}
    written: set[str] = set()
    for block in runs(document):
        make_room(block.text, written)
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)
            continue
        for words in shell_commands(block.text):
            arguments = kivla_arguments(words)
            assert arguments is not None, f"{block.place}: {words[0]} cannot be run here; mark the block"
            main(small(arguments))


def make_room(text: str, written: set[str]) -> None:
    """A stand-in goes where the page itself makes what it stands for."""
    for name in re.findall(r'(?:--output_dir |KIVLATrainingArguments\(")([\w/]+)', text):
        if name not in written:
            shutil.rmtree(name, ignore_errors=True)
        written.add(name)

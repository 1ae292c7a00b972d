"""What README and docs say of the code is true: names, files, options and messages exist; the README stays short."""

import ast
import re
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import transformers

from kivla.cli import COMMANDS
from kivla.training.recipes import RECIPES
from tests.docs.markdown import PAGES, READMES, ROOT, all_options, documents, name_of
from tests.helpers import contract_table, processor_table
from tests.helpers.every_type import held_types
from tests.helpers.families import FAMILIES

FOLDERS = "acting|benchmarks|docs|examples|hub_cards|kivla|lerobot_policy_kivla|modeling_kivla|processing|simulation"
FILE = re.compile(rf"`((?:{FOLDERS}|tests|training)/[\w./-]*)(?:::(\w+))?`")
NAME = re.compile(r"`(kivla(?:\.\w+)+)")
OPTION = re.compile(r"`[^`]*?--(\w+)(?![\w.])")
LINK = re.compile(r"\]\((?!https?://|#)([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```$", re.M | re.S)
OPTIONS_OF_OTHERS = {
    "import",
    "version",
    "rename_map",
    "rows",  # of benchmarks.hands
    "dry_run",
    "write",
    "quick",
    "help",
    "image_size",
    "aggregate_fn_name",
}


def prose(document: Path) -> str:
    return CODE_BLOCK.sub("", document.read_text(encoding="utf-8"))


@cache
def symbols(file: Path) -> set[str]:
    """The names of functions, classes, methods and values of a module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    values = {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return values | {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@documents
def test_files_symbols_and_names_exist(document):
    for path, symbol in FILE.findall(prose(document)):
        assert (ROOT / path).exists(), f"{name_of(document)} names {path}, which is not there"
        assert not symbol or symbol in symbols(ROOT / path), f"{name_of(document)}: {path} has no {symbol}"
    for name in NAME.findall(prose(document)):
        if name == "kivla.cli":  # `-m kivla.cli`
            continue
        holder, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(holder), attribute), f"{name_of(document)} names {name}, which is not there"


@documents
def test_commands_exist(document):
    """Those within sentences; blocks of code are in `test_blocks.py`."""
    unknown = [name for name in re.findall(r"`kivla ([a-z][\w-]*)", prose(document)) if name not in COMMANDS]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    unknown += [name for name in re.findall(r"`make ([a-z][\w-]*)", prose(document)) if name not in targets]
    for name in re.findall(r"`python -m ([\w.]+)", prose(document)):
        path = ROOT.joinpath(*name.split("."))
        unknown += [] if path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() else [name]
    assert not unknown, f"{name_of(document)} speaks of commands that there are not: {unknown}"


@documents
def test_options_exist(document):
    known = all_options() | OPTIONS_OF_OTHERS
    unknown = sorted({option for option in OPTION.findall(prose(document)) if option not in known})
    assert not unknown, f"{name_of(document)} speaks of options that no command has: {unknown}"


@pytest.mark.parametrize("document", [*READMES, ROOT / "benchmarks/README.md"], ids=name_of)
def test_links_lead_to_files(document):
    """Those between the pages of the site are checked when it is built."""
    for link in LINK.findall(prose(document)):
        assert (document.parent / link.partition("#")[0]).exists(), f"{name_of(document)} links to {link}"


def test_the_readme_is_read_by_people_in_a_hurry():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 130, "130 lines are a screen and a half"
    assert len(text.split()) <= 1200
    assert len(re.findall(r"^\|[-:|]+\|$", text, re.M)) <= 2, "two tables"
    assert CODE_BLOCK.sub("", text).count(";") <= 5, "sentences, not chains of them"


@pytest.mark.slow
def test_the_table_of_vlms_is_the_tested_one():
    page = contract_table.PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__} knows" not in page:
        pytest.skip("the table is of another version of transformers")
    assert page == contract_table.page_with(page, contract_table.table()), (
        "docs/vlms.md is not up to date: python -m tests.helpers.contract_table --write"
    )


def test_the_table_of_processors_is_the_tested_one():
    page = contract_table.PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__} knows" not in page:
        pytest.skip("the table is of another version of transformers")
    table = processor_table.table()
    assert page == contract_table.page_with(page, table, processor_table.BEGIN, processor_table.END), (
        "docs/vlms.md is not up to date: python -m tests.helpers.processor_table --write"
    )


def test_every_family_is_in_the_table_of_vlms_and_counted():
    page = contract_table.PAGE.read_text(encoding="utf-8")
    lacking = [name for name in held_types() if f"| {name} | " not in page]
    assert not lacking, f"python -m tests.helpers.contract_table --write: {lacking}"
    assert f"{len(FAMILIES)} tiny models" in page
    assert f"{len(FAMILIES)} VLM families" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_recipe_and_extra_is_described():
    recipes = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert not [name for name in RECIPES if f"`{name}`" not in recipes]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    described = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/install.md").read_text(encoding="utf-8"), re.M)
    assert sorted(described) == sorted(extras)


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [name_of(page) for page in PAGES if f"- {page.relative_to(ROOT / 'docs')}" not in menu]


def test_every_page_is_found_from_the_readme():
    links = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert not [name_of(page) for page in PAGES if str(page.relative_to(ROOT)) not in links]


@cache
def messages() -> str:
    """Every text in the code, a line each, with dots for what is put into it."""
    folders = [ROOT / name for name in FOLDERS.split("|") if name not in ("docs", "examples", "benchmarks")]
    lines = []
    for file in (file for folder in [*folders, ROOT / "training"] for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                lines.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(line.replace("\n", " ") for line in lines)


def test_messages_of_troubleshooting_are_the_true_ones():
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) > 20
    patterns = {row: ".*?".join(re.escape(part.strip()) for part in row.split("...")) for row in rows}
    assert not [row for row, pattern in patterns.items() if not re.search(pattern, messages())], "no code says this"

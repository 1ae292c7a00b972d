"""Files about the project say the same as each other."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import kivla

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())


def test_there_is_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == kivla.__version__
    plugin = tomllib.loads((ROOT / "lerobot_policy_kivla" / "pyproject.toml").read_text(encoding="utf-8"))
    assert plugin["project"]["version"] == kivla.__version__
    assert f"## {kivla.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_pre_commit_runs_the_ruff_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = hooks["repos"]
    assert repository["rev"] == f"v{CONSTRAINTS['ruff']}"


def test_every_direct_dependency_is_pinned_within_its_range():
    extras = PROJECT["project"]["optional-dependencies"]
    pins = {name.replace("-", "_").lower(): version for name, version in CONSTRAINTS.items()}
    for text in [*PROJECT["project"]["dependencies"], *(text for extra in extras.values() for text in extra)]:
        requirement = Requirement(text)
        pin = pins.get(requirement.name.replace("-", "_").lower())
        assert pin is not None, f"{text}: constraints.txt has no version"
        assert requirement.specifier.contains(pin), f"{text}: constraints.txt has {pin}"


def test_the_type_checker_sees_every_public_module():
    modules = {getattr(kivla, name).__module__ for name in kivla.__all__}
    included = {name.removesuffix(".py").replace("/", ".") for name in PROJECT["tool"]["pyright"]["include"]}
    assert not (lost := modules - included), f"not in [tool.pyright] of pyproject.toml: {sorted(lost)}"


def test_every_yaml_file_of_the_project_can_be_read():
    files = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"]
    assert len(files) > 4
    for file in files:
        assert yaml.safe_load(file.read_text(encoding="utf-8")), file


@pytest.mark.parametrize("name", ["LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"])
def test_it_is_there(name):
    assert (ROOT / name).is_file()

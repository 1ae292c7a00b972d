"""What is built is whole: the source distribution holds the repository, and the wheel made from it works elsewhere."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATASET = Path(__file__).parent / "data" / "lerobot_v3_metaworld"
SITE_PACKAGES = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"

pytestmark = pytest.mark.slow


def run(*command, cwd: Path, environment: dict | None = None) -> str:
    result = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def tracked_files() -> set[str]:
    """Files of the repository, as they are in the working tree; a link to a folder is one name."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    return {name for name in listed if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The unpacked source distribution, built from a copy of the repository."""
    folder = tmp_path_factory.mktemp("distribution")
    for name in tracked_files():
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "copy" / name, follow_symlinks=False)
    archive = run(sys.executable, "-c", BUILD, "build_sdist", folder, cwd=folder / "copy").split()[-1]
    with tarfile.open(folder / archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sources) -> Path:
    """Built from the source distribution alone."""
    return sources.parent / run(sys.executable, "-c", BUILD, "build_wheel", sources.parent, cwd=sources).split()[-1]


@pytest.fixture(scope="module")
def installed(wheel) -> Path:
    """Folder of the commands of a new environment, which has the wheel, and all other packages of this one."""
    folder = wheel.parent / "environment"
    run(sys.executable, "-m", "venv", folder, cwd=wheel.parent)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "others.pth").write_text("\n".join(SITE_PACKAGES))  # a path alone: an editable kivla is not found
    run(folder / "bin" / "pip", "install", "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    return folder / "bin"


def test_the_source_distribution_is_the_repository(sources):
    found = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    links = {name for name in tracked_files() if (ROOT / name).is_symlink()}
    assert not (lost := tracked_files() - links - found), f"not in the source distribution: {sorted(lost)}"
    twice = [name for name in found if name.startswith(tuple(f"{link}/" for link in links))]
    assert not twice, f"there twice: {twice}"


def test_the_wheel_has_every_module_once_and_nothing_else_at_its_top(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"kivla", "kivla_cli.py", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
    folders = ("acting", "hub_cards", "modeling_kivla", "processing", "simulation", "training")
    in_repository = {
        name if name.startswith("kivla/") else f"kivla/{name}"
        for name in tracked_files()
        if name.startswith(tuple(f"{folder}/" for folder in ("kivla", *folders))) and not (ROOT / name).is_symlink()
    }
    code = {name for name in names if name.startswith("kivla/")}
    assert len(names) == len(set(names))
    assert code == in_repository, f"lost {sorted(in_repository - code)}, and beside it {sorted(code - in_repository)}"
    assert any(name.endswith("licenses/LICENSE") for name in names)


IN_THE_WHEEL = """
import sys
from contextlib import suppress
from kivla.cli import main
from kivla.named_models import TABLETOP_VLM

assert sys.modules["kivla"].__file__.startswith(sys.prefix), "this is not the wheel's"
main(["recipes"])
main(["launch-files", "launch"])
with suppress(SystemExit):
    main(["demo", "--help"])
main(["train", "--vlm", str(TABLETOP_VLM), *sys.argv[1:]])
"""


def test_the_wheel_works_outside_the_repository(installed, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    assert "kivla COMMAND" in run(installed / "kivla", "--help", cwd=tmp_path, environment=environment)

    options = {"dataset": DATASET, "output_dir": "policy", "max_steps": 1, "chunk_size": 6, "max_eval_frames": 2}
    options |= {"per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    options |= {"dataloader_num_workers": 0}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    printed = run(installed / "python", "-c", IN_THE_WHEEL, *words, cwd=tmp_path, environment=environment)
    assert "insulated-bins" in printed and "--minutes" in printed
    assert (tmp_path / "launch" / "fsdp2.yaml").is_file()
    assert "library_name: kivla" in (tmp_path / "policy" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "policy" / "modeling_kivla.py").is_file(), "the policy does not bring its code along"

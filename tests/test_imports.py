"""What `import kivla` registers, in any order of imports, and what it leaves alone until it is used."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import kivla
import kivla.training

ROOT = Path(__file__).parents[1]
SAVED = Path(__file__).parent / "data" / "compatibility" / "saved.tar.xz"
LIBRARY = "from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline"
ORDERS = {
    "kivla first": f"import kivla\n{LIBRARY}",
    "kivla last": f"{LIBRARY}\nimport kivla",
    "a room alone": f"import kivla.processing\n{LIBRARY}",
}
REGISTERED = """
import sys

folder = sys.argv[1]
for auto in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor):
    kind = type(auto.from_pretrained(folder))
    assert kind.__module__.startswith("kivla."), f"{auto.__name__} gives {kind}"
pipe = pipeline("action-prediction", model=folder)
assert type(pipe).__module__ == "kivla.modeling_kivla.pipeline_kivla", type(pipe)
assert type(pipe.model).__name__ == "KIVLAForActionPrediction" and type(pipe.processor).__name__ == "KIVLAProcessor"
"""
LOADED = """
import sys
import transformers.pipelines

before = set(sys.modules)
import kivla.processing

# Other modules of a package that the library has loaded already, such as huggingface_hub's, are no new one
known = {name.partition(".")[0] for name in before} - {"transformers"}
print(*sorted(name for name in set(sys.modules) - before if name.partition(".")[0] not in known))
"""


def run(program: str, *arguments, cwd: Path = ROOT) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with tarfile.open(SAVED) as archive:
        archive.extractall(folder, filter="data")
    return folder / "policy"


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_the_library_knows_our_classes(order, policy):
    """With every Auto class and the pipeline, by the name of the task alone, and without `trust_remote_code`."""
    run(order + REGISTERED, policy)


@pytest.mark.slow
def test_only_our_own_modules_are_loaded_beside_the_librarys():
    loaded = run(LOADED).split()
    assert "kivla.processing.processing_kivla" in loaded
    others = {name.partition(".")[0] for name in loaded} - {"kivla", "transformers", *sys.stdlib_module_names}
    assert not others, f"`import kivla.processing` also loads {sorted(others)}"
    trains = [name for name in loaded if name.startswith(("kivla.training.", "transformers.trainer"))]
    assert not trains, f"`import kivla.processing` also loads {trains}"


def test_help_loads_neither_the_package_nor_torch():
    program = "import sys; from kivla_cli import main; main(['--help']); print(*sys.modules)"
    help_text, _, modules = run(program).rstrip().rpartition("\n")
    assert "train" in help_text
    assert not {"kivla", "torch", "transformers", "numpy"} & set(modules.split())


@pytest.mark.parametrize("module", [kivla, kivla.training])
def test_every_public_name_is_there(module):
    """Also those that are loaded when they are first used."""
    assert set(module.__all__) <= set(dir(module))
    star: dict = {}
    exec(f"from {module.__name__} import *", star)
    for name in module.__all__:
        assert star[name] is getattr(module, name), name
        assert star[name].__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'KIVLATrainr'"):
        module.KIVLATrainr  # noqa: B018

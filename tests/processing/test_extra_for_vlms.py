"""The extra `vlm` brings all that popular families want: they load and run where nothing else is installed."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement

from tests.helpers.vlm_processors import HAS_TORCHVISION, KINDS

ROOT = Path(__file__).parents[2]
POPULAR = ("smolvlm", "qwen3_vl", "paligemma2", "gemma3", "gemma4")
# Load a folder laid out as a VLM's on the Hub, and ask about a picture
LOAD = """
import importlib.util, sys
import numpy as np
from transformers import AutoModelForImageTextToText, AutoConfig
from kivla.processing import KIVLAProcessor

assert importlib.util.find_spec("pytest") is None, "more is installed here than is asked for"
for folder in sys.argv[1:]:
    processor = KIVLAProcessor.from_vlm(folder, normalization="none", state_encoding="none")
    batch = processor(images=[[np.zeros((20, 30, 3), np.uint8)]], text=["What is it?"], prompt_kind="text")
    del batch["expert_attention_mask"]
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    assert model(**batch).logits.isfinite().all()
"""


def distributions(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """What pip installs for these requirements, and for theirs."""
    found: dict[str, metadata.Distribution] = {}
    todo, seen = [(Requirement(text), ("",)) for text in requirements], set()
    while todo:
        wanted, extras = todo.pop()
        is_wanted = wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras)
        key = (wanted.name, frozenset(wanted.extras))
        if not is_wanted or key in seen:
            continue
        seen.add(key)
        found[wanted.name] = metadata.distribution(wanted.name)
        todo += [(Requirement(text), ("", *wanted.extras)) for text in found[wanted.name].requires or ()]
    return found


def link_packages(folder: Path, requirements: Iterable[str]) -> None:
    """Make a folder of packages that has what these requirements bring, and nothing else."""
    folder.mkdir()
    for distribution in distributions(requirements).values():
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = folder / name
            if not link.exists():
                link.symlink_to(distribution.locate_file(name))


@pytest.mark.skipif(not HAS_TORCHVISION, reason="torchvision is not installed: make test-torchvision")
def test_popular_families_load_with_the_extra_alone(tmp_path):
    for name in POPULAR:
        kind = KINDS[name]
        processor = kind.processor()
        if name == "gemma4":  # in the place of the stand-in
            processor.feature_extractor = transformers.Gemma4AudioFeatureExtractor()
        processor.save_pretrained(tmp_path / name)
        kind.vlm_config().save_pretrained(tmp_path / name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    link_packages(tmp_path / "packages", project["dependencies"] + project["optional-dependencies"]["vlm"])
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'packages'}:{ROOT}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-S", "-c", LOAD, *(str(tmp_path / name) for name in POPULAR)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr

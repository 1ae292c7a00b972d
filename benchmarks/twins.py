"""Tiny twins of published checkpoints: the same layouts and classes, random weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from tests.helpers import pi_reference
from tests.helpers.vlm_processors import KINDS
from tests.processing.test_action_tokenizers import published_fit

from .real_weights import EMBEDDING, HEAD, smooth_chunks


def in_folder(folder: Path) -> Callable[[str, str], tuple[Path, str]]:
    """What stands in the place of the Hub: makes a twin of a source in `folder`, and says where and that it is one."""

    def locate(name: str, repo: str) -> tuple[Path, str]:
        twin = folder / name
        if not twin.is_dir():
            TWINS[name](twin)
        return twin, "random weights"

    return locate


def pi05(folder: Path, chunk_size: int = 6, size: pi_reference.Size = pi_reference.TINY) -> None:
    """As LeRobot saves it: names under `model.`, the embedding twice, the expert's unused vocabulary."""
    folder.mkdir()
    weights = pi_reference.random_weights("pi05", size)
    weights[EMBEDDING] = weights[HEAD].clone()
    save_file({f"model.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"type": "pi05", "chunk_size": chunk_size}))


def paligemma2(folder: Path) -> None:
    kind = replace(KINDS["paligemma"], family="paligemma2")
    _save_vlm(folder, kind.vlm_config(), kind.processor())


def smolvlm(folder: Path) -> None:
    """Its processor is Idefics 3's, of the same family: SmolVLM's own wants videos, hence torchvision."""
    _save_vlm(folder, KINDS["smolvlm"].vlm_config(), KINDS["idefics3"].processor())


def fast(folder: Path) -> None:
    """In the published layout, without the code that comes with it."""
    folder.mkdir()
    published_fit(smooth_chunks(200), folder)


def _save_vlm(folder: Path, config, processor) -> None:
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)


TWINS = {
    "pi05_base": pi05,
    "pi05_libero": lambda folder: pi05(folder, chunk_size=10),
    "paligemma2": paligemma2,
    "smolvlm": smolvlm,
    "fast": fast,
}

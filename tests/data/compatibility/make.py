"""What an earlier version saved and named, for `tests/test_compatibility.py`.

`saved.tar.xz` holds `policy/`, trained for two steps by `kivla train`, with the code that came along, and `adapter/`, a
LoRA adapter on it. `expected.npz` holds two observations and the actions that both answered. `public_names.json` is the
list of `tests/helpers/public_names.py`. `python -m tests.data.compatibility.make` made them once, before a large move
of the code, and they stay as they are: made anew, they would prove nothing.
"""

import contextlib
import io
import json
import tarfile
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from transformers import pipeline

from kivla.cli import main
from tests.helpers.public_names import public_names

FOLDER = Path(__file__).parent
DATASET = FOLDER.parent / "lerobot_v3_metaworld"
# The loaded policy needs none of these: plots, and what names the machine that trained
LEFT_OUT = ("*.png", "training_args.bin", "_run_identity.json", "checkpoint-*", "trainer_state.json")
TRAIN = {
    "dataset": DATASET,
    "max_steps": 2,
    "chunk_size": 6,
    "num_flow_samples": 2,
    "action_vocab_size": 128,
    "learning_rate": 5e-5,
    "expert_learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "adam_beta2": 0.999,
    "augment": "none",
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "max_eval_frames": 16,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
NEW_POLICY = {"max_action_dim": 4, "expert_hidden_size": 16, "expert_intermediate_size": 32}


def tiny_vlm(folder: Path) -> None:
    """A LLaVA with chat template, of 16 channels and with a word for each byte."""
    from kivla.demo.tiny_vlm import BASIC_TOKENS, CHAT_TOKENS, _byte_level_tokenizer, make_tiny_vlm

    tokenizer = _byte_level_tokenizer([], 0, (*BASIC_TOKENS, *CHAT_TOKENS))
    model, processor = make_tiny_vlm("llava", tokenizer, 16, 8, hidden_size=16, num_layers=2, num_vision_layers=1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def train(folder: Path, **options) -> None:
    words = [word for name, value in {**TRAIN, **options}.items() for word in (f"--{name}", str(value))]
    main(["train", *words, "--output_dir", str(folder)])


def observations() -> list[dict]:
    generator = np.random.default_rng(0)
    return [
        {
            "images": [generator.integers(256, size=(24, 32, 3), dtype=np.uint8)],
            "text": text,
            "state": generator.normal(size=4).astype(np.float32),
        }
        for text in ("open the drawer", "push the button")
    ]


def answers(folder: str) -> dict[str, np.ndarray]:
    """(2, H, D) actions in robot units, of the action expert and of decoded action tokens."""
    pipe = pipeline("action-prediction", model=folder)
    return {
        "flow": np.stack([answer["actions"] for answer in pipe(observations(), seed=0)]),
        "tokens": np.stack([answer["actions"] for answer in pipe(observations(), acts_by="tokens")]),
    }


def make() -> None:
    # The adapter names its base as it was given: a path relative to the working folder names no machine.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        tiny_vlm(Path("vlm"))
        train(Path("policy"), vlm="vlm", **NEW_POLICY)
        train(Path("tuned"), policy="policy", lora_rank=2)
        expected = {"policy": answers("policy"), "adapter": answers("tuned/adapter")}
        arrays = {f"{policy}_{way}": array for policy, ways in expected.items() for way, array in ways.items()}
        names = public_names() | {"files": {"policy": data_files(Path("policy"))}}
        with tarfile.open(FOLDER / "saved.tar.xz", "w:xz") as archive:
            for name, source in {"policy": "policy", "adapter": "tuned/adapter"}.items():
                for path in sorted(path for path in Path(source).rglob("*") if path.is_file()):
                    inside = path.relative_to(source)
                    if not any(fnmatch(part, pattern) for part in inside.parts for pattern in LEFT_OUT):
                        entry = tarfile.TarInfo(f"{name}/{inside}")
                        entry.size = path.stat().st_size
                        archive.addfile(entry, io.BytesIO(path.read_bytes()))
    np.savez_compressed(FOLDER / "expected.npz", **arrays)
    (FOLDER / "public_names.json").write_text(one_line_each(names), encoding="utf-8")


def one_line_each(names: dict) -> str:
    """JSON with a line for each name in each part."""
    parts = []
    for part, entries in names.items():
        if isinstance(entries, dict):
            lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
            parts.append(f"{json.dumps(part)}: {{\n{lines}\n}}")
        else:
            parts.append(f"{json.dumps(part)}: {json.dumps(entries)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def data_files(folder: Path) -> list[str]:
    """All files that training wrote, but the code that travels with a policy."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".py"
    )


if __name__ == "__main__":
    make()

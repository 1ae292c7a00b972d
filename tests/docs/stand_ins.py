"""Small local things under the names that the pages use, so that their commands run as they are written.

`google/paligemma2-3b-pt-224` is then a folder with a tiny VLM, `lerobot/your_dataset` one with a small dataset.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from benchmarks import twins
from kivla import KIVLAForActionPrediction, KIVLATrainer
from kivla.cli import main
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.simulation import make_questions
from kivla.training.data.lerobot.writer import LeRobotWriter
from tests.helpers.pi_reference import Size
from tests.helpers.vlm_processors import KINDS

EXPERT = {"hidden_size": 32, "intermediate_size": 48}
EXPERT_OPTIONS = ["--expert_hidden_size", "32", "--expert_intermediate_size", "48"]
TRAINING = [
    *("--max_steps", "2", "--per_device_train_batch_size", "2", "--max_eval_frames", "4", "--logging_steps", "1"),
    *("--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true", "--dataloader_pin_memory", "false"),
    *("--dataloader_num_workers", "0"),
]
# Options that make a command small; what a page says in their place is checked by the command's parser all the same
SMALL = {
    "train": TRAINING,
    "profile": [*TRAINING, "--profile_steps", "1", "--warmup_steps_before", "1"],
    "record": ["--num_episodes", "4", "--num_envs", "2"],
    "rollout": ["--num_episodes", "2", "--num_envs", "2", "--num_videos", "1"],
    "predict": ["--num_frames", "4", "--num_plots", "1"],
    "evaluate": ["--num_frames", "4", "--num_plots", "1"],
    **{
        name: []
        for name in ("card", "check-data", "convert", "inspect", "launch-files", "recipes", "tokenizers", "transcode")
    },
}
CAMERAS, SIDE, LENGTH = ("base", "wrist"), 32, 24
JOINTS = tuple(f"joint_{i}" for i in range(5))
# The robots of the walk-throughs, as LeRobot records them: cameras, joints, frames a second
SO101 = (
    ("front", "wrist"),
    tuple(
        f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    ),
    30,
)
ALOHA = (
    ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"),
    tuple(
        f"{side}_{name}"
        for side in ("left", "right")
        for name in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
    ),
    50,
)


def image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def small(arguments: list[str]) -> list[str]:
    """A command of the pages, at the size of a test.

    Raises:
        ValueError: it has none (`kivla demo`, `study`, `serve`): the block is to be marked.
    """
    command = arguments[0]
    if command not in SMALL:
        raise ValueError(f"`kivla {command}` takes too long for a test: mark the block with <!-- not run: REASON -->.")
    expert = EXPERT_OPTIONS if command in ("train", "profile") and "--vlm" in arguments else []
    acts = command != "evaluate" or "--dataset" in arguments  # texts and questions alone have no frames
    return [*arguments, *(SMALL[command] if acts else []), *expert]


def record(
    folder: Path,
    seed: int,
    subtasks: bool = False,
    cameras: Sequence[str] = CAMERAS,
    joints: Sequence[str] = JOINTS,
    fps: int = 10,
) -> None:
    """Four episodes of some cameras and joints, with smooth motion; perhaps with sub-tasks."""
    rng = np.random.default_rng(seed)
    sizes = dict.fromkeys(cameras, (SIDE, SIDE))
    parts = ["reach it"] * (LENGTH // 2) + ["close the hand"] * (LENGTH - LENGTH // 2) if subtasks else None
    options = {"robot_type": "arm", "image_format": "image", "subtasks": subtasks}
    with LeRobotWriter(folder, fps, sizes, joints, joints, **options) as writer:
        for _ in range(4):
            pictures = {name: rng.integers(0, 256, (LENGTH, SIDE, SIDE, 3), dtype=np.uint8) for name in cameras}
            motion = rng.normal(size=(LENGTH, len(joints))).cumsum(axis=0).astype(np.float32) / 10
            writer.add_episode(pictures, motion, motion, "pick up the cup", parts)


def questions(folder: Path) -> None:
    """As on the Hub: a configuration by name, conversations in a column of their own."""
    (folder / "ai2d").mkdir(parents=True)
    turn = {"user": "What is this?", "assistant": "a table"}
    features = datasets.Features(
        images=datasets.List(datasets.Image()), texts=datasets.List({name: datasets.Value("string") for name in turn})
    )
    rows = {"images": [[image(i)] for i in range(8)], "texts": [[turn]] * 8}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "ai2d" / "train.parquet")
    _write_configs(folder, "ai2d")


def _write_configs(folder: Path, name: str) -> None:
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.parquet\n---\n"
    )


def texts(file: Path) -> None:
    """Held-out texts, a line each."""
    file.write_text("".join(f"{json.dumps({'text': f'Text {i} is about tea.'})}\n" for i in range(4)))


def texts_of_the_hub(folder: Path, name: str) -> None:
    """Texts in a configuration by name."""
    (folder / name).mkdir(parents=True)
    rows = datasets.Dataset.from_dict({"text": [f"A long text, number {i}, is about coffee." for i in range(8)]})
    rows.to_parquet(folder / name / "train.parquet")
    _write_configs(folder, name)


def make_stand_ins(folder: Path) -> None:
    """Everything that the pages take for granted, in `folder`."""
    root = Path(__file__).parents[2]
    save_tiny_vlm(folder / "google/paligemma2-3b-pt-224", image_size=SIDE, patch_size=16, hidden_size=32, num_layers=2)
    KINDS["paligemma"].processor().save_pretrained(folder / "google/paligemma-3b-pt-224")  # of the π0.5 below
    for seed, name in enumerate(("your_dataset", "more_of_it", "more_of_the_same", "first", "second")):
        record(folder / "lerobot" / name, seed)
    record(folder / "lerobot" / "your_annotated_dataset", seed=0, subtasks=True)
    for name, (cameras, joints, fps) in (("you/pick_up_the_cup", SO101), ("lerobot/aloha_static_cups_open", ALOHA)):
        record(folder / name, seed=0, cameras=cameras, joints=joints, fps=fps)
    twins.pi05(folder / "lerobot" / "pi05_base", size=Size(dim=32))  # as wide as the published one
    (folder / "physical-intelligence").mkdir()
    twins.fast(folder / "physical-intelligence" / "fast")
    questions(folder / "HuggingFaceM4" / "the_cauldron")
    make_questions(1, seed=0).save_to_disk(folder / "questions")
    for name in ("held_out.jsonl", "my_texts.jsonl"):
        texts(folder / name)
    texts_of_the_hub(folder / "Salesforce" / "wikitext", "wikitext-103-raw-v1")
    shutil.copytree(root / "tests/data", folder / "tests/data")
    shutil.copytree(root / "simulation/tabletop_vlm", folder / "simulation/tabletop_vlm")
    train = ["train", "--vlm", "google/paligemma2-3b-pt-224", "--dataset", "lerobot/your_dataset"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(small([*train, "--output_dir", "policy"]))


def make_python_small(patch: pytest.MonkeyPatch) -> None:
    """Python's way to what the options of `small` do."""
    from_vlm, begin = KIVLAForActionPrediction.from_vlm.__func__, KIVLATrainer.__init__

    def from_small_vlm(cls, name, expert_config=None, **kwargs):
        return from_vlm(cls, name, expert_config=expert_config or EXPERT, **kwargs)

    def begin_small(self, model=None, args=None, *rest, **kwargs):
        args.max_steps, args.report_to, args.disable_tqdm = 2, [], True
        begin(self, model, args, *rest, **kwargs)

    patch.setattr(KIVLAForActionPrediction, "from_vlm", classmethod(from_small_vlm))
    patch.setattr(KIVLATrainer, "__init__", begin_small)

"""What an installation without extras can do: all but what is named here, where their packages are not found."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kivla.training.data.lerobot.writer import LeRobotWriter

ROOT = Path(__file__).parents[1]
# Modules whose whole job needs an extra. `kivla.cli` names it where the error does not.
NEEDS = {
    "video": (
        "training.data.lerobot.pyav",
        "training.data.lerobot.video",
        "training.data.lerobot.video_writer",
        "training.data.lerobot.key_frames",
        "training.data.lerobot.transcode",
        "commands.transcode",
    ),
    "sim": (
        "simulation",
        "demo.pretraining",
        "demo.report",
        "demo.stages",
        "demo.teaching",
        "demo.two_heads",
        "demo.curriculum",
        "demo.word_alignment",
        "study.arguments",
        "study.figures",
        "study.measurements",
        "study.plan",
        "study.report",
        "study.runs",
        "study.summary",
        "study.workshop",
        "commands.demo",
        "commands.pretrain_tiny",
        "commands.record",
        "commands.rollout",
        "commands.study",
        "commands.teach_vlm",
    ),
    "server": ("serving.msgpack_numpy", "serving.policy_server", "serving.served_policy", "commands.serve"),
}
HIDE = """
import importlib
import pkgutil
import sys
from importlib.machinery import PathFinder

extras = {
    "av", "gguf", "gymnasium", "metaworld", "msgpack", "mujoco", "num2words", "sentencepiece", "tiktoken", "timm",
    "torchao", "torchvision", "websockets",
}
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None: None if name.partition(".")[0] in extras else find(name, path, target)
)
"""
IMPORT_ALL = """
def walk(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        print(name.removeprefix("kivla."), error.name, sep="\\t")
        return
    for part in pkgutil.iter_modules(getattr(module, "__path__", ()), name + "."):
        if part.name not in rooms:
            walk(part.name)

rooms = ["kivla." + room for room in ("acting", "hub_cards", "modeling_kivla", "processing", "simulation", "training")]
for name in ("kivla", *rooms):
    walk(name)
"""
READ = """
import numpy as np
from kivla import LeRobotDataset
from kivla.training.data.lerobot.writer import LeRobotWriter

pictures, videos, written = sys.argv[1:]
example = LeRobotDataset(pictures, chunk_size=2)[1]
assert np.asarray(example["images"][0]).shape == (8, 8, 3) and np.asarray(example["images"][0]).max() == 1
with LeRobotWriter(written, 10, {"front": (8, 8)}, ["x"], ["x"], "point", image_format="image") as writer:
    values = np.zeros((3, 1), np.float32)
    writer.add_episode({"front": np.zeros((3, 8, 8, 3), np.uint8)}, values, values, task="go")
assert len(LeRobotDataset(written, chunk_size=2)) == 3
try:
    LeRobotDataset(videos, chunk_size=2)
except ImportError as error:
    print(error)
"""


def start(program: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", HIDE + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def run(program: str, *arguments) -> str:
    result = start(program, *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def write(folder: Path, image_format: str) -> Path:
    pictures = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    with LeRobotWriter(folder, 10, {"front": (8, 8)}, ["x"], ["x"], "point", image_format=image_format) as writer:
        writer.add_episode({"front": pictures}, np.zeros((3, 1), np.float32), np.zeros((3, 1), np.float32), task="go")
    return folder


def test_only_what_needs_an_extra_needs_it():
    packages = {"video": {"av"}, "sim": {"gymnasium"}, "server": {"websockets", "msgpack"}}
    found = dict(line.split("\t") for line in run(IMPORT_ALL).splitlines())
    expected = {module for modules in NEEDS.values() for module in modules}
    assert set(found) == expected, f"not as listed above: {sorted(set(found) ^ expected)}"
    for extra, modules in NEEDS.items():
        wrong = {module: found[module] for module in modules if found[module] not in packages[extra]}
        assert not wrong, f"they lack other packages than those of {extra}: {wrong}"


def test_pictures_need_no_extra_and_videos_name_theirs(tmp_path):
    folders = write(tmp_path / "pictures", "image"), write(tmp_path / "videos", "lossless_video")
    assert "pip install 'kivla[video]'" in run(READ, *folders, tmp_path / "written")


@pytest.mark.parametrize("command, extra", [("transcode", "video"), ("rollout", "sim"), ("serve", "server")])
def test_a_command_names_its_extra(command, extra):
    ended = start("from kivla_cli import main\nmain(sys.argv[1:])", command, "--help")
    assert ended.returncode == 2 and f"pip install 'kivla[{extra}]'" in ended.stderr, ended.stderr[-3000:]

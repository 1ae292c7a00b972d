"""A saved policy where kivla is not installed: its own code comes along, and acts the same."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from kivla.cli import main
from tests.commands.test_commands import TINY
from tests.helpers.policies import DATASET, dataset
from tests.helpers.tolerance import assert_close_relative

# Without `site`, no `.pth` file is read, so that an editable kivla cannot be imported; and the packages that a policy
# must do without are hidden.
SCRIPT = """
import os
import sys
from importlib.machinery import PathFinder

HIDDEN = ("kivla", "scipy", "pyarrow", "datasets", "evaluate", "peft", "accelerate", "av")

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.path += sys.argv[1].split(os.pathsep)
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

folder, frames, out = sys.argv[2:]
frames = np.load(frames, allow_pickle=True).tolist()
pipe = pipeline("action-prediction", model=folder, trust_remote_code=True)
results = {"pipeline": np.stack([result["actions"] for result in pipe(frames, seed=0)])}
results["tokens"] = np.stack([result["actions"] for result in pipe(frames, acts_by="tokens")])
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules") and type(config).__name__ == "KIVLAConfig"
batch = processor(**{key: [frame[key] for frame in frames] for key in ("images", "text", "state")})
noise = torch.randn(1, config.chunk_size, config.max_action_dim, generator=torch.Generator().manual_seed(0))
chunks = model.sample_actions(**batch, noise=noise.expand(len(frames), -1, -1))
results["model"] = processor.unnormalize_actions(chunks.numpy())
model.save_pretrained(out + "_again")
processor.save_pretrained(out + "_again")
np.savez(out, **results)
"""


def without_kivla(folder, frames, out):
    environment = os.environ | {"HF_MODULES_CACHE": str(out) + "_modules", "HF_HUB_OFFLINE": "1"}
    packages = os.pathsep.join(path for path in sys.path if Path(path).name in ("site-packages", "dist-packages"))
    command = [sys.executable, "-S", "-c", SCRIPT, packages, *map(str, (folder, frames, out))]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out.parent)
    assert result.returncode == 0, result.stderr[-3000:]
    return np.load(f"{out}.npz")


@pytest.mark.slow
def test_a_policy_acts_the_same_without_kivla(tmp_path):
    from kivla.demo.tiny_vlm import save_tiny_vlm

    save_tiny_vlm(tmp_path / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    options = {**TINY, "vlm": tmp_path / "vlm", "dataset": DATASET, "output_dir": tmp_path / "policy", "max_steps": 2}
    main(["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value))])
    frames = [{key: dataset()[i][key] for key in ("images", "text", "state")} for i in (0, 90)]
    np.save(tmp_path / "frames.npy", frames, allow_pickle=True)

    found = without_kivla(tmp_path / "policy", tmp_path / "frames.npy", tmp_path / "found")
    # With kivla installed no remote code is asked for, and none is run.
    pipe = pipeline("action-prediction", model=str(tmp_path / "policy"))
    assert type(pipe.model).__module__.startswith("kivla.")
    expected = np.stack([result["actions"] for result in pipe(frames, seed=0)])
    for way in ("pipeline", "model"):
        assert_close_relative(found[way], expected, what=way)
    tokens = np.stack([result["actions"] for result in pipe(frames, acts_by="tokens")])
    np.testing.assert_array_equal(found["tokens"], tokens)
    # What was loaded as remote code and saved again is whole, too
    again = without_kivla(tmp_path / "found_again", tmp_path / "frames.npy", tmp_path / "second")
    assert_close_relative(again["pipeline"], expected, what="saved again")


def test_the_two_folders_share_no_file_name():
    """Their files are saved into one folder with a policy: one would take the place of the other."""
    root = Path(__file__).parents[2]
    names = [{path.name for path in (root / folder).glob("*.py")} for folder in ("modeling_kivla", "processing")]
    assert set.intersection(*names) == {"__init__.py"}

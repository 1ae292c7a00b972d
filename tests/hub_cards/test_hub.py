"""To the Hub and back, with huggingface_hub's own HTTP client and a Hub on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.commands.test_train_recipes import command, sources  # noqa: F401 (a fixture)
from tests.helpers.hub_stand_in import hub_stand_in
from tests.helpers.patience import PATIENCE

ROOT = Path(__file__).parents[2]
PUSH = """
import sys
from kivla import KIVLAForActionPrediction, KIVLAProcessor
folder, repo = sys.argv[1:3]
model, processor = KIVLAForActionPrediction.from_pretrained(folder), KIVLAProcessor.from_pretrained(folder)
model.push_to_hub(repo, max_shard_size="100KB")
processor.push_to_hub(repo)
"""
ACT = """
import sys
import numpy as np
from transformers import pipeline
import kivla
repo, revision, frame, out = sys.argv[1:5]
frame = np.load(frame, allow_pickle=True).item()
pipe = pipeline("action-prediction", model=repo, revision=revision)
np.save(out, pipe(frame, seed=0)["actions"])
"""


def run(script: str, *arguments, endpoint: str, cache: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_TOKEN": "hf_test", "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    words = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_push_download_revision_and_resume(sources, tmp_path):  # noqa: F811
    from transformers import pipeline

    from kivla.cli import main
    from tests.helpers.policies import dataset

    main(command(sources, tmp_path / "policy"))
    frame = {key: dataset()[0][key] for key in ("images", "text", "state")}
    np.save(tmp_path / "frame.npy", frame, allow_pickle=True)
    expected = pipeline("action-prediction", model=str(tmp_path / "policy"))(frame, seed=0)["actions"]

    with hub_stand_in() as (endpoint, hub):
        run(PUSH, tmp_path / "policy", "user/policy", endpoint=endpoint, cache=tmp_path / "pusher")
        files = hub.repos["user/policy"]["main"]
        shards = [name for name in files if name.endswith(".safetensors")]
        assert len(shards) > 1 and "model.safetensors.index.json" in files, "sharded when large"
        assert {"config.json", "generation_config.json", "processor_config.json"} <= set(files)
        assert {"modeling_kivla.py", "pipeline_kivla.py", "processing_kivla.py", "knowledge_insulation.py"} <= set(
            files
        )
        first = hub.sha("user/policy", "main")
        hub.commit("user/policy", "main", [{"key": "deletedFile", "value": {"path": "config.json"}}])

        # A revision of its own, and a download that is cut off in the middle and goes on from there
        hub.cut = 1
        arguments = ("user/policy", first, tmp_path / "frame.npy", tmp_path / "out.npy")
        run(ACT, *arguments, endpoint=endpoint, cache=tmp_path / "robot")
        assert hub.cut == 0
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
        downloads = [path for method, path in hub.log if method == "GET" and path.endswith(".safetensors")]
        assert len(downloads) == len(shards) + 1, "every shard once, and the one that was cut off again"

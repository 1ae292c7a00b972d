"""The real openpi-client against `kivla serve`: robots that use it work unchanged, whoever else is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from kivla.demo.tiny_vlm import save_tiny_vlm
from tests.helpers.patience import PATIENCE
from tests.serving.test_serve import frame, kivla_serve, save_policy

ROBOTS, REQUESTS = 8, 125


@pytest.fixture(scope="module")
def openpi_python(tmp_path_factory):
    """A Python with openpi-client, which wants NumPy 1 and so cannot live beside us."""
    folder = tmp_path_factory.mktemp("openpi")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    # The third it imports and does not ask for
    packages = ["openpi-client==0.1.2", "numpy<2", "typing_extensions"]
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
    installation = subprocess.run(command, capture_output=True, text=True)
    if installation.returncode != 0:
        pytest.skip(f"openpi-client 0.1.2 cannot be installed here: {installation.stderr.strip()[-300:]}")
    return python


@pytest.mark.slow
def test_a_thousand_requests_among_nonsense(openpi_python, tmp_path):
    save_tiny_vlm(tmp_path / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    policy = save_policy(tmp_path / "vlm", tmp_path / "policy")
    frames = [frame(i) for i in range(0, 180, 18)]
    pipe = pipeline("action-prediction", model=str(policy), seed=7, num_steps=2)
    np.savez(
        tmp_path / "frames.npz",
        images=np.stack([one["images"][0] for one in frames]),
        states=np.stack([one["state"] for one in frames]),
        texts=[one["text"] for one in frames],
        actions=np.stack([pipe(one)["actions"] for one in frames]),
    )
    options = ["--preset", "libero", "--cameras", "corner2=observation/image"]
    robots = [openpi_python, Path(__file__).with_name("openpi_robots.py")]
    with kivla_serve(policy, *options, "--seed", 7, "--num_steps", 2) as (process, port):
        command = [*map(str, (*robots, port, tmp_path / "frames.npz", ROBOTS, REQUESTS))]
        environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-3000:]
        process.terminate()
        assert process.wait(PATIENCE) == 0

    found = json.loads(result.stdout)
    assert found["errors"] == [] and found["wrong"] == 0
    assert found["answered"] == ROBOTS * REQUESTS == 1000
    assert found["by_broker"]
    assert found["metadata"]["preset"] == "libero" and found["metadata"]["chunk_size"] == len(
        pipe(frames[0])["actions"]
    )
    assert found["trouble"]["vanished"] >= 3
    causes = (
        "is not msgpack as openpi's clients write it",
        "this was a text frame",
        "is not msgpack as openpi's clients write it",
        "arrays of type '|O1' are refused",
        "lacks ['prompt']",
        "'observation/state' must be one vector of numbers",
    )
    told = found["trouble"]["told"]
    assert len(told) >= len(causes)
    for i, text in enumerate(told):
        assert causes[i % len(causes)] in text
    times = {
        name: np.percentile(found[name], [50, 99]).round(2).tolist() for name in ("policy_ms", "infer_ms", "wait_ms")
    }
    print(f"{found['answered']} answers, {len(told)} refusals; median and 99th percentile: {times}")

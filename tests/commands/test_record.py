"""From a simulator to a policy that acts in it, each step by its command, at a size that shows only that it works."""

import json

import pytest

from kivla import LeRobotDataset
from kivla.cli import main
from kivla.demo.tiny_vlm import save_tiny_vlm


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demonstrations") / "dataset"
    main(["record", str(folder), "--num_episodes", "6", "--num_envs", "4", "--env_options", "kinds=[touch, push]"])
    return folder


def test_record(demonstrations):
    data = LeRobotDataset(demonstrations, chunk_size=5)
    assert data.num_episodes == 6 and data.state_dim == data.action_dim == 3
    assert data.tasks and all(text.strip() for text in data.tasks.values()), "an episode has no instruction"


@pytest.mark.slow
def test_record_train_rollout(demonstrations, tmp_path):
    save_tiny_vlm(tmp_path / "vlm", image_size=48, patch_size=16, hidden_size=32, num_layers=2)
    options = {
        "vlm": tmp_path / "vlm",
        "dataset": demonstrations,
        "output_dir": tmp_path / "policy",
        "chunk_size": 5,
        "max_action_dim": 3,
        "expert_hidden_size": 32,
        "expert_intermediate_size": 48,
        "action_vocab_size": 128,
        "max_steps": 2,
        "max_eval_frames": 8,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    main(["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value))])
    rollout = ["rollout", str(tmp_path / "policy"), "--num_episodes", "4", "--num_envs", "2", "--max_steps", "6"]
    main([*rollout, "--num_videos", "1", "--output_dir", str(tmp_path / "rollout")])
    report = json.loads((tmp_path / "rollout" / "rollout.json").read_text())
    (figures,) = report["policies"]
    assert figures["success"]["episodes"] == 4 and figures["swapped"]["original"]["episodes"] == 4
    assert (tmp_path / "rollout" / report["media"]["contact_sheet"]).is_file()

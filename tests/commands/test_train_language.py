"""`kivla train` on a LeRobot dataset that says more than its task: sub-tasks, and questions about frames."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import pipeline

from kivla.cli import main
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.processing import KIVLAProcessor
from kivla.training.data.lerobot.writer import LeRobotWriter
from kivla.training.data.mixture import Mixture
from tests.commands.test_commands import TINY

CAMERA = "observation.images.front"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A VLM; two episodes of two sub-tasks with questions; and the same episodes without either."""
    folder = tmp_path_factory.mktemp("sources")
    save_tiny_vlm(folder / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    for name in ("said", "silent"):
        rng = np.random.default_rng(0)
        options = {"robot_type": "arm", "image_format": "image", "subtasks": name == "said"}
        with LeRobotWriter(folder / name, 10, {"front": (32, 32)}, ["x"], ["dx"], **options) as writer:
            for _ in range(2):
                images = {"front": rng.integers(0, 256, (12, 32, 32, 3), np.uint8)}
                motion = rng.normal(size=(2, 12, 1)).astype(np.float32)
                said = ["go"] * 6 + ["grasp"] * 6 if name == "said" else None
                writer.add_episode(images, *motion, "tidy up", said)
    path = folder / "said/data/chunk-000/file-000.parquet"
    pair = [{"role": role, "content": role, "style": "vqa", "camera": CAMERA} for role in ("user", "assistant")]
    table = pq.read_table(path)
    pq.write_table(table.append_column("language_events", pa.array([pair] * 4 + [[]] * 20)), path)
    return folder


def command(sources, output_dir, **options) -> list[str]:
    settings = {**TINY, "vlm": sources / "vlm", "dataset": sources / "said", "output_dir": output_dir, "max_steps": 2}
    settings |= {"max_eval_frames": 4, **options}
    return ["train", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


def test_a_policy_learns_to_say_its_subtask_and_answers_questions(sources, tmp_path, capsys, monkeypatch):
    mixtures = []
    monkeypatch.setattr(
        "kivla.training.run.Mixture", lambda *arguments: mixtures.append(Mixture(*arguments)) or mixtures[-1]
    )
    language = {"subtask_key": "language_persistent", "expert_reads_response": "true", "question_share": 0.25}
    main(command(sources, tmp_path / "policy", **language, eval_episodes=1))
    printed = capsys.readouterr().out
    assert "language_persistent has 2 different sub-tasks" in printed and "4 questions about frames" in printed
    (mixture,) = mixtures
    np.testing.assert_allclose(mixture.weights, [0.75, 0.25])
    assert mixture.sources[1][0]["response"] == "assistant" and "actions" not in mixture.sources[1][0]
    assert {mixture.sources[0][i]["response"] for i in range(12)} == {"go", "grasp"}
    metrics = json.loads((tmp_path / "policy/eval_results.json").read_text())
    assert "eval_held_out_action_mae_given_response" in metrics, "held-out episodes have their sub-tasks, too"
    processor = KIVLAProcessor.from_pretrained(tmp_path / "policy")
    assert processor.responds_first and processor.expert_reads_response
    frame = mixture.sources[0][0]
    observation = {name: frame[name] for name in ("images", "text", "state")}
    assert "response" in pipeline("action-prediction", model=str(tmp_path / "policy"))(observation)
    # A run knows which sub-tasks it learns.
    del language["subtask_key"]
    with pytest.raises(SystemExit, match="subtask_key: was language_persistent, is "):
        main(command(sources, tmp_path / "policy", **language, eval_episodes=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question_share": 1.2}, "--question_share must lie between 0 and 1"),
        ({"question_share": 0.1, "recipe": "pi0"}, "--question_share cannot apply: recipe pi0 trains on no VLM data"),
        ({"question_share": 0.1, "max_steps": -1}, "give --max_steps"),
        ({"subtask_key": "phase", "dataset_format": "a:B"}, "it is for LeRobot datasets, and --dataset_format is a:B"),
    ],
)
def test_what_cannot_apply_is_refused_in_a_line(sources, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(command(sources, tmp_path / "policy", **options))
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_the_data_has_not_is_refused_before_training(sources, tmp_path):
    with pytest.raises(SystemExit, match="there is no column 'phase' with sub-tasks"):
        main(command(sources, tmp_path / "policy", subtask_key="phase"))
    with pytest.raises(SystemExit, match="--question_share cannot apply: the datasets have no questions about frames"):
        main(command(sources, tmp_path / "policy", dataset=sources / "silent", question_share=0.1))

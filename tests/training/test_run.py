"""A run from Python: what `kivla train` does, in three lines; and its card, which loads no policy a second time."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from kivla import KIVLAForActionPrediction, KIVLATrainingArguments
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.training.plan import format_plan
from kivla.training.run import make_trainer as make_trainer_of_run
from kivla.training.run import train
from kivla.training.run_options import DataArguments, ModelArguments
from kivla.training.training_facts import chunks_to_show
from tests.helpers.policies import CHUNK, DATASET, dataset, make_trainer

EXPERT = {"expert_hidden_size": 32, "expert_intermediate_size": 64}


def test_three_lines_make_a_policy_with_its_card(tmp_path):
    save_tiny_vlm(tmp_path / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    model = ModelArguments(vlm=str(tmp_path / "vlm"), chunk_size=CHUNK, recipe="pi0", num_inference_steps=2, **EXPERT)
    data = DataArguments(dataset=[str(DATASET)], max_eval_frames=4)
    args = KIVLATrainingArguments(str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none")
    trainer, metrics = train(model, data, args)
    assert trainer.state.global_step == 1
    assert json.loads((tmp_path / "out" / "eval_results.json").read_text()) == pytest.approx(metrics, nan_ok=True)
    assert {"README.md", "chunks.png", "training.png", "config.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    facts = json.loads((tmp_path / "out" / "training_facts.json").read_text())
    assert facts["recipe"] == "pi0" and facts["command"] is None
    assert facts["example_text"] in dataset().tasks.values()


def test_a_camera_that_the_policy_calls_a_wrist_camera_is_one(tmp_path):
    save_tiny_vlm(tmp_path / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    model = ModelArguments(vlm=str(tmp_path / "vlm"), chunk_size=CHUNK, recipe="pi0", **EXPERT)
    data = DataArguments(dataset=[str(DATASET)], max_eval_frames=4, check_data=False, cameras=["left_wrist=corner2"])
    args = KIVLATrainingArguments(str(tmp_path / "out"), augment="robot", use_cpu=True, report_to="none")
    trainer, _ = make_trainer_of_run(model, data, args, model.stages[0])
    assert trainer.args.wrist_cameras == ["observation.images.corner2"]
    written = format_plan(trainer)
    assert "observation.images.corner2 not (on a wrist)" in written
    memory = r"memory +about [\d.]+ MB on (the CPU|each device) at the peak: weights [\d.]+ MB, gradients"
    assert re.search(memory, written)


def test_the_pictures_chunks_are_the_trainers_own(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, eval_num_steps=1)
    monkeypatch.setattr(KIVLAForActionPrediction, "from_pretrained", None)  # loading is an error
    chunks = chunks_to_show(trainer, dataset(), Path("nowhere"), num_frames=3)
    assert chunks["frames"] == [dataset()[i]["frame_index"] for i in (0, 90, len(dataset()) - 1)]
    assert chunks["predicted"].shape == (3, CHUNK, 4) and np.isfinite(chunks["predicted"]).all()
    np.testing.assert_array_equal(chunks["demonstrated"][0], dataset()[0]["actions"])
    assert np.isnan(chunks["demonstrated"][2, 1:]).all(), "steps past the end of the episode"

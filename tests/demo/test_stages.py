"""What demo and study share: stages that are done once, and training that goes on where it was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kivla import KIVLAForActionPrediction
from kivla.demo.stages import TabletopArguments, ask_policy, fine_tune, once, record, roll_out
from kivla.demo.tiny_vlm import make_tiny_vlm, train_tokenizer

TINY = TabletopArguments(
    num_demonstrations=10, expert_hidden_size=32, expert_intermediate_size=48, num_flow_samples=1, batch_size=4
)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    tokenizer = train_tokenizer(["touch the red star"] * 5)
    model, processor = make_tiny_vlm("llava", tokenizer, hidden_size=32, num_layers=1, num_vision_layers=1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demonstrations"
    assert record(folder, TINY)["episodes"] == 10
    return folder


@pytest.fixture(scope="module")
def policy(vlm, demonstrations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    fine_tune(vlm, demonstrations, folder, TINY, max_steps=4, save_steps=2, keep_all=True)
    return folder


def test_a_stage_is_done_once(tmp_path):
    calls = []

    def stage():
        calls.append(1)
        return {"value": 3}

    first = once(tmp_path / "a" / "stage.json", stage)
    assert first["value"] == 3 and first["minutes"] >= 0
    assert once(tmp_path / "a" / "stage.json", stage) == first
    assert len(calls) == 1


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        once(tmp_path / "stage.json", lambda: {"value": 1 / 0})
    assert not (tmp_path / "stage.json").exists()


@pytest.mark.slow
def test_training_goes_on_from_the_last_checkpoint(vlm, demonstrations, policy, tmp_path):
    (tmp_path / "checkpoint-2").symlink_to(policy / "checkpoint-2")
    (tmp_path / "_minutes.json").write_text('{"minutes": 7.0}')
    trained = fine_tune(vlm, demonstrations, tmp_path, TINY, max_steps=4, save_steps=2)
    assert 7 < trained["minutes"] < 14, "those of the process that was interrupted, too"
    assert trained["max_steps"] == 4 and "eval_action_mae" in trained["evaluation"]
    expected, found = load_file(policy / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_joint_training_differs_by_the_gradient_scale_alone(vlm, demonstrations, policy, tmp_path):
    joint = replace(TINY, recipe="joint")
    fine_tune(vlm, demonstrations, tmp_path, joint, max_steps=1)
    assert KIVLAForActionPrediction.from_pretrained(tmp_path).config.backbone_gradient_scale == 1.0


@pytest.mark.slow
def test_two_stages_are_one_run(vlm, demonstrations, tmp_path):
    trained = fine_tune(vlm, demonstrations, tmp_path, replace(TINY, recipe="pi0.5"), 9, save_steps=2, keep_all=True)
    assert [step for step, _ in trained["checkpoints"]] == [2, 4, 6], "7 steps of tokens, then 2 with the expert"
    assert all(Path(folder).is_dir() for _, folder in trained["checkpoints"])
    steps = [entry["step"] for entry in trained["log_history"] if "token_loss" in entry]
    assert steps == list(range(1, 10))
    flow = [entry["step"] for entry in trained["log_history"] if "flow_loss" in entry]
    assert flow == [8, 9]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["autoregressive", "pi0", "frozen"])
def test_other_recipes_train_and_act(vlm, demonstrations, tmp_path, recipe):
    fine_tune(vlm, demonstrations, tmp_path, replace(TINY, recipe=recipe), max_steps=1)
    result = roll_out(tmp_path, tmp_path / "rollouts", "touch", TINY, num_episodes=2, num_videos=0)
    assert result["success"]["episodes"] == 2


@pytest.mark.parametrize("name", ["touch_synonyms", "put_held_out_relations", "push_other_way", "touch_then_touch"])
def test_roll_outs_are_figures_and_pictures(policy, tmp_path, name):
    result = roll_out(policy, tmp_path, name, TINY, num_episodes=3, num_videos=2)
    json.dumps(result)
    assert result["success"]["episodes"] == result["swapped"]["original"]["episodes"] == 3
    assert result["phases"] and result["swapped"]["phases"]
    files = [
        result["media"]["contact_sheet"],
        result["media"]["phases"],
        *(video["file"] for video in result["media"]["videos"]),
    ]
    assert len(files) == 4 and all((tmp_path / file).stat().st_size > 0 for file in files)


def test_the_policy_answers_questions(policy):
    table = ask_policy(policy, num_scenes=3)["accuracy"]
    assert table["all"]["asked"] == 18

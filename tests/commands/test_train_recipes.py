"""`kivla train --recipe ...` on the real LeRobot sample with VLM data: trains, saves, reloads and acts."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from kivla import KIVLAForActionPrediction, KIVLAProcessor
from kivla.cli import main
from kivla.demo.tiny_vlm import save_tiny_vlm
from kivla.simulation import make_questions
from kivla.training.recipes import RECIPES
from tests.commands.test_commands import TINY
from tests.helpers.policies import DATASET, dataset

MAIN = ("insulated", "autoregressive", "pi0-fast", "pi0", "pi0.5", "joint", "frozen")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A VLM, and questions about pictures in a folder of `datasets`."""
    folder = tmp_path_factory.mktemp("sources")
    save_tiny_vlm(folder / "vlm", image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    make_questions(8, seed=0).save_to_disk(folder / "questions")
    return folder


def command(sources, output_dir, **options) -> list[str]:
    settings = {
        **TINY,
        "vlm": sources / "vlm",
        "dataset": DATASET,
        "vlm_dataset": sources / "questions",
        "output_dir": output_dir,
        "max_eval_frames": 6,
        "max_state_dim": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        **options,
    }
    if RECIPES.get(options.get("recipe", "insulated"), RECIPES["insulated"]).action_tokenizer != "fast":
        del settings["action_vocab_size"]  # there is no FAST to fit
    words = []
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return ["train", *words]


@pytest.mark.parametrize(
    "recipe", [name if name in MAIN else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_every_recipe_trains_saves_reloads_and_acts(sources, tmp_path, recipe, capsys):
    main(command(sources, tmp_path, recipe=recipe))
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    acts_by = "tokens" if recipe in ("autoregressive", "pi0-fast") else "flow"
    assert ("eval_train_flow_loss" in metrics) == (acts_by == "flow")
    assert ("eval_train_decoding_failures" in metrics) and metrics["eval_train_decoding_failures"] == 0
    assert np.isfinite(metrics["eval_train_action_mae"])
    assert {"before_vlm_answer_accuracy", "eval_vlm_answer_accuracy"} <= set(metrics)
    printed = capsys.readouterr().out
    assert "VLM data:" in printed
    assert ("is for evaluation only" in printed) == (not RECIPES[recipe].vlm_data)
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert history[0]["before_vlm_answer_accuracy"] == metrics["before_vlm_answer_accuracy"]
    assert "before fine-tuning" in (tmp_path / "README.md").read_text()

    pipe = pipeline("action-prediction", model=str(tmp_path))
    assert pipe.model.config.acts_by == acts_by
    frames = [{key: dataset()[i][key] for key in ("images", "text", "state")} for i in (0, 70)]
    results = pipe(frames, seed=0)
    again = pipeline("action-prediction", model=str(tmp_path))(frames, seed=0)
    for result, other in zip(results, again, strict=True):
        assert result["actions"].shape == (6, 4) and np.isfinite(result["actions"]).all()
        np.testing.assert_array_equal(result["actions"], other["actions"])


def test_json_beside_its_pictures(sources, tmp_path):
    """As LLaMA-Factory and LLaVA have it; trained on, evaluated on, and asked."""
    (tmp_path / "pictures").mkdir()
    rows = []
    for i, color in enumerate(("red", "blue")):
        Image.new("RGB", (32, 32), color).save(tmp_path / "pictures" / f"{i}.png")
        conversation = [{"from": "human", "value": "<image>\nWhat color?"}, {"from": "gpt", "value": color}]
        rows.append({"id": i, "image": f"{i}.png", "conversations": conversation})
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    given = {"vlm_dataset": tmp_path / "llava.json", "vlm_media_dir": tmp_path / "pictures"}
    main(command(sources, tmp_path / "policy", **given))
    assert json.loads((tmp_path / "policy" / "eval_results.json").read_text())["eval_vlm_token_loss"] > 0
    with pytest.raises(SystemExit, match=r"2 pictures are not in .*: 0.png \(row 0\), 1.png \(row 1\)"):
        main(command(sources, tmp_path / "other", vlm_dataset=tmp_path / "llava.json"))

    (tmp_path / "llava.json").replace(tmp_path / "pictures" / "llava.json")
    options = ["--num_frames", "3", "--num_steps", "2", "--output_dir", str(tmp_path / "evaluation")]
    questions = ["--vlm_dataset", str(tmp_path / "pictures")]
    main(["evaluate", str(tmp_path / "policy"), "--dataset", str(DATASET), *options, *questions])
    report = json.loads((tmp_path / "evaluation" / "evaluate.json").read_text())
    assert report["answers"]["num_questions"] == 2


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Held-out texts as JSON lines."""
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    words = ["Tea is a drink made of leaves.", "The moon turns around the earth.", "Iron rusts in wet air."]
    file.write_text("".join(f"{json.dumps({'body': text})}\n" for text in words))
    return file


def test_held_out_texts_are_predicted_before_at_every_evaluation_and_after(sources, texts, tmp_path, capsys):
    given = {"eval_text_dataset": texts, "eval_text_column": "body", "eval_strategy": "steps", "eval_steps": 1}
    main(command(sources, tmp_path / "policy", learning_rate=0.05, **given))
    metrics = json.loads((tmp_path / "policy" / "eval_results.json").read_text())
    before, after, change = (metrics[name] for name in ("before_text_nll", "eval_text_nll", "text_nll_difference"))
    assert change == pytest.approx(after - before) and abs(change) > 0.01, "two steps at a high rate change it"
    assert metrics["text_nll_difference_low"] < change < metrics["text_nll_difference_high"]
    history = json.loads((tmp_path / "policy" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_text_nll" in entry] == [1, 2]
    assert history[0]["before_text_nll"] == before
    assert f"Texts: {before:.3f} nats a token before, {after:.3f} after; difference {change:+.3f} (" in (
        capsys.readouterr().out
    )
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "3 held-out texts of `./texts.jsonl`" in card or "3 held-out texts of `texts.jsonl`" in card
    row = next(line for line in card.splitlines() if line.startswith("| difference on the same texts"))
    assert f"{change:+.3f}" in row

    # The same by the command that measures a policy, beside the VLM itself: without new tokens it predicts better.
    main(["evaluate", str(tmp_path / "policy"), "--text_dataset", str(texts), "--output_dir", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert report["texts"]["nll"]["mean"] == pytest.approx(after, rel=1e-5)


def test_a_run_that_goes_on_with_other_texts_says_so_at_once(sources, texts, tmp_path):
    main(command(sources, tmp_path / "policy", eval_text_dataset=texts))
    with pytest.raises(SystemExit, match="has 3 other texts than the 2 of --eval_text_dataset now"):
        main(command(sources, tmp_path / "policy", eval_text_dataset=texts, max_eval_frames=2))


def test_options_of_texts_without_texts(sources, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(command(sources, tmp_path, eval_text_column="body"))
    assert "--eval_text_column cannot apply: there is no --eval_text_dataset" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(command(sources, tmp_path, text_dataset="texts.jsonl", eval_text_dataset="texts.jsonl"))
    assert "are both texts.jsonl: texts that are learned do not tell what is kept" in capsys.readouterr().err


def test_a_frozen_vlm_answers_and_predicts_as_before(sources, texts, tmp_path):
    main(command(sources, tmp_path, recipe="frozen", eval_text_dataset=texts))
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    assert metrics["eval_vlm_token_loss"] == pytest.approx(metrics["before_vlm_token_loss"], rel=1e-6)
    assert metrics["text_nll_difference_low"] == metrics["text_nll_difference_high"] == 0
    before = KIVLAForActionPrediction.from_vlm(sources / "vlm", chunk_size=6).vlm.state_dict()
    after = KIVLAForActionPrediction.from_pretrained(tmp_path).vlm.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_the_second_stage_starts_from_the_first(sources, tmp_path, monkeypatch):
    """pi0.5: one command; and interrupted in the second stage, the same command goes on to the same weights."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = {"recipe": "pi0.5", "max_steps": 9, "save_steps": 1}
    main(command(sources, whole, **options))
    first = KIVLAForActionPrediction.from_pretrained(whole / "stage_1")
    assert first.config.acts_by == "tokens"
    state = json.loads((whole / "stage_1" / "trainer_state.json").read_text())
    assert state["max_steps"] == 7
    state = json.loads((whole / "trainer_state.json").read_text())
    assert state["max_steps"] == 2
    # An untrained expert in the first stage, and a backbone that starts where the first stage left it
    before = load_file(whole / "stage_1" / "model.safetensors")
    step = load_file(whole / "checkpoint-1" / "model.safetensors")
    moved = {name: (step[name] - before[name]).abs().max() for name in step}
    assert 0 < max(moved.values()) < 0.01, "the second stage does not start from the first one's weights"

    # What is there after an interrupt: the first stage, and a checkpoint of the second
    for name in ("stage_1", "checkpoint-1", "vlm_before.json"):
        copy = shutil.copytree if (whole / name).is_dir() else shutil.copy
        resumed.mkdir(exist_ok=True)
        copy(whole / name, resumed / name)
    main(command(sources, resumed, **options))
    expected, found = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_warm_up_learns_from_no_texts_and_the_stage_after_it_does(sources, texts, tmp_path, capsys):
    """In one folder, though the stages' data differ; other texts are another run's all the same."""
    options = {"recipe": "insulated-warmup", "max_steps": 4, "text_column": "body", "text_share": 0.5}
    main(command(sources, tmp_path / "policy", text_dataset=texts, **options))
    logged = json.loads((tmp_path / "policy" / "trainer_state.json").read_text())["log_history"]
    assert any("text_loss" in row for row in logged)
    in_warm_up = json.loads((tmp_path / "policy" / "stage_1" / "trainer_state.json").read_text())["log_history"]
    assert not any("text_loss" in row for row in in_warm_up)
    other = tmp_path / "other.jsonl"
    other.write_text(texts.read_text() * 2)
    with pytest.raises(SystemExit, match=r"is of another run, which differs in:\n.*sources"):
        main(command(sources, tmp_path / "policy", text_dataset=other, **options))
    robots = {"dataset": [DATASET, DATASET], "robots": ["sawyer", "twin"]}
    with pytest.raises(SystemExit, match=r"stage_1.* is of another run, which differs in:\n.*data"):
        main(command(sources, tmp_path / "policy", text_dataset=texts, **options, **robots))


def test_two_robots_and_vlm_data_in_one_policy(sources, tmp_path):
    options = {"dataset": [DATASET, DATASET], "robots": ["sawyer", "twin"], "dataset_weights": [2, 1]}
    main(command(sources, tmp_path, **options))
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    assert {"eval_train_sawyer_action_mae", "eval_train_twin_action_mae"} <= set(metrics)
    processor = KIVLAProcessor.from_pretrained(tmp_path)
    assert set(processor.robots) == {"sawyer", "twin"}
    pipe = pipeline("action-prediction", model=str(tmp_path))
    observation = {key: dataset()[0][key] for key in ("images", "text", "state")}
    assert pipe({**observation, "robot": "twin"}, seed=0)["actions"].shape == (6, 4)
    options = ["--dataset", str(DATASET), "--num_frames", "3", "--output_dir", str(tmp_path / "evaluation")]
    main(["evaluate", str(tmp_path), *options, "--robot", "twin"])
    with pytest.raises(SystemExit, match=r"has the robots \['sawyer', 'twin'\], got robot=None"):
        main(["evaluate", str(tmp_path), *options])


def test_lora_leaves_a_whole_policy_and_its_updates(sources, tmp_path):
    main(command(sources, tmp_path, lora_rank=4, save_steps=1))
    whole = KIVLAForActionPrediction.from_pretrained(tmp_path).eval()
    start = KIVLAForActionPrediction.from_vlm(
        sources / "vlm", expert_config=whole.config.expert_config, chunk_size=6, max_action_dim=4, max_state_dim=4
    )
    start.resize_token_embeddings(whole.get_input_embeddings().num_embeddings)
    changed = {n for n, p in start.vlm.named_parameters() if not torch.equal(p, whole.vlm.state_dict()[n])}
    assert changed and not any("vision" in name for name in changed)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    observation = {key: dataset()[0][key] for key in ("images", "text", "state")}
    assert pipeline("action-prediction", model=str(tmp_path))(observation)["actions"].shape == (6, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "pi1"}, "There is no recipe 'pi1'"),
        ({"recipe": "frozen", "lora_rank": 4}, "Recipe frozen freezes the VLM: leave out --lora_rank"),
        ({"dataset": [DATASET, DATASET]}, "2 datasets need --robots"),
        ({"robots": ["a", "b"]}, "--robots has 2 entries for 1 datasets"),
        ({"vlm_share": 1.5}, "--vlm_share must lie between 0 and 1"),
        ({"max_steps": -1}, "give --max_steps"),
        ({"resume_from_checkpoint": "true"}, "it names a checkpoint's folder, and there is none"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_a_line(sources, tmp_path, options, message, capsys):
    """As of an option that does not exist: exit status 2, and no traceback."""
    with pytest.raises(SystemExit) as error:
        main(command(sources, tmp_path, **options))
    assert error.value.code == 2
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith("kivla train: ") and message in printed


def test_what_does_not_fit_is_said_before_training(sources, tmp_path):
    options = {"recipe": "pi0-fast", "action_tokenizer": "none", "action_vocab_size": None}
    with pytest.raises(SystemExit, match="There is nothing to train"):
        main(command(sources, tmp_path, **options))

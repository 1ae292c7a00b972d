"""`kivla pretrain-tiny`: what is learned from, and that the command leaves a VLM, also after an interrupt."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from kivla.cli import main
from kivla.demo.pretraining import ConversationCollator
from kivla.demo.tiny_vlm import make_tiny_vlm, train_tokenizer
from kivla.simulation import make_questions
from kivla.simulation.tabletop.answers import answer_accuracy
from kivla.training.evaluation.vlm_answers import ask

SIZES = ["--hidden_size", "32", "--num_layers", "1", "--num_vision_layers", "1"]
SMALL = [*SIZES, "--num_scenes", "40", "--batch_size", "8", "--save_steps", "2", "--num_eval_scenes", "5"]


@pytest.mark.parametrize("architecture", ["llava", "paligemma"])
def test_labels_are_what_the_assistant_says(architecture):
    rows = make_questions(4, seed=0, multi_turn=True, questions_per_scene=3)
    texts = [item["text"] for row in rows for m in row["messages"] for item in m["content"] if item["text"]]
    _, processor = make_tiny_vlm(architecture, train_tokenizer(texts * 5), hidden_size=32, num_layers=1)
    batch = ConversationCollator(processor)(list(rows))
    for tokens, labels, row in zip(batch["input_ids"], batch["labels"], rows, strict=True):
        answers = [message["content"][0]["text"] for message in row["messages"][1::2]]
        if architecture == "paligemma":  # no chat: the first question alone
            answers = answers[:1]
        learned = labels != -100
        assert torch.equal(labels[learned], tokens[learned])
        assert processor.tokenizer.decode(labels[learned]) == "".join(f"{answer}<eos>" for answer in answers)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    main(["pretrain-tiny", str(folder), *SMALL, "--max_steps", "4"])
    return folder


def test_the_command_leaves_a_vlm_with_its_accuracy(pretrained):
    model = AutoModelForImageTextToText.from_pretrained(pretrained / "vlm", dtype="float32")
    weights = load_file(pretrained / "vlm" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    report = json.loads((pretrained / "vlm" / "accuracy.json").read_text())
    questions = make_questions(5, 1_000_000)
    processor = AutoProcessor.from_pretrained(pretrained / "vlm")
    assert report["accuracy"] == answer_accuracy(questions, ask(model, processor, questions))
    assert report["max_steps"] == 4


def test_an_interrupted_run_ends_like_an_undisturbed_one(pretrained, tmp_path):
    (tmp_path / "checkpoint-2").symlink_to(pretrained / "checkpoint-2")  # all that was left
    shutil.copy(pretrained / "arguments.json", tmp_path)
    main(["pretrain-tiny", str(tmp_path), *SMALL, "--max_steps", "4"])
    expected = load_file(pretrained / "vlm" / "model.safetensors")
    found = load_file(tmp_path / "vlm" / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)

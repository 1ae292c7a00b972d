"""`kivla teach-vlm`: what is learned from, what stays as it was, and that an interrupted run goes on."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from kivla.cli import main
from kivla.demo.teaching import LessonCollator
from kivla.demo.word_alignment import WORDS, align_words, what_patches_show
from kivla.named_models import TABLETOP_VLM
from kivla.simulation import make_questions
from kivla.simulation.tabletop.answers import answer_accuracy
from kivla.simulation.tabletop.scenes import Scene
from kivla.training.evaluation.vlm_answers import ask

TEXTS = ["The red star is on the table, and nothing else.", "A robot looks at the green circle."]
SMALL = ["--vlm", str(TABLETOP_VLM), "--num_scenes", "20", "--alignment_steps", "2", "--max_steps", "4"]
SMALL += ["--save_steps", "2", "--num_eval_scenes", "3", "--learning_rate", "0.1"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return ["--text_dataset", str(file)]


@pytest.fixture(scope="module")
def taught(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("taught")
    main(["teach-vlm", str(folder), *SMALL, *texts])
    return folder


def test_an_ordinary_vlm_is_left(taught):
    """The language model and the projector have learned; the tower and the embeddings are as they were."""
    before, after = load_file(TABLETOP_VLM / "model.safetensors"), load_file(taught / "vlm" / "model.safetensors")
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if ("layers" in n and "proj" in n and "language" in n) or "projector" in n}
    report = json.loads((taught / "vlm" / "accuracy.json").read_text())
    vlm = AutoModelForImageTextToText.from_pretrained(taught / "vlm", dtype="float32")
    questions = make_questions(3, 1_000_000, kinds=report["kinds"])
    answers = ask(vlm, AutoProcessor.from_pretrained(taught / "vlm"), questions)
    assert report["accuracy"] == answer_accuracy(questions, answers)


def test_the_updates_alone_make_the_same_vlm(taught):
    """A few megabytes to keep, beside a VLM of gigabytes that anybody can get."""
    vlm = AutoModelForImageTextToText.from_pretrained(TABLETOP_VLM, dtype=torch.float32)
    merged = PeftModel.from_pretrained(vlm, taught / "updates").merge_and_unload().bfloat16().state_dict()
    expected = AutoModelForImageTextToText.from_pretrained(taught / "vlm", dtype=torch.bfloat16).state_dict()
    assert merged.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name], weight, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert {tensor.dtype for tensor in load_file(taught / "updates" / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }


def test_mixed_precision_learns_in_float32_weights(texts, tmp_path):
    main(["teach-vlm", str(tmp_path), *SMALL, *texts, "--bf16"])
    assert json.loads((tmp_path / "vlm" / "accuracy.json").read_text())["bf16"] is True


def test_an_interrupted_run_ends_like_an_undisturbed_one(taught, texts, tmp_path):
    for name in ("checkpoint-2", "aligned"):
        (tmp_path / name).symlink_to(taught / name)
    shutil.copy(taught / "arguments.json", tmp_path)
    main(["teach-vlm", str(tmp_path), *SMALL, *texts])
    expected, found = (load_file(folder / "vlm" / "model.safetensors") for folder in (taught, tmp_path))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_texts_are_learned_whole_and_of_conversations_the_answers():
    processor = AutoProcessor.from_pretrained(TABLETOP_VLM)
    rows = list(make_questions(2, seed=0, multi_turn=True, questions_per_scene=3))
    batch = LessonCollator(processor, text_length=6)([rows[0], {"text": TEXTS[0]}, rows[1]])
    assert batch["is_text"].tolist() == [False, False, True] and len(batch["pixel_values"]) == 2
    learned = [processor.tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
    for said, row in zip(learned, rows, strict=False):
        assert said == "".join(f"{message['content'][0]['text']}<eos>" for message in row["messages"][1::2])
    assert (batch["labels"][2] != -100).sum() == 6 and TEXTS[0].startswith(learned[2])
    assert torch.equal(batch["labels"][2] != -100, batch["attention_mask"][2].bool())


def test_words_of_patches():
    scene = Scene(
        colors=np.array([0, 2]),
        shapes=np.array([3, 0]),
        positions=np.array([[-0.8, 0.85], [0.1, -0.1]]),
        gripper=np.array([0.85, -0.8]),
        closed=np.array(False),
        held=np.array(-1),
    )
    shows, counts = what_patches_show(scene, grid=6)
    words = [{WORDS[i] for i in np.flatnonzero(row)} for row in shows]
    assert words[0] == {"red", "star", "top", "left"}
    assert words[3 * 6 + 3] == {"blue", "circle", "center"}
    assert words[5 * 6 + 5] == {"gripper", "bottom", "right"}
    assert words[5] == set() and counts[5].all(), "a bare patch has no words"
    assert words[1] == set() and not counts[1].any(), "a neighbour may show a part of the star"


def test_a_new_projector_learns_the_words():
    vlm = AutoModelForImageTextToText.from_pretrained(TABLETOP_VLM, dtype="float32")
    processor = AutoProcessor.from_pretrained(TABLETOP_VLM)
    torch.manual_seed(0)
    for layer in (vlm.model.multi_modal_projector.linear_1, vlm.model.multi_modal_projector.linear_2):
        layer.reset_parameters()
    share = align_words(vlm, processor, num_scenes=60, num_steps=40)
    assert share > 0.6, "colours are hardly nearer than by chance, 0.125"

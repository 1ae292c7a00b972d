"""Text NLL is the library's own loss, text by text; a policy before training has its VLM's; intervals are paired."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from kivla import KIVLAForActionPrediction
from kivla.training.evaluation.text_nll import (
    HeldOutTexts,
    TextScores,
    format_texts,
    summarize_texts,
    text_inputs,
    text_nll,
    text_tokens,
)
from tests.helpers.families import FAMILIES, TEXT_IDS, build_model, each_family
from tests.helpers.policies import make_policy, make_trainer

TEXTS = ["Tea is a drink made of leaves.", "x", "The moon turns around the earth once a month.", "Iron rusts."]


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    make_policy(folder)
    return folder


@pytest.fixture(scope="module")
def vlm(vlm_folder):
    """Random, and no two tokens are alike to it: an untrained one is certain of nothing."""
    model = AutoModelForImageTextToText.from_pretrained(vlm_folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.model.language_model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def tokenizer(vlm_folder):
    return AutoProcessor.from_pretrained(vlm_folder).tokenizer


@torch.no_grad()
def test_it_is_the_librarys_loss(vlm, tokenizer):
    scores = text_nll(vlm, tokenizer, TEXTS, text_length=20, batch_size=3)
    for i, text in enumerate(TEXTS):
        tokens = torch.tensor([tokenizer(text)["input_ids"][:20]])
        assert scores.tokens[i] == tokens.shape[1] - 1
        if scores.tokens[i]:
            types = torch.ones_like(tokens)  # PaliGemma computes a loss on what is marked as answer
            loss = vlm(input_ids=tokens, labels=tokens, token_type_ids=types).loss
            assert scores.nll[i] == pytest.approx(float(loss) * scores.tokens[i], rel=1e-5)
    assert scores.tokens[1] == scores.nll[1] == 0, "of one token nothing is predicted"
    assert scores.mean == pytest.approx(scores.nll.sum() / scores.tokens.sum())
    assert not scores.action_nll.any(), "a VLM has no action tokens"


def test_a_policy_is_its_vlm_but_for_the_action_tokens(vlm, vlm_folder, tokenizer, tmp_path):
    _, processor = make_policy(tmp_path)
    vlm.save_pretrained(tmp_path)
    policy = KIVLAForActionPrediction.from_vlm(tmp_path, expert_config={"hidden_size": 32}, chunk_size=6).train()
    before = text_nll(vlm, tokenizer, TEXTS)
    np.testing.assert_allclose(text_nll(policy, tokenizer, TEXTS).nll, before.nll, rtol=1e-5)
    assert policy.training and policy.vlm.training, "training goes on as before"
    policy.resize_token_embeddings(processor.vocab_size)
    actions = processor.action_token_ids
    scores = text_nll(policy, processor.tokenizer, TEXTS, action_token_ids=actions)
    np.testing.assert_array_equal(scores.tokens, before.tokens)
    assert (scores.action_nll[before.tokens > 0] > 0.01).all(), "new rows take some probability"
    np.testing.assert_allclose(scores.nll - scores.action_nll, before.nll, rtol=1e-4)


def test_behind_a_start_token_the_first_word_is_predicted_too(vlm, tokenizer):
    """PaliGemma's tokenizer writes none, but its processor does."""
    start = [tokenizer.bos_token_id]
    scores = text_nll(vlm, tokenizer, TEXTS, text_length=20, start=start)
    for i, text in enumerate(TEXTS):
        tokens = [*start, *tokenizer(text)["input_ids"]][:20]
        assert scores.tokens[i] == len(tokens) - 1
    bare = text_nll(vlm, tokenizer, TEXTS, text_length=20, start=[])
    np.testing.assert_array_equal(bare.nll, text_nll(vlm, tokenizer, TEXTS, text_length=20).nll)


def test_what_is_measured_are_the_tokens_that_replay_trains_on(tmp_path):
    _, processor = make_policy(tmp_path)
    expected = [processor.document_tokens(text)[:20] for text in TEXTS]
    assert text_tokens(processor.tokenizer, TEXTS, 20, processor.document_start) == expected


def test_control_tokens_in_a_text_are_words(vlm, tokenizer):
    """No picture is looked for, and the text does not end."""
    (tokens,) = text_nll(vlm, tokenizer, ["ab<image><eos>"]).tokens
    assert tokens == len("ab<image><eos>") - 1, "one token a letter"


@each_family
def test_no_family_looks_ahead(name):
    """PaliGemma reads prompts in both directions: then it would see the very word that it predicts."""
    model = build_model(FAMILIES[name])
    texts = torch.tensor([TEXT_IDS[:12], [*TEXT_IDS[:8], *TEXT_IDS[20:24]]])  # alike up to the eighth
    logits = model(**text_inputs(model, texts, torch.ones_like(texts))).logits
    torch.testing.assert_close(logits[0, :8], logits[1, :8])


def scores_of(nll, tokens) -> TextScores:
    nll = np.asarray(nll, np.float64)
    return TextScores(nll, 0 * nll, np.asarray(tokens))


def test_the_difference_is_paired():
    """Texts differ much from one another, and the models by the same little on each."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(20, 200, 100)
    before = tokens * draw.uniform(1, 6, 100)
    report = summarize_texts(scores_of(before + 0.1 * tokens, tokens), scores_of(before, tokens))
    assert report["nll"]["mean"] == pytest.approx(report["before"]["mean"] + 0.1)
    assert report["nll"]["high"] - report["nll"]["low"] > 0.3
    assert report["difference"]["low"] == pytest.approx(0.1) == report["difference"]["high"]
    assert json.loads(json.dumps(report)) == report
    assert "difference on the same texts: 0.1000 (0.1000 to 0.1000)" in format_texts(report)


def test_other_texts_are_not_compared():
    with pytest.raises(ValueError, match="not asked for the same tokens: 30 of 2 texts, and 31 of 2"):
        summarize_texts(scores_of([1, 2], [10, 20]), scores_of([1, 2], [11, 20]))


def test_a_single_text_has_no_interval():
    with pytest.raises(ValueError, match="at least two measurements, got 1"):
        summarize_texts(scores_of([3, 0], [10, 0]))


def test_texts_of_a_set(tmp_path):
    rows = [{"text": text} for text in [*TEXTS, " \n"] * 20]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    texts = HeldOutTexts.load(tmp_path / "a.jsonl", num_texts=26, text_length=8)
    assert 15 < len(texts) < 26 and set(texts.texts) == set(TEXTS), "spread over the set; blank ones are left out"
    assert texts[0] == {"text": TEXTS[0]} and texts.name.endswith("a.jsonl") and texts.text_length == 8
    with pytest.raises(ValueError, match="Got 0 texts and text_length=8"):
        HeldOutTexts([], 8)
    (tmp_path / "b.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(ValueError, match="all 1 rows that were looked at are blank"):
        HeldOutTexts.load(tmp_path / "b.jsonl")


def test_the_trainer_reads_texts_among_its_evaluation_sets(tmp_path):
    trainer = make_trainer(tmp_path)
    texts = HeldOutTexts(TEXTS, text_length=20)
    metrics = trainer.evaluate({"text": texts, "other": HeldOutTexts(TEXTS[:1], text_length=20)})
    policy, processor = trainer.model, trainer.processing_class
    options = {"action_token_ids": processor.action_token_ids, "start": processor.document_start}
    scores = text_nll(policy, processor.tokenizer, TEXTS, 20, **options)
    assert metrics["eval_text_nll"] == pytest.approx(scores.mean, rel=1e-5)
    assert metrics["eval_other_nll"] == pytest.approx(scores.nll[0] / scores.tokens[0], rel=1e-5)
    np.testing.assert_allclose(trainer.text_scores["eval_text"].nll, scores.nll, rtol=1e-5)
    np.testing.assert_allclose(trainer.predict(texts).predictions, scores.nll, rtol=1e-5)

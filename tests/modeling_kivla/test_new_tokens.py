"""Action tokens can be learned: their ids work in forward, gradients, saving, loading and `generate`."""

import inspect
import logging
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import transformers.modeling_utils
from transformers import AutoConfig, GenerationConfig, LogitsProcessor

from kivla import BinningActionTokenizer, KIVLAForActionPrediction, KIVLATrainer, KIVLATrainingArguments
from kivla.modeling_kivla.token_ids import check_new_tokens, without_advice_on_new_rows
from tests.helpers.families import (
    FAMILIES,
    PER_TOKEN_PADDING,
    TEXT_IDS,
    VOCAB_SIZE,
    drop_suffix,
    each_family,
    make_example,
)
from tests.helpers.families.broken import WITHOUT_NEW_TOKENS
from tests.helpers.tolerance import assert_close_relative
from tests.modeling_kivla.test_contract import policy, training_batch
from tests.processing.test_processing_kivla import CHUNK, LONG, QUESTION, WIDTH, columns, make
from tests.processing.test_processing_kivla import policy as policy_of_kind

NEW = 60
# Every id from here on belongs to another table than that of the text, or is never said
TAKEN = {"gemma3n": 200, "inkling2": 240, "inkling2_loop": 240}
RELEASED_TAKEN = {"gemma3n": 262144, "inkling2": 200058, "inkling2_loop": 200058}


@cache
def with_new_tokens(name: str) -> tuple[KIVLAForActionPrediction, torch.Tensor]:
    """A policy that can learn action tokens, and their ids: new ones, or the last of the text where none can be."""
    model = policy(name)
    if name in TAKEN:
        return model, torch.arange(TEXT_IDS.stop - NEW, TEXT_IDS.stop)
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows + NEW, pad_to_multiple_of=64)
    return model, torch.arange(rows, rows + NEW)


def batch_of(name: str, ids: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """A training batch whose suffix is action tokens, and which they are."""
    batch = training_batch(name)
    suffix = batch["labels"] != -100
    tokens = ids[torch.arange(int(suffix.sum())) % NEW]
    batch["input_ids"][suffix] = tokens
    batch["labels"] = batch["input_ids"].masked_fill(~suffix, -100)
    return batch, tokens


@each_family
def test_they_are_read_and_learned(name):
    model, ids = with_new_tokens(name)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert layer.weight.shape[0] > ids.max(), "a layer has no row for them"
    batch, tokens = batch_of(name, ids)
    model.zero_grad()
    out = model(**batch)
    assert len(out.logits) == len(tokens) and out.logits.shape[1] > ids.max()
    out.token_loss.backward()
    written = model.get_output_embeddings().weight.grad[tokens].abs().sum(-1)
    assert written.all(), "output rows that learn nothing"
    is_last = batch["labels"][:, 1:].eq(-100).logical_and(batch["labels"][:, :-1].ne(-100))
    read = batch["input_ids"][:, :-1][batch["labels"][:, :-1].ne(-100) & ~is_last]
    assert model.get_input_embeddings().weight.grad[read].abs().sum(-1).all(), "embedding rows that learn nothing"
    model.zero_grad()

    with torch.no_grad():
        other = {**batch, "input_ids": batch["input_ids"].clone()}
        other["input_ids"][batch["labels"] != -100] = tokens.flip(0)
        assert not torch.equal(model(**other).logits, out.logits), "the VLM takes them all for the same"


@each_family
def test_they_are_saved(name, tmp_path):
    model, ids = with_new_tokens(name)
    batch, _ = batch_of(name, ids)
    model.save_pretrained(tmp_path)
    loaded, info = KIVLAForActionPrediction.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    found = loaded.state_dict()
    different = [n for n, weight in model.state_dict().items() if not torch.equal(weight, found[n])]
    assert not different, f"{len(different)} weights differ: {different[:5]}"
    tied = [m.get_input_embeddings().weight is m.get_output_embeddings().weight for m in (model, loaded, policy(name))]
    assert len(set(tied)) == 1, "tie lost"
    with torch.no_grad():
        assert_close_relative(loaded(**batch).logits, model(**batch).logits, what="logits")


class Only(LogitsProcessor):
    """Lets nothing be said but some tokens."""

    def __init__(self, ids: torch.Tensor):
        self.ids = ids

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_copy_(1, self.ids, scores[:, self.ids])


@each_family
def test_they_are_said(name):
    """And what is said next depends on what was said: step by step as in the whole sequence."""
    model, ids = with_new_tokens(name)
    example = drop_suffix(make_example(FAMILIES[name]))
    example.pop("expert_attention_mask")
    length = example["input_ids"].shape[1]
    config = GenerationConfig(max_new_tokens=4, do_sample=False)
    said = model._generate_with(config, example, [Only(ids)])[0, -4:]
    assert torch.isin(said, ids).all()
    whole = {n: F.pad(t, (0, 4)) if n in PER_TOKEN_PADDING else t for n, t in example.items()}
    whole["input_ids"][:, length:] = said
    for key in ("attention_mask", *(n for n, marked in FAMILIES[name].token_types.items() if marked == "suffix")):
        whole[key][:, length:] = 1
    with torch.no_grad():
        logits = model.vlm(**whole).logits[0, -5:-1]
    assert torch.equal(ids[logits[:, ids].argmax(-1)], said)


# ------------------------------------------------------------------------------------------------- ids that are taken
@pytest.mark.parametrize("name", [name for name in TAKEN if name in FAMILIES])
def test_where_new_ids_are_taken_they_are_refused_before_training(name):
    model = policy(name)
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows)  # no new ones
    with pytest.raises(ValueError, match=rf"id {rows}, but '{name}' takes every id from {TAKEN[name]} on .*\"tail\""):
        model.resize_token_embeddings(rows + NEW, pad_to_multiple_of=64)
    assert model.get_input_embeddings().weight.shape[0] == rows
    config = model.config.vlm_config
    check_new_tokens(config, range(TAKEN[name]))
    with pytest.raises(ValueError, match=f"id {TAKEN[name]}, "):
        check_new_tokens(config, [5, TAKEN[name]])


def test_an_output_layer_that_ends_before_the_vocabulary_says_no_new_tokens():
    """Apertus 1.5 may leave out the rows of pictures and sound (`output_vocab_size`)."""
    config = FAMILIES["llava"].config()
    config.text_config.output_vocab_size = 200
    check_new_tokens(config, range(200))
    with pytest.raises(ValueError, match="takes every id from 200 on"):
        check_new_tokens(config, [256])


def test_the_families_without_new_tokens_are_those_of_the_documentation():
    assert TAKEN.keys() == WITHOUT_NEW_TOKENS.keys()


def test_only_the_librarys_advice_on_new_rows_is_left_out():
    logger, said = logging.getLogger("transformers.modeling_utils"), []
    level = logger.level
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # other tests quieten the library
    try:
        with without_advice_on_new_rows():
            logger.warning("As described in this article. To disable this, use `mean_resizing=False`")
            logger.warning("another message")
        logger.warning("use `mean_resizing=False` is said again")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert said == ["another message", "use `mean_resizing=False` is said again"]
    assert "use `mean_resizing=False`" in inspect.getsource(transformers.modeling_utils), (
        "the library says it otherwise"
    )


def test_the_table_is_complete():
    """Released models, as their configurations have them."""
    for name, family in FAMILIES.items():
        config = AutoConfig.for_model(family.settings["model_type"])
        size = config.get_text_config().vocab_size
        if name in TAKEN:
            with pytest.raises(ValueError, match=f"takes every id from {RELEASED_TAKEN[name]} on"):
                check_new_tokens(config, [size])
        else:
            check_new_tokens(config, [size, VOCAB_SIZE, 10**6])


def test_the_trainer_refuses_action_tokens_in_the_range_of_others(tmp_path, monkeypatch):
    """Even where the embedding has rows for them, and nothing would crash."""
    model, processor = policy_of_kind("paligemma"), make(action_tokenizer=BinningActionTokenizer(8))
    arguments = KIVLATrainingArguments(tmp_path, report_to="none", use_cpu=True)
    vision = model.config.vlm_config.vision_config
    monkeypatch.setattr(vision, "vocab_offset", int(processor.action_token_ids[3]), raising=False)
    with pytest.raises(ValueError, match=f"would get the id {processor.action_token_ids[3]}, but 'paligemma' takes"):
        KIVLATrainer(model, arguments, train_dataset=[LONG], processing_class=processor)


def test_acting_by_tokens_over_existing_ids():
    """What the refusal tells people to do."""
    processor = make("gemma4", action_token_placement="tail", action_token_skip=0)
    model = policy_of_kind("gemma4")
    batch = processor(**columns(LONG, QUESTION))
    assert torch.isfinite(model(**batch).loss)
    chunks = model.generate_actions(
        processor, **processor(**columns({k: LONG[k] for k in ("images", "text", "state")}))
    )
    assert chunks[0].shape == (CHUNK, WIDTH)

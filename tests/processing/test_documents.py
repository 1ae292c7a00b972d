"""Plain text among robot data: learned as language models are pretrained, whatever the VLM's chat format."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from kivla.processing.sequences import are_documents
from tests.helpers.tolerance import assert_close_relative
from tests.helpers.vlm_processors import each_kind
from tests.processing.test_processing_kivla import (
    LONG,
    QUESTION,
    SHORT,
    WITHOUT_IMAGES,
    columns,
    make,
    policy,
    real,
    shared,
)

TEXT = "The cup is a vessel.\nIt holds tea, and often coffee."


def with_documents(processor, *examples) -> dict:
    """The processor's arguments for examples, and for every string a document."""
    rows = [{"document": processor.document_tokens(e)} if isinstance(e, str) else e for e in examples]
    return columns(*rows) | {"document": [row.get("document") for row in rows]}


@each_kind
def test_a_document_is_its_tokens_and_all_are_learned(name):
    processor = shared(name)
    tokenizer = processor.tokenizer
    words = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    batch = processor(**with_documents(processor, LONG, TEXT, QUESTION))
    ids = real(batch, "input_ids", 1)
    assert ids[-len(words) :] == words and "".join(tokenizer.decode(words).split()) == "".join(TEXT.split())
    start = ids[: -len(words)]
    assert start in ([], [tokenizer.bos_token_id]), "no prompt, no chat format"
    assert real(batch, "labels", 1) == ids
    assert are_documents(batch["labels"]).tolist() == [False, True, False]
    assert not batch["action_mask"][1].any(), "the expert does not act on it"
    assert tokenizer("x")["input_ids"][0] != tokenizer.bos_token_id or start, "its tokenizer writes a start"


@each_kind
def test_a_document_among_others_changes_none_of_them(name):
    """Nor do they change it; pictures stay with those that have them, and a batch may be documents alone."""
    processor, model = shared(name), policy(name)
    alone = processor(**with_documents(processor, LONG, QUESTION, WITHOUT_IMAGES))
    mixed = processor(**with_documents(processor, TEXT, LONG, QUESTION, TEXT, WITHOUT_IMAGES))
    for key in ("input_ids", "labels", "expert_attention_mask"):
        for i, j in enumerate((1, 2, 4)):
            assert real(mixed, key, j) == real(alone, key, i), key
    documents = processor(**with_documents(processor, TEXT))
    with torch.no_grad():
        logits = model(**mixed).logits
        (of_document,) = (model(**documents).logits,)
    n = len(of_document)
    assert_close_relative(logits[:n], of_document, roundings=64, what="logits of the document")


@each_kind
def test_the_loss_of_a_document_is_that_of_the_library(name):
    processor, model = shared(name), policy(name)
    batch = processor(**with_documents(processor, TEXT))
    ours = model(**batch)
    given = {n: v for n, v in batch.items() if n not in ("labels", "expert_attention_mask")}
    with torch.no_grad():
        logits = model.vlm(**given).logits
    expected = cross_entropy(logits[0, :-1].float(), batch["input_ids"][0, 1:])
    assert_close_relative(ours.token_loss, expected, roundings=64, what="loss")


def test_control_tokens_in_a_document_are_words():
    processor = make("qwen2_vl")
    tokenizer = processor.tokenizer
    control = tokenizer.eos_token_id
    ids = processor.document_tokens(f"a{tokenizer.eos_token}b{processor.vlm_processor.image_token}c<action_3>")
    assert control not in ids and not set(processor.action_token_ids.tolist()) & set(ids)
    assert processor.vlm_processor.image_token_id not in ids
    assert tokenizer.decode(ids).endswith("c<action_3>")


def test_prompts_and_answers_of_a_batch_with_documents():
    processor = make("qwen2_vl")
    batch = processor(**with_documents(processor, SHORT, TEXT))
    prompts = processor.prompts_of(batch)
    assert prompts["attention_mask"].sum(1).tolist() == [processor.prompt_lengths(batch)[0], 1]
    assert processor.has_response_before_actions(batch["labels"]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            {"document": [5], "text": "what?"},
            "Example 0: there is a `document`, which is learned alone, and beside it text",
        ),
        ({"document": "some words"}, r"Example 0: `document` has the tokens of a plain text.*document_tokens"),
        ({"document": []}, "`document` has the tokens"),
    ],
)
def test_what_is_no_document_is_refused(example, message):
    with pytest.raises(ValueError, match=message):
        make()(**columns(example) | {"document": [example["document"]]})
    with pytest.raises(ValueError, match="a text with words in it"):
        make().document_tokens("  ")

"""Control tokens in what people write: words for the VLM, and never what they stand for elsewhere."""

import copy
import logging

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from kivla.processing import BinningActionTokenizer, KIVLAProcessor
from kivla.processing.chat_format import has_chat
from kivla.processing.plain_words import PlainWords, control_tokens
from tests.helpers.vlm_processors import each_kind
from tests.processing.test_processing_kivla import (
    LONG,
    NORMALIZED,
    QUESTION,
    columns,
    image,
    make,
    observation,
    real,
    shared,
    vlm_processor,
)

PLAIN = [
    "pick up the cup",
    "<",
    "a < b > c",
    "<|",
    "eos",
    "[INST",
    "TIL E",
    "naïve 日本\n\tx",
    "<action_>",
    "</s",
    "``",
]


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def control(processor: KIVLAProcessor) -> list[str]:
    """Every added token that is no word of the VLM and no image."""
    loc = [f"<loc{i:04}>" for i in range(1024)] + [f"<seg{i:03}>" for i in range(128)]
    added = {token.content for token in processor.tokenizer.added_tokens_decoder.values()}
    new = {"<action_0>", "<action_7>"} if processor.action_token_placement == "added" else set()
    assert added > {"<eos>", "<bos>", "<pad>"} | new
    return sorted(added - {*loc} - processor.sequences.placeholders)


@each_kind
def test_no_control_token_comes_out_of_words(name):
    """Every one of them, in everything that people write: the ids around it stay, and its characters come through."""
    processor = make(name, action_tokenizer=BinningActionTokenizer(8))
    tokenizer, tokens = processor.tokenizer, control(processor)
    steering = set(tokenizer.convert_tokens_to_ids(tokens))
    examples = {
        "instruction": lambda words: columns(LONG | {"text": words}),
        "response before actions": lambda words: columns(LONG | {"response": words}),
        "question": lambda words: columns(QUESTION | {"text": words}),
        "answer": lambda words: columns(QUESTION | {"response": words}),
        "given response": lambda words: {**columns(observation(LONG)), "given_response": [words]},
    }
    if has_chat(processor.vlm_processor):
        turns = {"text": ["Hi?", "And?"], "response": ["a", "b"]}
        examples["next question"] = lambda words: columns(QUESTION | turns | {"text": ["Hi?", words]})
    for where, example in examples.items():
        expected = [token for token in real(processor(**example("see x it")), "input_ids") if token in steering]
        for token in tokens:
            words = token.replace("_", " ") if where == "instruction" else token
            batch = processor(**example(f"see {token} it"))
            ids = real(batch, "input_ids")
            assert [i for i in ids if i in steering] == expected, f"{token!r} in the {where} became a control token"
            assert f"see {words} it" in tokenizer.decode(ids), f"{token!r} in the {where} does not come through"
            for key in batch.keys() & {"labels", "expert_attention_mask", "token_type_ids", "mm_token_type_ids"}:
                assert batch[key].shape == batch["input_ids"].shape, key
    twice = "<eos><eos> <<eos>eos> <action_1><action_1"
    assert twice in tokenizer.decode(real(processor(**columns(QUESTION | {"response": twice})), "input_ids"))


@each_kind
def test_other_words_are_tokenised_as_they_were(name):
    processor = shared(name)
    for words in PLAIN:
        assert processor.sequences.words.plain(words, "text") == words
        labels = processor(**columns(QUESTION | {"response": words}))["labels"][0]
        learned = processor.tokenizer.decode(labels[labels != -100])
        assert words in learned


def test_tokens_that_are_words_of_the_vlm_stay():
    """PaliGemma answers with `<loc0123>`, and says so to people."""
    processor = shared("paligemma")
    labels = processor(**columns(QUESTION | {"response": "<loc0256><loc0007> cup"}))["labels"][0]
    expected = [
        *processor.tokenizer.convert_tokens_to_ids(["<loc0256>", "<loc0007>"]),
        *ids_of(processor.tokenizer, " cup"),
    ]
    assert labels[labels != -100].tolist() == [*expected, processor.end_token_id]


def test_labels_of_a_response_with_action_tokens_decode_to_the_chunk():
    processor = make(action_tokenizer=BinningActionTokenizer(64))
    chunk = processor.action_tokenizer.decode(processor.action_tokenizer.encode(NORMALIZED[:1]), 4, 3)[0]
    for response in ("first <action_3> then", "".join(f"<action_{i}>" for i in range(40))):
        batch = processor(**columns(LONG | {"response": response}))
        assert np.array_equal(processor.decode_actions(batch["labels"])[0], chunk)


def test_the_warning_comes_once(caplog):
    processor = make()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            processor(**columns(QUESTION | {"response": "the <eos> of it"}))
    assert [record.getMessage() for record in caplog.records if "plain text" in record.getMessage()] == [
        "`response` contains '<eos>', a control token: 'the <eos> of it'. The VLM gets it as plain text; this message "
        "is not repeated."
    ]


# ----------------------------------------------------------------------------------------------------- tokenizer kinds
SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>", "<|im_end|>"]


class CharacterTokenizer(PreTrainedTokenizer):
    """A slow tokenizer, in Python: one token for each character."""

    vocab_files_names = {}  # noqa: RUF012

    def __init__(self, **kwargs):
        self._letters = {chr(i): i - 32 for i in range(32, 127)}
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return 95

    def get_vocab(self) -> dict[str, int]:
        return {**self._letters, **self.added_tokens_encoder}

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return self._letters.get(token, self.unk_token_id)

    def _convert_id_to_token(self, index):
        return chr(index + 32)

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


def named(tokenizer_class, **kwargs):
    return tokenizer_class(pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", **kwargs)


def sentencepiece_like():
    """Llama's and Gemma's: characters, `▁` for a space, put in front of every text."""
    alphabet = ["▁", *map(chr, range(33, 127))]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return tokenizer


def unigram():
    """T5's and XGLM's: a lattice over the vocabulary, in which control tokens have scores, too."""
    vocabulary = [(token, 0.0) for token in SPECIAL] + [("▁", -2.0), *((chr(i), -3.0) for i in range(33, 127))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def words_alone():
    """BERT's kind: what it does not know is `<unk>`."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *map(chr, range(33, 127)), "##a", "##b"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def fast(tokenizer: Tokenizer, **kwargs):
    tokenizer.add_special_tokens(SPECIAL)
    return named(PreTrainedTokenizerFast, tokenizer_object=tokenizer, **kwargs)


TOKENIZERS = {
    "sentencepiece": lambda: fast(sentencepiece_like()),
    "unigram": lambda: fast(unigram()),
    "wordpiece": lambda: fast(words_alone()),
    "slow": lambda: named(CharacterTokenizer, additional_special_tokens=["<|im_end|>"]),
    "split": lambda: fast(sentencepiece_like(), split_special_tokens=True),
    "slow split": lambda: named(CharacterTokenizer, split_special_tokens=True),
    "byte level": lambda: copy.deepcopy(vlm_processor("qwen2_vl").tokenizer),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("with_actions", [True, False])
def test_tokenizers_of_every_kind(kind, with_actions):
    """Characters come through, and no control token does: or the words are refused by name."""
    tokenizer = TOKENIZERS[kind]()
    if with_actions:
        tokenizer.add_tokens([f"<action_{i}>" for i in range(4)])
    tokenizer.add_tokens(AddedToken("<|user|>", normalized=False))  # added, not special, and of the chat format
    words = PlainWords(tokenizer, "<|user|>\n")
    tokens = control_tokens(tokenizer, "<|user|>\n")
    assert {"<eos>", "<|user|>"} <= set(tokens) and ("<action_3>" in tokens) == with_actions
    steering = set(tokenizer.convert_tokens_to_ids(tokens)) - {tokenizer.unk_token_id}

    def ids(text):
        return words.without_breaks({"input_ids": ids_of(tokenizer, words.plain(text, "text"))})["input_ids"]

    for text in ("pick up", "a < b", "", "日 b"):
        assert words.plain(text, "text") == text and ids(text) == ids_of(tokenizer, text)
    for token in tokens:
        # It writes its special tokens as text by itself, but takes all others apart only where there is a break.
        if kind == "split" and token not in SPECIAL:
            with pytest.raises(ValueError, match="cannot write as plain text"):
                ids(f"see {token} it")
            continue
        plain = ids(f"see {token} it")
        assert not steering.intersection(plain), token
        letters = "".join(tokenizer.decode(plain).split())
        assert letters == f"see{token}it" or kind == "wordpiece", letters


def test_a_tokenizer_that_looks_at_normalised_text_refuses_by_name():
    """`<EOS>` is `<eos>` for it, which no search for `<eos>` finds."""
    tokenizer = sentencepiece_like()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer = fast(tokenizer)
    tokenizer.add_tokens(AddedToken("<action_0>", normalized=True))
    words = PlainWords(tokenizer, "")
    assert words.plain("an <action_ 0>", "text") == "an <action_ 0>"
    with pytest.raises(
        ValueError, match=r"`response` contains '<action_0>'.*cannot write as plain text: 'an <Action_0>'"
    ):
        words.plain("an <Action_0>", "response")


def test_a_tokenizer_without_a_break_refuses_by_name():
    """GPT-2's kind: padding is the end, and there is no other token to write between."""
    tokenizer = copy.deepcopy(vlm_processor("qwen2_vl").tokenizer)
    tokenizer.pad_token = "<eos>"
    words = PlainWords(tokenizer, "")
    assert words.plain("pick up", "text") == "pick up"
    with pytest.raises(ValueError, match=r"`text` contains '<eos>'.*Leave it out"):
        words.plain("the <eos>", "text")


@each_kind
def test_images_in_words_are_refused(name):
    """Whoever writes `<image>` means an image; the processor puts them in front."""
    processor = shared(name)
    for token in processor.sequences.placeholders:
        for example in (LONG | {"text": f"see {token}"}, QUESTION | {"response": f"a {token}"}):
            with pytest.raises(ValueError, match="stands for an image"):
                processor(**columns(example))


def test_pixels_are_those_of_the_words_without_it():
    processor = shared("qwen2_vl")
    given = {"images": [[image(1)]], "text": ["see <|video_pad|><|vision_start|>"], "state": [[0, 0]]}
    assert torch.equal(processor(**given)["pixel_values"], processor(**{**given, "text": ["x"]})["pixel_values"])

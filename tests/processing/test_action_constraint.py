"""Constrained decoding: whatever a model wants to say, a chunk comes out."""

import numpy as np
import pytest
import torch

from kivla.processing import ActionDecodingFailure, BinningActionTokenizer, FASTActionTokenizer
from kivla.processing.action_constraint import ActionTokenConstraint
from tests.processing.test_action_tokenizers import D, H, published_fit, smooth_chunks
from tests.processing.test_processing_kivla import CHUNK, NORMALIZED, WIDTH, make

VOCABULARY, FIRST, END = 2000, 700, 3  # of a language model: its size, the first action token, the end of the turn


@pytest.fixture(scope="module", params=["fast", "published", "bins"])
def tokenizer(request, tmp_path_factory):
    if request.param == "bins":
        return BinningActionTokenizer(64)
    chunks = smooth_chunks(200)
    if request.param == "fast":
        return FASTActionTokenizer.fit(chunks, vocab_size=400)
    folder = tmp_path_factory.mktemp("published")
    published_fit(chunks, folder)
    return FASTActionTokenizer.from_pretrained(folder)


def constraint(tokenizer, num_values, prompt_length=2, grammar=True):
    ids = FIRST + np.arange(tokenizer.vocab_size)[::-1].copy()
    grammar = tokenizer.grammar() if grammar else None
    return ids, ActionTokenConstraint(ids, END, prompt_length, num_values, grammar)


def speak(process, batch_size, scores):
    """Greedy decoding of given scores, until everybody has said END: (B, T) tokens after the prompt."""
    said = torch.ones(batch_size, 2, dtype=torch.long)
    ended = torch.zeros(batch_size, dtype=torch.bool)
    while not ended.all():
        token = process(said, scores(said)).argmax(-1)
        token[ended] = 0  # padding
        ended |= token == END
        said = torch.cat([said, token[:, None]], 1)
        assert said.shape[1] < 4 * H * D, "the end is never allowed"
    return said[:, 2:]


def codes_of(ids, tokens):
    return [[int(np.flatnonzero(ids == t)[0]) for t in row.tolist() if t in ids] for row in tokens]


def test_random_scores_always_give_a_chunk(tokenizer):
    generator = torch.Generator().manual_seed(0)
    ids, process = constraint(tokenizer, [H * D] * 100)
    tokens = speak(process, 100, lambda said: torch.randn(len(said), VOCABULARY, generator=generator))
    results = tokenizer.decode(codes_of(ids, tokens), H, D)
    failures = [str(result) for result in results if isinstance(result, ActionDecodingFailure)]
    if tokenizer.kind == "fast" and tokenizer.num_codes > 400:  # bytes: a character may lie beyond the fitted range
        assert all("value_count" not in failure for failure in failures), failures[:3]
    else:
        assert not failures, failures[:3]


def test_everything_that_the_tokenizer_writes_may_be_said(tokenizer):
    chunks = smooth_chunks(50, seed=5)
    ids, process = constraint(tokenizer, [H * D])
    for codes in tokenizer.encode(chunks):
        tokens = torch.tensor([[1, 1, *ids[codes], END]])
        for length in range(2, tokens.shape[1]):
            scores = process(tokens[:, :length], torch.zeros(1, VOCABULARY))
            assert scores[0, tokens[0, length]] == 0, f"token {length - 2} of {codes} was refused"
            is_last = length == tokens.shape[1] - 1
            assert (scores[0, END] == 0) == is_last, "the end is allowed exactly when the chunk is complete"
            assert process.is_complete(tokens[:, :length]).item() == is_last


def test_rows_of_different_length_and_beams(tokenizer):
    """Two robots in a batch, each with three beams: every beam is bounded by its own robot's chunk."""
    dims = [1, D]
    ids, process = constraint(tokenizer, [H * d for d in dims])
    generator = torch.Generator().manual_seed(1)
    tokens = speak(process, 6, lambda said: torch.randn(len(said), VOCABULARY, generator=generator))
    for i, codes in enumerate(codes_of(ids, tokens)):
        (result,) = tokenizer.decode([codes], H, dims[i // 3])
        assert not isinstance(result, ActionDecodingFailure) or result.reason != "value_count", result


def test_without_a_grammar_codes_and_end_are_allowed_and_nothing_else(tokenizer):
    ids, process = constraint(tokenizer, [H * D], grammar=False)
    scores = process(torch.tensor([[1, 1]]), torch.zeros(1, VOCABULARY))
    assert set(torch.nonzero(scores[0] == 0).flatten().tolist()) == {*ids.tolist(), END}
    assert not process.is_complete(torch.tensor([[1, 1, *ids[: H * D]]])).any(), "nobody knows when it is complete"


def test_a_thousand_random_sequences_are_chunks_or_reasons():
    """What a model might say without any constraint: foreign tokens, cut-off and overlong sequences, nothing at all."""
    processor = make()
    rng = np.random.default_rng(0)
    ids = processor.action_token_ids
    sequences = [rng.choice(ids, rng.integers(0, 30)).tolist() for _ in range(500)]
    sequences += [rng.integers(0, processor.vocab_size, rng.integers(0, 30)).tolist() for _ in range(300)]
    whole = [ids[codes].tolist() for codes in processor.action_tokenizer.encode(NORMALIZED[:40])]
    sequences += [row[: rng.integers(0, len(row))] for row in whole for _ in range(3)]
    sequences += whole + [[-100, *row, 3, 7] for row in whole]
    results = processor.decode_actions(sequences)
    assert len(results) == len(sequences) == 1000
    for sequence, result in zip(sequences, results, strict=True):
        if isinstance(result, ActionDecodingFailure):
            assert str(result).startswith("no action chunk ("), sequence
        else:
            assert result.shape == (CHUNK, WIDTH) and np.isfinite(result).all(), sequence
    assert not any(isinstance(result, ActionDecodingFailure) for result in results[-80:]), "these are whole"


# ------------------------------------------------------------------------------------------------- say, then act
def test_words_come_first_and_then_a_whole_chunk(tokenizer):
    """Whatever is said, and for how long: then actions begin, and nothing ends without them."""
    ids = FIRST + np.arange(tokenizer.vocab_size)[::-1].copy()
    process = ActionTokenConstraint(ids, END, 2, [H * D] * 40, tokenizer.grammar(), max_response_tokens=7)
    generator = torch.Generator().manual_seed(0)

    def scores(said):
        scores = torch.randn(len(said), VOCABULARY, generator=generator)
        scores[:, END] += 10  # it wants to stop at once
        scores[::2, ids] += 4  # half of them would rather act
        return scores

    tokens = speak(process, 40, scores)
    is_action = np.isin(tokens.numpy(), ids)
    first = is_action.argmax(1)
    assert 0 < first.max() <= 7 and first.min() == 0, "some speak, not for too long, and some act at once"
    for row, start in zip(tokens.tolist(), first, strict=True):
        end = row.index(END)
        assert END not in row[:start] and np.isin(row[start:end], ids).all(), "words among the actions"
    results = tokenizer.decode(codes_of(ids, tokens), H, D)
    assert not [r for r in results if isinstance(r, ActionDecodingFailure) and r.reason == "value_count"]


def test_words_come_first_without_a_grammar(tokenizer):
    ids = FIRST + np.arange(tokenizer.vocab_size)
    process = ActionTokenConstraint(ids, END, 2, [H * D], None, max_response_tokens=2)
    word, action = 5, int(ids[0])
    for said, words, end in (
        ([], True, False),
        ([word], True, False),
        ([word, word], False, True),
        ([action], False, True),
    ):
        scores = process(torch.tensor([[1, 1, *said]]), torch.zeros(1, VOCABULARY))[0]
        assert (scores[word] == 0, scores[END] == 0, scores[action] == 0) == (words, end, True), said

"""Plain texts as examples: pieces of documents, at random places that depend on seed and example alone."""

import pickle
import random

import datasets
import pytest

from kivla.training.data.example_order import NumberedExamples
from kivla.training.data.mixture import Mixture
from kivla.training.data.vlm.texts import TextDataset
from tests.processing.test_processing_kivla import make

LONG = " ".join(f"word{i}" for i in range(300))


def rows(*texts) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts)})


@pytest.fixture(scope="module")
def processor():
    return make()


def test_a_short_text_is_whole_and_a_long_one_in_pieces(processor):
    data = TextDataset(rows("A cup.", LONG), processor, length=40)
    assert data[0] == {"document": processor.document_tokens("A cup.")}
    start, whole = processor.document_start, processor.document_tokens(LONG)
    assert start == [processor.tokenizer.bos_token_id]
    random.seed(0)
    pieces = [data[1]["document"] for _ in range(1000)]
    text = processor.tokenizer.decode(whole[1:])
    for piece in pieces:
        assert piece[:1] == start and len(piece) == 40
        assert processor.tokenizer.decode(piece[1:]) in text
    seen = "".join(processor.tokenizer.decode(piece) for piece in pieces)
    assert all(f"word{i} " in seen for i in (20, 150, 280)), "a long text is not just its head"


class Characters:
    """Takes every character for a token, and notes how many it is given."""

    document_start = (-1,)

    def __init__(self):
        self.lengths = set()

    def document_tokens(self, text: str) -> list:
        self.lengths.add(len(text))
        return [*self.document_start, *text]


def test_of_a_book_a_part_is_tokenized_which_may_be_any():
    processor = Characters()
    book = " ".join(f"{i:06}" for i in range(100_000))
    data = TextDataset(rows(book), processor, length=40)
    places = [book.index("".join(data[0]["document"][1:])) / len(book) for _ in range(50)]
    assert min(places) < 0.2 and max(places) > 0.8
    assert max(processor.lengths) <= 16 * 40


def test_pieces_depend_on_seed_epoch_and_example(processor):
    data = TextDataset(rows(*[LONG] * 3), processor, length=20)
    mixture = Mixture([data, ["a robot's"] * 4], [1, 1], 12, seed=0)
    first = NumberedExamples(mixture, seed=5)
    forward = [first[i] for i in range(12)]
    random.seed(99)
    again = NumberedExamples(pickle.loads(pickle.dumps(mixture)), seed=5)
    assert [again[i] for i in reversed(range(12))] == forward[::-1]
    pieces = [str(example) for _, example in forward if isinstance(example, dict)]
    assert len(set(pieces)) == len(pieces), "the next time another piece"
    other = NumberedExamples(mixture, seed=6)
    assert [other[i] for i in range(12)] != forward


def test_texts_without_words_are_left_out(processor):
    data = TextDataset(rows("", "one", None, " \n ", "two"), processor)
    assert list(data.rows["text"]) == ["one", "two"]
    with pytest.raises(ValueError, match="None of the 2 texts has words"):
        TextDataset(rows("", " "), processor)
    with pytest.raises(ValueError, match="length is the most tokens of a piece, at least 2, got 1"):
        TextDataset(rows("one"), processor, length=1)


def test_sizes_group_texts_of_like_length(processor):
    data = TextDataset(rows("one", LONG), processor, length=40)
    assert [data.size_of(i) for i in (0, 1)] == [(0, 3), (0, 160)]


def test_texts_are_read_from_a_file(processor, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"words": "one"}\n{"words": "two"}\n')
    data = TextDataset.load(tmp_path / "texts.jsonl", processor, column="words")
    assert [example["document"] for example in data] == [processor.document_tokens(word) for word in ("one", "two")]

"""Plain text, as language models are pretrained on it, as examples for a policy: replay of what its VLM knew."""

import operator
import random
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
import torch

from ....processing import KIVLAProcessor
from .text_rows import TEXT_COLUMN, load_texts

TEXT_LENGTH = 256
# Of a long text so many characters for each token of a piece are tokenized, not a whole book.
_CHARACTERS = 16


class TextDataset(torch.utils.data.Dataset):
    """Texts -> examples with a `document`: the tokens of a piece of the text, all of which are learned.

    ```python
    data = TextDataset.load("wikitext", processor, config="wikitext-103-raw-v1", length=256)
    data[0]  # {"document": [2, 651, 4573, ...]}
    ```

    A text that is longer than `length` gives another piece every time, at a random place: drawn from Python's random
    numbers, which `KIVLATrainer` sets by seed, epoch and example. Every piece begins with the VLM's start token, if
    it has one.

    Args:
        rows: a `datasets.Dataset` with a column `text`. Rows without words are left out.
        processor: the policy's; its tokenizer cuts.
        length: most tokens of a piece, the start token among them.

    Attributes:
        rows: those that have words.
        length: as above.

    Raises:
        ValueError: no row has words, or `length` is too small to learn from.
    """

    def __init__(self, rows: datasets.Dataset, processor: KIVLAProcessor, length: int = TEXT_LENGTH):
        if length < 2:
            raise ValueError(f"length is the most tokens of a piece, at least 2, got {length}.")
        self.rows = _with_words(rows)
        if not len(self.rows):
            raise ValueError(f"None of the {len(rows)} texts has words.")
        self.processor = processor
        self.length = length

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        processor: KIVLAProcessor,
        column: str | None = None,
        split: str = "train",
        config: str | None = None,
        length: int = TEXT_LENGTH,
    ) -> "TextDataset":
        """The texts of this name on the Hub, in this folder or in this file: see `load_texts`."""
        return cls(load_texts(name_or_path, column, split, config), processor, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        text = _window(self.rows[operator.index(index)][TEXT_COLUMN].strip(), _CHARACTERS * self.length)
        start = self.processor.document_start
        words = self.processor.document_tokens(text)[len(start) :]
        room = self.length - len(start)
        place = random.randrange(max(len(words) - room, 0) + 1)
        return {"document": [*start, *words[place : place + room]]}

    def size_of(self, index: int) -> tuple[int, int]:
        """No images, and about how many characters."""
        return 0, min(len(self.rows[index][TEXT_COLUMN]), 4 * self.length)


def _window(text: str, size: int) -> str:
    """So many characters of a long text, from the first word behind a random place on."""
    if len(text) <= size:
        return text
    place = random.randrange(len(text) - size + 1)
    part = text[place : place + size]
    if place > 0:
        part = part.partition(" ")[2] or part
    return part if part.strip() else text[:size]


def _with_words(rows: datasets.Dataset) -> datasets.Dataset:
    """Leave out empty texts: a page of Wikipedia line by line has many."""
    batches = rows.with_format("arrow").iter(batch_size=10_000)
    has_words = [pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(batch[TEXT_COLUMN])), 0) for batch in batches]
    kept = np.concatenate([mask.fill_null(False).to_numpy() for mask in has_words]).nonzero()[0]
    return rows if len(kept) == len(rows) else rows.select(kept)


__all__ = ["TEXT_LENGTH", "TextDataset"]

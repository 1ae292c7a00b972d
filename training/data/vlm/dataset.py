"""Images with text, as VLM fine-tuning has them, as examples for a policy."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch

from .json_rows import json_files, load_json, rows_of
from .layouts import (
    BOX_FORMATS,
    check_placeholders,
    find_layout,
    instruction_messages,
    named_images,
    only_image,
    read_answer,
    read_boxes,
    read_caption,
    read_conversation,
    read_images,
    text_of,
)
from .picture_files import check_pictures
from .saved_rows import is_saved, load_named, load_saved
from .streaming import StreamedRows

TURNS = ("together", "split")
_CONVERSATIONS = ("messages", "instruction")  # layouts of perhaps several turns


class VLMDataset(torch.utils.data.Dataset):
    """Rows of a VLM fine-tuning dataset -> examples with `images`, `text` and `response`.

    ```python
    data = VLMDataset(datasets.load_dataset("HuggingFaceM4/the_cauldron", "ai2d", split="train"))
    data = VLMDataset.load("HuggingFaceM4/ChartQA", columns={"question": "query", "answer": "label"})
    data[0]  # {"images": [PIL image, ...], "text": "Is the cup red?", "response": "no"}
    ```

    The layout is detected from the columns. Any layout has `image` (one, or None) or `images` (a list), and
    "messages" and "instruction" may do without (chat without pictures):

    * "messages": `messages`, `conversations` (LLaVA) or `texts` (The Cauldron), a list of `{"role", "content"}`,
      `{"from", "value"}` or `{"user", "assistant"}`. Content is text that may hold `<image>`, or a list of
      `{"type": "image"}` (or OpenAI's `image_url`) and `{"type": "text", "text": ...}`. After at most one system
      message, user (human) and assistant (gpt) take turns. The system's words are put in front of the first question,
      separated by a line break.
    * "instruction" (Alpaca): `instruction`, perhaps with `input` on a line after it, and `output`; perhaps `history`, a
      list of [question, answer], and `system`.
    * "question_answer": `question`, text that may hold `<image>`, and `answer`, `multiple_choice_answer` or `answers`;
      of a list of answers (strings, or VQAv2's dicts) the most frequent one, the first of ties.
    * "caption": `caption` or `text`; of a list of captions the one at the row's index modulo their number.
    * "boxes": `objects` with `bbox`, a list of [x, y, width, height] in pixels, and `category`, a list of names or of
      numbers with a `ClassLabel` feature, as COCO and DETR have them. The question is "detect cup ; plate".

    A conversation of several turns has lists as `text` and `response`. Images come in front of all words: placeholders
    are removed from the words, and must be as many as the images and not later than the first question. Words without
    any placeholder go with any number of images.

    Args:
        rows: a `datasets.Dataset` or `StreamedRows`, without a format; its images are decoded, or paths.
        layout: one of those above; by default the one that fits the columns.
        columns: the columns that have other names: "images", "messages", "question", "answer", "caption" or "objects"
            → the column.
        turns: of conversations: "together", or "split" for an example of each question, with the row's images and the
            system's words. All conversations are then read once, without their images, to count the turns.
        prompt: the question of the layout "caption"; the default is PaliGemma's.
        box_format: of the answer of the layout "boxes": "json", `[{"bbox_2d": [x_min, y_min, x_max, y_max], "label":
            "cup"}]` in pixels of the row's image (as Qwen2.5-VL has it), or "loc" for a VLM that has PaliGemma's
            location tokens, `<loc0000><loc0000><loc1023><loc1023> cup ; ...` (y_min, x_min, y_max, x_max in 1/1024 of
            the image).
        media_dir: the folder that paths of images are relative to. Paths that leave it are refused.

    Attributes:
        rows, layout, turns, prompt, box_format, media_dir: as above.
        columns: part of the layout → its column.

    Raises:
        TypeError: several splits at once, or a stream that is not `StreamedRows`.
        ValueError: no rows; columns that fit no layout or several; an unknown option; `turns="split"` of a stream;
            `objects` of another structure; paths of pictures that are missing or outside `media_dir`. When a row is
            read (with `turns="split"` the conversations at once), naming its index: conversations, answers, images or
            boxes that are not as described, or are empty.
    """

    def __init__(
        self,
        rows: datasets.Dataset | StreamedRows,
        layout: str | None = None,
        columns: Mapping[str, str] | None = None,
        turns: str = "together",
        prompt: str = "caption en",
        box_format: str = "json",
        media_dir: str | Path | None = None,
    ):
        if isinstance(rows, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            raise TypeError(f"rows is a dict of the splits {', '.join(rows)}: give one of them.")
        if isinstance(rows, datasets.IterableDataset):
            raise TypeError("rows is an IterableDataset: give StreamedRows(rows).")
        if turns not in TURNS or box_format not in BOX_FORMATS:
            raise ValueError(
                f"turns is one of {TURNS} and box_format one of {BOX_FORMATS}, got {turns!r} and {box_format!r}."
            )
        if turns == "split" and isinstance(rows, StreamedRows):
            raise ValueError("turns='split' needs the number of turns of every row, which a stream does not have.")
        if not len(rows):
            raise ValueError("The dataset has no rows.")
        self.rows = rows
        self.layout, self.columns = find_layout(rows.column_names, layout, columns)
        self.turns = turns
        self.prompt = prompt
        self.box_format = box_format
        self.media_dir = None if media_dir is None else Path(media_dir)
        if self._has_paths():
            column = self.columns["images"]
            check_pictures((row[column] for row in self._rows_of(["images"])), self.media_dir)
        self._category_names = self._find_category_names() if self.layout == "boxes" else None
        self._ends = self._count_turns() if turns == "split" and self.layout in _CONVERSATIONS else None

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        split: str = "train",
        streaming: bool = False,
        config: str | None = None,
        num_rows: int | None = None,
        **options,
    ) -> "VLMDataset":
        """The dataset of this name on the Hub, or in this folder.

        Args:
            name_or_path: what `datasets.load_dataset` takes; a folder written by `save_to_disk`; or a JSON file (a
                list, or lines) beside its pictures, as LLaVA, LLaMA-Factory and ShareGPT have it, or a folder of such
                files, whose names are its splits.
            split: of the dataset. A folder that `Dataset.save_to_disk` wrote has only one, and it is not used.
            streaming: read while training instead of downloading first, see `StreamedRows`: loader workers read the
                whole stream each.
            config: of a dataset that has several.
            num_rows: of a stream; needed where the dataset's information does not have it.
            options: of `VLMDataset`. `media_dir` is by default the folder itself, or that of the JSON file.

        Raises:
            ValueError: no such dataset; no such split in a folder of `save_to_disk` or of JSON files; damaged JSON;
                streaming from such a folder, or `num_rows` or `config` where there is no use for it; what `VLMDataset`
                and `StreamedRows` raise.
        """
        if num_rows is not None and not streaming:
            raise ValueError(f"num_rows={num_rows} is of streams: leave it out, or use rows.select(range({num_rows})).")
        folder = Path(name_or_path)
        if is_saved(folder):
            if streaming or config is not None:
                raise ValueError(
                    f"{folder} was written by save_to_disk: it is read from the disk as needed and has no "
                    "configurations. Leave out streaming and config."
                )
            return cls(load_saved(folder, split), **options)
        if folder.exists():
            options.setdefault("media_dir", folder if folder.is_dir() else folder.parent)
        if json_files(folder):
            if streaming or config is not None:
                raise ValueError(f"{folder} is JSON: it is read whole. Leave out streaming and config.")
            return cls(load_json(folder, split, partial(rows_of, columns=options.get("columns"))), **options)
        rows = load_named(name_or_path, config, split, streaming=streaming)
        return cls(StreamedRows(rows, num_rows) if streaming else rows, **options)

    @property
    def is_stream(self) -> bool:
        """Whether the rows are read forward, so that indices should grow."""
        return isinstance(self.rows, StreamedRows)

    def __len__(self) -> int:
        return len(self.rows) if self._ends is None else int(self._ends[-1])

    def __getitem__(self, index: int) -> dict:
        item = operator.index(index)
        if not -len(self) <= item < len(self):
            raise IndexError(f"Index {index} is out of range for {len(self)} examples.")
        number = item = item % len(self)
        if self._ends is not None:
            number = int(np.searchsorted(self._ends, item, side="right"))
        row = self.rows[number]
        images = read_images(self._images_of(row, number), number, self.media_dir)
        pairs = self._questions_and_answers(row, images, number)
        if self._ends is not None:
            pairs = [pairs[item - int(self._ends[number])]]  # counted from the end of the row's turns
        texts, responses = map(list, zip(*pairs, strict=True))
        if len(pairs) == 1:
            return {"images": images, "text": texts[0], "response": responses[0]}
        return {"images": images, "text": texts, "response": responses}

    def size_of(self, index: int) -> tuple[int, int]:
        """How many images an item has and about how many characters of text; no image is decoded.

        Raises:
            ValueError: the rows are streamed, and come in their own order only.
        """
        if self.is_stream:
            raise ValueError("Streamed rows cannot be grouped by length: they are read in their own order.")
        number = index if self._ends is None else int(np.searchsorted(self._ends, index, side="right"))
        row = self.rows.with_format("arrow")[number]
        words = [row[column][0].as_py() for part, column in self.columns.items() if part != "images"]
        if "images" not in self.columns:
            return len(self._images_of(self.rows[number], number) or ()), len(str(words))
        images = row[self.columns["images"]][0]
        is_list = pa.types.is_list(images.type) or pa.types.is_large_list(images.type)
        return len(images) if is_list else int(images.is_valid), len(str(words))

    def _has_paths(self) -> bool:
        """Whether the images are paths, all of which can be looked for at once."""
        if self.is_stream or self.media_dir is None or "images" not in self.columns:
            return False
        feature = self.rows.features[self.columns["images"]]
        feature = feature.feature if isinstance(feature, (datasets.List, datasets.LargeList)) else feature
        return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")

    def _images_of(self, row: dict, number: int):
        """The images of a row, as its column has them; without one, those that its messages name."""
        if "images" in self.columns:
            return row[self.columns["images"]]
        return named_images(row[self.columns["messages"]], number) if self.layout == "messages" else None

    def _messages_of(self, row: dict, number: int) -> list:
        """The conversation of a row, of a layout that is one."""
        if self.layout == "messages":
            return row[self.columns["messages"]]
        part = {name: row[column] for name, column in self.columns.items() if name != "images"}
        return instruction_messages(part, number)

    def _questions_and_answers(self, row: dict, images: list, number: int) -> list[tuple[str, str]]:
        if self.layout in _CONVERSATIONS:
            return self._turns_of(self._messages_of(row, number), images, number)
        part = {name: row[column] for name, column in self.columns.items()}
        if self.layout == "question_answer":
            messages = [{"user": part["question"], "assistant": read_answer(part["answer"], number)}]
            return self._turns_of(messages, images, number)
        image = only_image(images, number)
        if self.layout == "caption":
            return [(self.prompt, read_caption(part["caption"], number))]
        return [read_boxes(part["objects"], image, number, self._category_names, self.box_format)]

    def _turns_of(self, messages: list, images: list, number: int) -> list[tuple[str, str]]:
        system, pairs, num_placeholders = read_conversation(messages, number)
        check_placeholders(num_placeholders, len(images), number)
        if not system:
            return pairs
        num_first = len(pairs) if self.turns == "split" else 1  # questions that are the first of their example
        return [(f"{system}\n{question}", answer) for question, answer in pairs[:num_first]] + pairs[num_first:]

    def _count_turns(self) -> np.ndarray:
        """One past each row's last example."""
        words = [part for part in self.columns if part != "images"]
        conversations = (self._messages_of(row, i) for i, row in enumerate(self._rows_of(words)))
        return np.cumsum([len(read_conversation(messages, i)[1]) for i, messages in enumerate(conversations)])

    def _rows_of(self, parts: Sequence[str]) -> Iterator[dict]:
        """Some columns of all rows, read in batches; nothing else is."""
        columns = [self.columns[part] for part in parts]
        for batch in self.rows.select_columns(columns).iter(batch_size=1000):
            values = zip(*(batch[column] for column in columns), strict=True)
            yield from (dict(zip(columns, row, strict=True)) for row in values)

    def _find_category_names(self) -> Sequence[str] | None:
        """Names of the numbers that stand for categories; None where the rows have the names themselves."""
        if self.rows.features is None:
            return None
        column = self.columns["objects"]
        objects = self.rows.features[column]
        is_dict = isinstance(objects, dict) and {"bbox", "category"} <= objects.keys()
        if not is_dict or not isinstance(objects["category"], (datasets.List, datasets.LargeList)):
            raise ValueError(f"The column {column!r} is {objects}; expected are lists `bbox` and `category`.")
        category = objects["category"].feature
        if isinstance(category, datasets.ClassLabel):
            return category.names
        if category.dtype not in ("string", "large_string"):
            raise ValueError(
                f"The categories in {column!r} are {category}; expected are names, or numbers with their names: use "
                "rows.cast with a feature datasets.ClassLabel(names=[...])."
            )
        return None


__all__ = ["StreamedRows", "VLMDataset", "text_of"]

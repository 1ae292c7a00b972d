"""The layouts that VLM fine-tuning data has on the Hugging Face Hub: which one it is, and one row as questions and
answers."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from .picture_files import open_picture

# What a layout is made of, and the names that its columns have: the first one that is present is taken.
LAYOUTS = {
    "messages": ("images", "messages"),
    "instruction": ("images", "instruction", "output", "input", "history", "system"),
    "question_answer": ("images", "question", "answer"),
    "caption": ("images", "caption"),
    "boxes": ("images", "objects"),
}
# Parts that a layout does without. A conversation says by itself where a picture belongs.
_OPTIONAL = {"messages": {"images"}, "instruction": {"images", "input", "history", "system"}}
COLUMNS = {
    "images": ("images", "image"),
    "messages": ("messages", "conversations", "texts"),
    "instruction": ("instruction",),
    "output": ("output",),
    "input": ("input",),
    "history": ("history",),
    "system": ("system",),
    "question": ("question",),
    "answer": ("answer", "multiple_choice_answer", "answers"),
    "caption": ("caption", "text"),
    "objects": ("objects",),
}
BOX_FORMATS = ("json", "loc")

IMAGE_PLACEHOLDER = "<image>"
_PICTURES = ("image", "image_url", "input_image")  # types of content
_PLACEHOLDERS = re.compile(rf"(?:\s*{IMAGE_PLACEHOLDER})+\s*")
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_NUM_LOCATIONS = 1024  # PaliGemma's location tokens per axis
_BOX_TOLERANCE = 0.1  # pixels: x and width are rounded when written, so their sum may pass the edge by a little


def find_layout(
    column_names: Sequence[str], layout: str | None = None, columns: Mapping[str, str] | None = None
) -> tuple[str, dict[str, str]]:
    """The layout of rows with these columns, and the column of each of its parts.

    Args:
        column_names: of the rows.
        layout: a key of `LAYOUTS`; by default the one that fits.
        columns: part → column, where a column is not named as in `COLUMNS`.

    Raises:
        ValueError: an unknown layout, part or column; no layout fits, or more than one.
    """
    columns = dict(columns or {})
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not known. The layouts: {', '.join(LAYOUTS)}.")
    if unknown := [part for part in columns if part not in COLUMNS]:
        raise ValueError(f"columns names the part {unknown[0]!r}; parts of a layout are {', '.join(COLUMNS)}.")
    if missing := [column for column in columns.values() if column not in column_names]:
        raise ValueError(f"columns names the column {missing[0]!r}; the rows have {list(column_names)}.")
    found = {}
    for part, names in COLUMNS.items():
        present = [name for name in ([columns[part]] if part in columns else names) if name in column_names]
        if present:
            found[part] = present[0]
    candidates = LAYOUTS if layout is None else [layout]
    fitting = [name for name in candidates if _needed(name) <= found.keys()]
    if len(fitting) != 1:
        problem = f"fit the layouts {' and '.join(fitting)}" if fitting else f"do not fit {layout or 'any layout'}"
        advice = "Give `layout`." if fitting else "Give `columns`, e.g. columns={'question': 'query'}."
        raise ValueError(f"The columns {list(column_names)} {problem}. {advice}\nKnown layouts:\n{_known_layouts()}")
    return fitting[0], {part: found[part] for part in LAYOUTS[fitting[0]] if part in found}


def _needed(layout: str) -> set[str]:
    return set(LAYOUTS[layout]) - _OPTIONAL.get(layout, set())


def _known_layouts() -> str:
    lines = []
    for layout, parts in LAYOUTS.items():
        columns = " + ".join(" or ".join(COLUMNS[part]) for part in parts)
        rest = [part for part in parts if part not in _needed(layout)]
        lines.append(f"  {layout}: {columns}" + (f" ({', '.join(rest)} may be missing)" if rest else ""))
    return "\n".join(lines)


def read_images(value, row: int, media_dir: Path | None = None) -> list:
    """The content of an image column, one image or a list or None, as a list.

    Args:
        row: index, for messages of errors.
        media_dir: where the files are that the column names, if it does.

    Raises:
        ValueError: file names without their folder, files that are not there, or undecoded images.
    """
    images = [] if value is None else value if isinstance(value, list) else [value]
    if media_dir is not None:
        images = [open_picture(image, media_dir, row) if isinstance(image, str) else image for image in images]
    for image in images:
        if image is None or isinstance(image, (str, bytes, Mapping)):
            raise ValueError(
                f"Row {row} has an image of type {type(image).__name__}; expected is a decoded image. Where the column "
                "holds files or bytes, use rows.cast_column(column, datasets.Image()), or for paths media_dir."
            )
    return images


def only_image(images: Sequence, row: int):
    if len(images) != 1:
        raise ValueError(f"Row {row} has {len(images)} images; expected is one.")
    return images[0]


def read_conversation(messages: Sequence[Mapping], row: int) -> tuple[str, list[tuple[str, str]], int]:
    """The words of the system message ("" without one), pairs of a question and its answer, and how many images the
    words have placeholders for.

    Args:
        messages: `{"role", "content"}`, LLaVA's `{"from", "value"}` or The Cauldron's `{"user", "assistant"}`. Content
            is a string, which may hold `<image>`, or a list of `{"type": "text", "text": ...}` and of pictures: see
            `named_images`.
        row: index, for messages of errors.

    Raises:
        ValueError: no messages, unknown keys, roles or types; user and assistant do not alternate; an empty question
            or answer; an image after the first question.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"Row {row} has no messages: expected is a list of them, got {messages!r:.80}.")
    pairs = [pair for message in messages for pair in roles_and_contents(message, row)]
    roles = [role for role, _ in pairs]
    first = 1 if roles[0] == "system" else 0
    turns = roles[first:]
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(
            f"Row {row} has messages of {roles}; expected are user and assistant in turns, at most a system message "
            "before them, and an answer at the end."
        )
    placeholders = [_num_placeholders(content, row) for _, content in pairs]
    if late := [i for i, number in enumerate(placeholders) if number and i > first]:
        raise ValueError(
            f"Row {row} has an image in message {late[0]} (of the {roles[late[0]]}, counted from 0); images can only "
            "come with the first question, because a policy reads them before all words."
        )
    words = [_words(content) for _, content in pairs]
    questions = [checked_text(text, "question", row) for text in words[first::2]]
    answers = [checked_text(text, "answer", row) for text in words[first + 1 :: 2]]
    return words[0] if first else "", list(zip(questions, answers, strict=True)), sum(placeholders)


def instruction_messages(part: Mapping, row: int) -> list[dict]:
    """The messages of a row in Alpaca's layout, as LLaMA-Factory has it: `instruction` and `input` are the question.

    Args:
        part: of the layout "instruction" → the row's value; what is optional may be missing or None.

    Raises:
        ValueError: `history` is no list of questions and answers.
    """
    system = [{"role": "system", "content": part["system"]}] if part.get("system") else []
    history = part.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise ValueError(f"Row {row} has the history {history!r:.80}; expected is a list of [question, answer].")
    question = "\n".join(text for text in (part["instruction"], part.get("input")) if text)
    turns = [*history, [question, part["output"]]]
    return system + [{"user": asked, "assistant": answer} for asked, answer in turns]


def named_images(messages: Sequence[Mapping], row: int) -> list:
    """The pictures that messages name themselves, in order: paths, URLs or decoded images.

    They are `{"type": "image_url", "image_url": {"url": ...}}` (OpenAI), `{"type": "input_image", "image_url": ...}`
    (its later form), and `{"type": "image"}` with `image`, `url` or `path` (Transformers, Qwen). One without any stands
    for the next picture of the row.
    """
    if not isinstance(messages, list):
        return []  # `read_conversation` refuses it
    contents = [content for message in messages for _, content in roles_and_contents(message, row)]
    items = [item for content in contents if isinstance(content, list) for item in content]
    pictures = [_picture(item) for item in items if isinstance(item, Mapping) and item.get("type") in _PICTURES]
    return [picture for picture in pictures if picture is not None]


def _picture(item: Mapping):
    values = [item.get(name) for name in ("image_url", "image", "url", "path")]
    picture = next((value for value in values if value is not None), None)
    return picture["url"] if isinstance(picture, Mapping) and "url" in picture else picture


def text_of(message: Mapping) -> str:
    """The words of a message, without its images. The content is a string or a list of typed items."""
    return _words(message["content"])


def roles_and_contents(message: Mapping, row: int) -> Iterator[tuple[str, str | list | None]]:
    """The role (system, user or assistant) and content of a message; two of The Cauldron's.

    Raises:
        ValueError: unknown keys or roles.
    """
    if not isinstance(message, Mapping):
        raise ValueError(f"Row {row} has the message {message!r:.80}; expected is a dict.")
    if {"user", "assistant"} <= message.keys():
        yield "user", message["user"]
        yield "assistant", message["assistant"]
        return
    for role_key, content_key in (("role", "content"), ("from", "value")):
        if {role_key, content_key} <= message.keys():
            role = message[role_key]
            if not isinstance(role, str) or role not in _ROLES:
                raise ValueError(f"Row {row} has a message of {role!r}; known are {', '.join(_ROLES)}.")
            yield _ROLES[role], message[content_key]
            return
    raise ValueError(
        f"Row {row} has a message with the keys {list(message)}; expected are role and content, from and value, or "
        "user and assistant."
    )


def text_with_placeholders(content: str | list | None, row: int) -> str:
    """Content as text, with `<image>` where there are images.

    Raises:
        ValueError: an item that is neither.
    """
    _num_placeholders(content, row)  # checks the items
    if isinstance(content, list):
        return "".join(item["text"] if item["type"] == "text" else IMAGE_PLACEHOLDER for item in content)
    return content


def _words(content: str | list | None) -> str:
    if isinstance(content, list):
        content = "".join(item["text"] for item in content if item["type"] == "text")
    if content is None or IMAGE_PLACEHOLDER not in content:
        return content or ""
    # The space around a placeholder goes with it, down to one line break or space between words
    return _PLACEHOLDERS.sub(lambda match: "\n" if "\n" in match[0] else " ", content).strip()


def _num_placeholders(content: str | list | None, row: int) -> int:
    items = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    number = 0
    for item in items:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind == "text" and isinstance(item.get("text"), str):
            number += item["text"].count(IMAGE_PLACEHOLDER)
        elif kind in _PICTURES:
            number += 1
        else:
            raise ValueError(
                f"Row {row} has a message with the item {item!r:.80}; expected is text, or a list of "
                "{'type': 'text', 'text': ...} and {'type': 'image'} or {'type': 'image_url', ...}."
            )
    return number


def check_placeholders(num_placeholders: int, num_images: int, row: int) -> None:
    if num_placeholders and num_placeholders != num_images:
        raise ValueError(f"Row {row} has {num_placeholders} image placeholders in its words, but {num_images} images.")


def checked_text(text, name: str, row: int) -> str:
    if not isinstance(text, str):
        raise ValueError(f"Row {row} has the {name} {text!r:.80} of type {type(text).__name__}; expected is text.")
    if not text.strip():
        raise ValueError(f"Row {row} has an empty {name}.")
    if IMAGE_PLACEHOLDER in text:
        raise ValueError(f"Row {row} has {IMAGE_PLACEHOLDER} in the {name} {text!r:.80}; it can only be in a question.")
    return text


def read_answer(answer, row: int) -> str:
    """A string; of several (strings, or VQAv2's dicts with `answer`) the most frequent one, the first of ties."""
    if not isinstance(answer, list):
        return checked_text(answer, "answer", row)
    answers = [item["answer"] if isinstance(item, Mapping) else item for item in answer]
    if not answers:
        raise ValueError(f"Row {row} has an empty list of answers.")
    return Counter(checked_text(text, "answer", row) for text in answers).most_common(1)[0][0]


def read_caption(caption, row: int) -> str:
    """A string; of several the one whose turn it is: the row's index modulo their number."""
    if not isinstance(caption, list):
        return checked_text(caption, "caption", row)
    if not caption:
        raise ValueError(f"Row {row} has an empty list of captions.")
    return checked_text(caption[row % len(caption)], "caption", row)


def read_boxes(objects: Mapping, image, row: int, names: Sequence[str] | None, box_format: str) -> tuple[str, str]:
    """A question that names what is to be found, and the boxes as text.

    Args:
        objects: `bbox`, a list of [x, y, width, height] in pixels from the top left, and `category`, a name or number
            for each.
        image: where they are, PIL or (height, width, channels).
        row: index, for messages of errors.
        names: of the categories' numbers, if they are numbers.
        box_format: "json" or "loc", see `VLMDataset`.

    Raises:
        ValueError: no boxes, or not one category for each; a category without a name; a box that has no size or is not
            inside the image.
    """
    boxes, categories = objects["bbox"], objects["category"]
    if not boxes or len(boxes) != len(categories):
        raise ValueError(f"Row {row} has {len(boxes)} boxes and {len(categories)} categories: expected is one each.")
    labels = [_label(category, names, row) for category in categories]
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    corners = [_corners(box, width, height, row) for box in boxes]
    question = "detect " + " ; ".join(dict.fromkeys(labels))
    if box_format == "loc":
        found = [_locations(box, width, height) + f" {label}" for box, label in zip(corners, labels, strict=True)]
        return question, " ; ".join(found)
    found = [
        {"bbox_2d": [round(value) for value in box], "label": label} for box, label in zip(corners, labels, strict=True)
    ]
    return question, json.dumps(found, ensure_ascii=False)


def _label(category: str | int, names: Sequence[str] | None, row: int) -> str:
    if names is None:
        return checked_text(category, "category", row)
    if not 0 <= category < len(names):
        raise ValueError(f"Row {row} has the category {category}; the dataset has names for 0 to {len(names) - 1}.")
    return names[category]


def _corners(box: Sequence[float], width: int, height: int, row: int) -> tuple[float, float, float, float]:
    """x_min, y_min, x_max, y_max."""
    x, y, box_width, box_height = box
    inside = (
        min(x, y) >= -_BOX_TOLERANCE
        and x + box_width <= width + _BOX_TOLERANCE
        and y + box_height <= height + _BOX_TOLERANCE
    )
    if not (inside and box_width > 0 and box_height > 0):
        raise ValueError(
            f"Row {row} has the box {list(box)} (x, y, width, height in pixels), which has no size or is not inside "
            f"its image of {width} x {height} pixels (width x height)."
        )
    return max(x, 0), max(y, 0), min(x + box_width, width), min(y + box_height, height)


def _locations(box: tuple[float, float, float, float], width: int, height: int) -> str:
    x_min, y_min, x_max, y_max = box
    shares = (y_min / height, x_min / width, y_max / height, x_max / width)
    numbers = [min(max(math.floor(share * _NUM_LOCATIONS), 0), _NUM_LOCATIONS - 1) for share in shares]
    return "".join(f"<loc{number:04d}>" for number in numbers)


__all__ = [
    "BOX_FORMATS",
    "COLUMNS",
    "LAYOUTS",
    "check_placeholders",
    "checked_text",
    "find_layout",
    "instruction_messages",
    "named_images",
    "only_image",
    "read_answer",
    "read_boxes",
    "read_caption",
    "read_conversation",
    "read_images",
    "roles_and_contents",
    "text_of",
    "text_with_placeholders",
]

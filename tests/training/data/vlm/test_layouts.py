"""The parts of a row, each by itself, with values worked out by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from kivla.training.data.vlm.layouts import (
    check_placeholders,
    find_layout,
    read_answer,
    read_boxes,
    read_caption,
    read_conversation,
    read_images,
    text_of,
)


@pytest.mark.parametrize(
    ("columns", "layout", "parts"),
    [
        (["images", "messages", "kind"], "messages", {"images": "images", "messages": "messages"}),
        (["id", "image", "conversations"], "messages", {"images": "image", "messages": "conversations"}),
        (["images", "texts"], "messages", {"images": "images", "messages": "texts"}),
        (
            # HuggingFaceM4/VQAv2
            ["question_type", "multiple_choice_answer", "answers", "image_id", "question_id", "question", "image"],
            "question_answer",
            {"images": "image", "question": "question", "answer": "multiple_choice_answer"},
        ),
        (["prompt_id", "messages"], "messages", {"messages": "messages"}),  # chat without pictures
        (["image", "text"], "caption", {"images": "image", "caption": "text"}),
        (["image", "text", "caption"], "caption", {"images": "image", "caption": "caption"}),
        (["image_id", "image", "width", "height", "objects"], "boxes", {"images": "image", "objects": "objects"}),
    ],
)
def test_layout_is_found_from_the_columns(columns, layout, parts):
    assert find_layout(columns) == (layout, parts)
    assert find_layout(columns, layout) == (layout, parts)


def test_other_column_names_can_be_given():
    parts = {"question": "query", "answer": "label"}
    expected = {"images": "image", "question": "query", "answer": "label"}
    assert find_layout(["image", "query", "label"], columns=parts) == ("question_answer", expected)


def test_layout_decides_between_several():
    columns = ["image", "question", "answer", "caption"]
    with pytest.raises(ValueError, match=r"fit the layouts question_answer and caption. Give `layout`") as error:
        find_layout(columns)
    assert str(columns) in str(error.value)
    assert find_layout(columns, "caption")[1] == {"images": "image", "caption": "caption"}


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (["image", "label"], {}, r"\['image', 'label'\] do not fit any layout(?s:.)*boxes: images or image \+ objects"),
        (["image", "caption"], {"layout": "boxes"}, "do not fit boxes"),
        (["question", "answer"], {}, r"do not fit any layout(?s:.)*messages: .* \(images may be missing\)"),
        (["image", "caption"], {"layout": "captions"}, "'captions' is not known. The layouts: messages, "),
        (["image", "caption"], {"columns": {"captions": "caption"}}, "the part 'captions'"),
        (["image", "caption"], {"columns": {"caption": "words"}}, "the column 'words'; the rows have"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, options, message):
    with pytest.raises(ValueError, match=message):
        find_layout(columns, **options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("What is this?", "What is this?"),
        (" as it is ", " as it is "),
        ("<image>\nWhat is this?", "What is this?"),
        ("What is this?\n<image>", "What is this?"),
        ("<image><image>\nSame?", "Same?"),
        ("Is <image> like <image> <image> or not?", "Is like or not?"),
        ("First:\n<image>\nSecond", "First:\nSecond"),
        ("<image>", ""),
        (None, ""),
        ([{"type": "image", "text": None}, {"type": "text", "text": "What?"}], "What?"),
        ([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}], "ab"),
    ],
)
def test_words_of_a_message(content, words):
    assert text_of({"role": "user", "content": content}) == words


def test_conversations_of_every_kind_are_the_same():
    expected = ("", [("What?", "A cup."), ("Red?", "No.")], 1)
    texts = ["<image>\nWhat?", "A cup.", "Red?", "No."]
    roles = ["user", "assistant"] * 2
    plain = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    typed = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in zip(roles, texts, strict=True)
    ]
    typed[0]["content"] = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    llava = [{"from": role, "value": text} for role, text in zip(["human", "gpt"] * 2, texts, strict=True)]
    cauldron = [{"user": texts[i], "assistant": texts[i + 1], "source": "x"} for i in (0, 2)]
    for messages in (plain, typed, llava, cauldron):
        assert read_conversation(messages, 0) == expected


def test_system_message_is_apart_and_may_have_the_image():
    messages = [{"from": "system", "value": "Be brief. <image>"}, {"from": "human", "value": "What?"}]
    messages.append({"from": "gpt", "value": "A cup."})
    assert read_conversation(messages, 0) == ("Be brief.", [("What?", "A cup.")], 1)


def _messages(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no messages"),
        (None, "no messages"),
        ({"role": ["user"], "content": ["q"]}, "no messages: expected is a list"),
        (["q", "a"], "the message 'q'; expected is a dict"),
        (_messages(("system", "s")), r"messages of \['system'\]"),
        (_messages(("user", "q")), r"messages of \['user'\]"),
        (_messages(("assistant", "a"), ("user", "q")), r"messages of \['assistant', 'user'\]"),
        (_messages(("user", "q"), ("user", "q"), ("assistant", "a")), "user and assistant in turns"),
        (_messages(("user", "q"), ("assistant", "a"), ("user", "q")), "an answer at the end"),
        (_messages(("user", "q"), ("system", "s"), ("assistant", "a")), "user and assistant in turns"),
        (_messages(("user", "q"), ("tool", "t")), "message of 'tool'; known are system, user"),
        (_messages(("user", " "), ("assistant", "a")), "empty question"),
        (_messages(("system", "s"), ("user", "<image>"), ("assistant", "a")), "empty question"),
        (_messages(("user", "q"), ("assistant", None)), "empty answer"),
        (_messages(("user", [{"type": "video"}]), ("assistant", "a")), "item {'type': 'video'}"),
        (_messages(("user", [{"type": "text", "text": None}]), ("assistant", "a")), "expected is text, or a list"),
        (_messages(("user", 3), ("assistant", "a")), "expected is text, or a list"),
        (_messages(("user", "q"), ("assistant", "<image> a")), "image in message 1 .of the assistant"),
        (
            _messages(("user", "q"), ("assistant", "a"), ("user", [{"type": "image"}]), ("assistant", "a")),
            "image in message 2 .of the user",
        ),
        ([{"speaker": "user", "words": "q"}], r"the keys \['speaker', 'words'\]"),
    ],
)
def test_bad_conversations_are_refused(messages, message):
    with pytest.raises(ValueError, match=f"Row 7 has .*{message}"):
        read_conversation(messages, 7)


def test_placeholders_are_as_many_as_the_images_or_none():
    check_placeholders(0, 3, 7)
    check_placeholders(2, 2, 7)
    for number, images in ((1, 2), (2, 1), (1, 0)):
        with pytest.raises(
            ValueError, match=f"Row 7 has {number} image placeholders in its words, but {images} images"
        ):
            check_placeholders(number, images, 7)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("two", "two"),
        (["two"], "two"),
        (["two", "three", "three"], "three"),
        (["one", "two", "three", "three", "two"], "two"),
        ([{"answer": "net", "answer_id": 1}, {"answer": "nets", "answer_id": 2}, {"answer": "nets"}], "nets"),
    ],
)
def test_answer_is_the_most_frequent_one(answer, expected):
    assert read_answer(answer, 0) == expected


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (3, "answer 3 of type int; expected is text"),
        (None, "type NoneType"),
        ([], "empty list"),
        ([""], "empty answer"),
        ("an <image>", "<image> in the answer"),
    ],
)
def test_bad_answers_are_refused(answer, message):
    with pytest.raises(ValueError, match=f"Row 7 has .*{message}"):
        read_answer(answer, 7)


def test_captions_are_gone_through_in_turn():
    assert [read_caption(["a", "b", "c"], row) for row in range(5)] == ["a", "b", "c", "a", "b"]
    assert read_caption("a", 4) == "a"
    for caption, message in (([], "empty list of captions"), ("", "empty caption"), (None, "type NoneType")):
        with pytest.raises(ValueError, match=f"Row 7 has .*{message}"):
            read_caption(caption, 7)


def test_images_are_a_list():
    image = Image.new("RGB", (2, 2))
    assert read_images(None, 7) == []
    assert read_images(image, 7) == [image]
    assert read_images([image, image], 7) == [image, image]
    for value, name in (("a.png", "str"), ({"bytes": b"", "path": None}, "dict"), ([image, None], "NoneType")):
        with pytest.raises(ValueError, match=f"Row 7 has an image of type {name}.*cast_column"):
            read_images(value, 7)


def test_boxes_as_json_are_corners_in_pixels():
    objects = {"bbox": [[10, 20, 30, 40.4], [0, 0, 200, 100], [1, 2, 3, 4]], "category": ["cup", "große Schale", "cup"]}
    question, answer = read_boxes(objects, Image.new("RGB", (200, 100)), 0, None, "json")
    assert question == "detect cup ; große Schale"
    assert json.loads(answer) == [
        {"bbox_2d": [10, 20, 40, 60], "label": "cup"},
        {"bbox_2d": [0, 0, 200, 100], "label": "große Schale"},
        {"bbox_2d": [1, 2, 4, 6], "label": "cup"},
    ]
    assert "große" in answer


def test_boxes_as_locations_are_1024ths_of_the_image():
    # In an image of 200 x 100: y 25/100 and x 50/200 are 256/1024; y 75.1/100 is 769.02 and x 199/200 is 1018.88
    objects = {"bbox": [[50, 25, 149, 50.1], [0, 0, 200, 100]], "category": [1, 0]}
    question, answer = read_boxes(objects, np.zeros((100, 200, 3)), 0, ["cup", "plate"], "loc")
    assert question == "detect plate ; cup"
    assert answer == "<loc0256><loc0256><loc0769><loc1018> plate ; <loc0000><loc0000><loc1023><loc1023> cup"


def test_boxes_may_pass_the_edge_by_rounding_only():
    objects = {"bbox": [[-0.01, 0, 200.02, 100.01]], "category": ["cup"]}
    for box_format, expected in (("json", "[0, 0, 200, 100]"), ("loc", "<loc0000><loc0000><loc1023><loc1023>")):
        assert expected in read_boxes(objects, Image.new("RGB", (200, 100)), 0, None, box_format)[1]


@pytest.mark.parametrize(
    "box",
    [
        [-1, 0, 10, 10],
        [0, -1, 10, 10],
        [195, 0, 10, 10],
        [0, 95, 10, 10],
        [300, 300, 10, 10],
        [5, 5, 0, 10],
        [5, 5, 10, -1],
        [float("nan"), 5, 10, 10],
        [5, 5, float("nan"), 10],
    ],
)
def test_boxes_outside_or_without_size_are_refused(box):
    with pytest.raises(ValueError, match="Row 7 has the box") as error:
        read_boxes({"bbox": [box], "category": ["cup"]}, Image.new("RGB", (200, 100)), 7, None, "json")
    assert str(box) in str(error.value)
    assert "200 x 100" in str(error.value)


@pytest.mark.parametrize(
    ("boxes", "categories", "names", "message"),
    [
        ([], [], None, "0 boxes"),
        ([[0, 0, 1, 1]], ["a", "b"], None, "1 boxes and 2 categories"),
        ([[0, 0, 1, 1]], [1], None, "category 1 of type int"),
        ([[0, 0, 1, 1]], [""], None, "empty category"),
        ([[0, 0, 1, 1]], [-1], ["cup"], "category -1; the dataset has names for 0 to 0"),
    ],
)
def test_boxes_without_names_are_refused(boxes, categories, names, message):
    with pytest.raises(ValueError, match=f"Row 7 has .*{message}"):
        read_boxes({"bbox": boxes, "category": categories}, Image.new("RGB", (4, 4)), 7, names, "json")

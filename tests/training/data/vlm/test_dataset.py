"""Datasets with the columns that they have on the Hub, as examples."""

import json

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image

from kivla.simulation import make_questions
from kivla.training.data.vlm.dataset import StreamedRows, VLMDataset

PICTURE = datasets.Image()
# As a dataset gives them: pictures of another PIL class are not equal
RED, BLUE = (
    PICTURE.decode_example(PICTURE.encode_example(Image.new("RGB", (200, 100), color))) for color in ("red", "blue")
)
CONVERSATION = [
    {"from": "human", "value": "<image>\nWhat is this?"},
    {"from": "gpt", "value": "A cup."},
    {"from": "human", "value": "Is it red?"},
    {"from": "gpt", "value": "Yes."},
]
SHORT = [{"from": "human", "value": "What is this?\n<image>"}, {"from": "gpt", "value": "A plate."}]


def _rows(columns: dict, **features) -> Dataset:
    """Rows with one picture or a list of pictures for each; the features of the other columns are inferred."""
    inferred = Dataset.from_dict({name: column for name, column in columns.items() if name not in ("image", "images")})
    images = {"image": PICTURE, "images": List(PICTURE)}
    features = {**inferred.features, **{name: images[name] for name in images if name in columns}, **features}
    return Dataset.from_dict(columns, Features(features))


def _llava(*conversations, images=None) -> Dataset:
    return _rows({"id": list(range(len(conversations))), "image": images or [RED] * len(conversations),
                  "conversations": list(conversations)})  # fmt: skip


def test_rows_become_examples():
    rows = make_questions(2, seed=0)
    for example, row in zip(VLMDataset(rows), rows, strict=True):
        question, answer = row["messages"]
        assert example["text"] == question["content"][1]["text"]
        assert example["response"] == answer["content"][0]["text"]
        assert example["images"] == row["images"]


def test_longer_conversations_become_lists():
    rows = make_questions(2, seed=0, multi_turn=True)
    data = VLMDataset(rows)
    assert len(data) == len(rows)
    for example, row in zip(data, rows, strict=True):
        words = [message["content"][-1]["text"] for message in row["messages"]]
        assert len(example["text"]) == len(words) // 2 > 1
        assert example["text"] == words[::2]
        assert example["response"] == words[1::2]
        assert example["images"] == row["images"]


def test_split_conversations_are_the_questions_one_by_one():
    options = {"num_scenes": 3, "seed": 0}
    split = VLMDataset(make_questions(**options, multi_turn=True), turns="split")
    assert list(split) == list(VLMDataset(make_questions(**options)))


def test_llava_conversations():
    rows = _llava(CONVERSATION, SHORT, images=[RED, BLUE])
    first, second = VLMDataset(rows)
    assert first == {"images": [RED], "text": ["What is this?", "Is it red?"], "response": ["A cup.", "Yes."]}
    assert second == {"images": [BLUE], "text": "What is this?", "response": "A plate."}


def test_split_turns_of_conversations_of_different_lengths():
    data = VLMDataset(_llava(SHORT, CONVERSATION, SHORT, images=[BLUE, RED, BLUE]), turns="split")
    plate = {"images": [BLUE], "text": "What is this?", "response": "A plate."}
    cup = {"images": [RED], "text": "What is this?", "response": "A cup."}
    red = {"images": [RED], "text": "Is it red?", "response": "Yes."}
    assert list(data) == [plate, cup, red, plate]
    assert len(data) == 4
    assert data[-2] == red
    with pytest.raises(IndexError, match="Index 4 is out of range for 4 examples"):
        data[4]


def test_counting_turns_does_not_decode_images():
    damaged = _llava(CONVERSATION, SHORT).cast_column("image", datasets.Image(decode=False))
    damaged = damaged.map(lambda row: {"image": {"bytes": b"damaged"}}).cast_column("image", datasets.Image())
    data = VLMDataset(damaged, turns="split")
    assert len(data) == 3
    with pytest.raises(OSError, match="cannot identify image file"):
        data[0]


def test_system_words_are_in_front_of_the_first_question_of_an_example():
    rows = _llava([{"from": "system", "value": "Be brief."}, *CONVERSATION])
    assert VLMDataset(rows)[0]["text"] == ["Be brief.\nWhat is this?", "Is it red?"]
    split = VLMDataset(rows, turns="split")
    assert [example["text"] for example in split] == ["Be brief.\nWhat is this?", "Be brief.\nIs it red?"]


def test_empty_system_message_is_left_out():
    rows = _llava([{"from": "system", "value": ""}, *SHORT])
    assert VLMDataset(rows)[0]["text"] == "What is this?"


def test_the_cauldron():
    texts = [{"user": "What is this?", "assistant": "A cup.", "source": "AI2D"}]
    more = [*texts, {"user": "Is it red?", "assistant": "Yes.", "source": "AI2D"}]
    data = VLMDataset(_rows({"images": [[RED, BLUE], [RED]], "texts": [texts, more]}))
    assert data.layout == "messages"
    assert data[0] == {"images": [RED, BLUE], "text": "What is this?", "response": "A cup."}
    assert data[1] == {"images": [RED], "text": ["What is this?", "Is it red?"], "response": ["A cup.", "Yes."]}


def test_text_only_rows_have_no_images():
    rows = _llava([{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}], images=[None])
    assert VLMDataset(rows)[0] == {"images": [], "text": "Two and two?", "response": "Four."}


def test_chat_without_a_column_of_images(tmp_path):
    """SmolTalk and the like; a placeholder without a picture is refused all the same."""
    chat = [{"role": "user", "content": "What is tea?"}, {"role": "assistant", "content": "A drink."}]
    rows = Dataset.from_dict({"messages": [chat], "source": ["everyday"]})
    expected = {"images": [], "text": "What is tea?", "response": "A drink."}
    assert VLMDataset(rows)[0] == VLMDataset(rows, turns="split")[0] == expected
    assert VLMDataset(rows).size_of(0)[0] == 0
    rows.to_parquet(tmp_path / "train.parquet")
    assert VLMDataset.load(tmp_path)[0] == expected
    (tmp_path / "chat.json").write_text(json.dumps([{"messages": chat}]))
    assert VLMDataset.load(tmp_path / "chat.json")[0] == expected
    with pytest.raises(ValueError, match="Row 0 has 1 image placeholders in its words, but 0 images"):
        VLMDataset(Dataset.from_dict({"messages": [[{**chat[0], "content": "<image> What?"}, chat[1]]]}))[0]


def test_vqa_v2_and_the_most_frequent_answer():
    answers = [{"answer": text, "answer_confidence": "yes", "answer_id": 1} for text in ("net", "nets", "nets")]
    rows = _rows(
        {
            "multiple_choice_answer": ["net"],
            "answers": [answers],
            "image_id": [1],
            "question": ["<image> What is it?"],
            "image": [RED],
        }
    )
    expected = {"images": [RED], "text": "What is it?", "response": "net"}
    assert VLMDataset(rows)[0] == expected
    assert VLMDataset(rows.remove_columns("multiple_choice_answer"))[0] == expected | {"response": "nets"}
    assert VLMDataset(rows, columns={"answer": "answers"})[0] == expected | {"response": "nets"}


def test_chart_qa_with_its_own_column_names():
    rows = _rows({"image": [RED], "query": ["How many?"], "label": [["14"]], "human_or_machine": [0]})
    data = VLMDataset(rows, columns={"question": "query", "answer": "label"})
    assert data.layout == "question_answer"
    assert data[0] == {"images": [RED], "text": "How many?", "response": "14"}
    with pytest.raises(ValueError, match="do not fit any layout"):
        VLMDataset(rows)


def test_captions_and_their_prompt():
    rows = _rows({"image": [RED] * 3, "caption": [["a", "b"]] * 3, "filename": ["x"] * 3})
    assert [example["response"] for example in VLMDataset(rows)] == ["a", "b", "a"]
    assert VLMDataset(rows)[0]["text"] == "caption en"
    assert VLMDataset(rows, prompt="Describe it.")[1] == {"images": [RED], "text": "Describe it.", "response": "b"}
    assert VLMDataset(_rows({"image": [RED], "text": ["a cup"]}))[0]["response"] == "a cup"


def _detection(**features) -> Dataset:
    objects = {
        "bbox_id": [1, 2],
        "category": [1, 0],
        "bbox": [[50, 25, 100, 50], [0, 0, 200, 100]],
        "area": [5000, 20000],
    }
    return _rows({"image_id": [3], "image": [RED], "width": [200], "height": [100], "objects": [objects]}, **features)


OBJECTS = {
    "bbox_id": List(Value("int64")),
    "category": List(ClassLabel(names=["cup", "plate"])),
    "bbox": List(List(Value("float32"), length=4)),
    "area": List(Value("int64")),
}


def test_boxes_with_class_labels():
    rows = _detection(objects=OBJECTS)
    example = VLMDataset(rows)[0]
    assert example["images"] == [RED]
    assert example["text"] == "detect plate ; cup"
    assert json.loads(example["response"]) == [
        {"bbox_2d": [50, 25, 150, 75], "label": "plate"},
        {"bbox_2d": [0, 0, 200, 100], "label": "cup"},
    ]
    assert VLMDataset(rows, box_format="loc")[0]["response"] == (
        "<loc0256><loc0256><loc0768><loc0768> plate ; <loc0000><loc0000><loc1023><loc1023> cup"
    )


def test_boxes_with_names():
    rows = _rows({"image": [RED], "objects": [{"bbox": [[0.0, 0.0, 1.0, 1.0]], "category": ["cup"]}]})
    assert VLMDataset(rows)[0]["text"] == "detect cup"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[0, 0, 1, 1]], "category": [1]}, "numbers with their names"),
        ({"bbox": [[0, 0, 1, 1]], "labels": ["cup"]}, "expected are lists `bbox` and `category`"),
        ([{"bbox": [0, 0, 1, 1], "category": "cup"}], "expected are lists `bbox` and `category`"),
    ],
)
def test_objects_of_another_structure_are_refused_at_once(objects, message):
    with pytest.raises(ValueError, match=message):
        VLMDataset(_rows({"image": [RED], "objects": [objects]}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: _llava(SHORT, SHORT[:1]), r"messages of \['user'\]"),
        (lambda: _llava(SHORT, SHORT, images=[RED, None]), "1 image placeholders in its words, but 0 images"),
        (lambda: _llava(SHORT, [*SHORT, *SHORT]), "an image in message 2"),
        (
            lambda: _rows({"images": [[RED], [RED, RED]], "conversations": [SHORT] * 2}),
            "1 image placeholders in its words, but 2 images",
        ),
        (lambda: _rows({"image": [RED] * 2, "question": ["q", ""], "answer": ["a"] * 2}), "an empty question"),
        (lambda: _rows({"image": [RED] * 2, "question": ["q", "q"], "answer": ["a", None]}), "the answer None"),
        (lambda: _rows({"image": [RED] * 2, "question": ["q"] * 2, "answers": [["a"], []]}), "empty list of answers"),
        (lambda: _rows({"image": [RED, None], "caption": ["a"] * 2}), "0 images; expected is one"),
        (lambda: _rows({"images": [[RED], [RED, RED]], "caption": ["a"] * 2}), "2 images; expected is one"),
        (lambda: _rows({"image": [RED] * 2, "caption": ["a", ""]}), "an empty caption"),
        (
            lambda: _rows({"image": [RED] * 2, "objects": [
                {"bbox": [[0.0, 0.0, x, 1.0]], "category": ["cup"]} for x in (1.0, 300.0)]}),
            r"the box \[0.0, 0.0, 300.0, 1.0\] .*200 x 100",
        ),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_by_their_index(rows, message):
    data = VLMDataset(rows())
    data[0]
    for index in (1, -1):
        with pytest.raises(ValueError, match=f"Row 1 has .*{message}"):
            data[index]


def test_file_names_for_images_are_refused():
    rows = Dataset.from_dict({"image": ["a.jpg"], "conversations": [SHORT]})
    with pytest.raises(ValueError, match=r"Row 0 has an image of type str.*cast_column"):
        VLMDataset(rows)[0]


def test_bad_conversations_are_refused_at_once_when_they_are_split():
    with pytest.raises(ValueError, match=r"Row 1 has messages of \['user'\]"):
        VLMDataset(_llava(SHORT, SHORT[:1]), turns="split")


def test_wrong_options_are_refused_at_once():
    rows = _llava(SHORT)
    for options in ({"turns": "apart"}, {"box_format": "xml"}):
        with pytest.raises(ValueError, match=f"{next(iter(options.values()))}"):
            VLMDataset(rows, **options)
    with pytest.raises(ValueError, match="no rows"):
        VLMDataset(rows.select([]))
    with pytest.raises(TypeError, match="splits train, test"):
        VLMDataset(datasets.DatasetDict(train=rows, test=rows))
    with pytest.raises(TypeError, match="StreamedRows"):
        VLMDataset(rows.to_iterable_dataset())


def test_saved_datasets_are_loaded(tmp_path):
    rows, others = _llava(SHORT, CONVERSATION), _llava(CONVERSATION)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, test=others).save_to_disk(tmp_path / "splits")
    expected = list(VLMDataset(rows, turns="split"))
    assert list(VLMDataset.load(tmp_path / "one", turns="split")) == expected
    assert list(VLMDataset.load(str(tmp_path / "splits"), turns="split")) == expected
    assert list(VLMDataset.load(tmp_path / "splits", split="test")) == list(VLMDataset(others))
    with pytest.raises(ValueError, match="no split 'validation', but train, test"):
        VLMDataset.load(tmp_path / "splits", split="validation")
    with pytest.raises(ValueError, match="written by save_to_disk"):
        VLMDataset.load(tmp_path / "one", streaming=True, num_rows=2)
    with pytest.raises(ValueError, match=r"num_rows=2 is of streams"):
        VLMDataset.load(tmp_path / "one", num_rows=2)


def test_folders_of_files_are_loaded_whole_or_streamed(tmp_path):
    rows = _llava(SHORT, CONVERSATION, SHORT, images=[RED, BLUE, RED])
    rows.to_parquet(tmp_path / "train.parquet")
    expected = list(VLMDataset(rows))
    assert list(VLMDataset.load(tmp_path)) == expected
    streamed = VLMDataset.load(tmp_path, streaming=True, num_rows=3, layout="messages")
    assert isinstance(streamed.rows, StreamedRows)
    assert list(streamed) == expected


@pytest.mark.parametrize("box_format", ["json", "loc"])
def test_streamed_boxes_have_their_class_labels(tmp_path, box_format):
    rows = _detection(objects=OBJECTS)
    rows.to_parquet(tmp_path / "train.parquet")
    stream = datasets.load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train", streaming=True)
    streamed = VLMDataset(StreamedRows(stream, 1), box_format=box_format)
    assert list(streamed) == list(VLMDataset(rows, box_format=box_format))


def test_streams_cannot_be_split_into_turns():
    stream = StreamedRows(_llava(CONVERSATION).to_iterable_dataset(), 1)
    assert VLMDataset(stream)[0]["response"] == ["A cup.", "Yes."]
    with pytest.raises(ValueError, match="turns='split' needs"):
        VLMDataset(stream, turns="split")

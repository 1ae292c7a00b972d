"""JSON beside a folder of pictures, as LLaVA, LLaMA-Factory and ShareGPT have it."""

import base64
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from kivla.training.data.vlm.dataset import StreamedRows, VLMDataset

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
LLAVA = [
    {
        "id": "a1",
        "image": "pictures/red.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat color?"},
            {"from": "gpt", "value": "red"},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "yes"},
        ],
    },
    {
        "id": 2,
        "image": ["pictures/green.png", "pictures/blue.png"],
        "conversations": [
            {"from": "human", "value": "<image><image> Which is green?"},
            {"from": "gpt", "value": "the first"},
        ],
    },
    {"id": None, "conversations": [{"from": "human", "value": "Say hi"}, {"from": "gpt", "value": "hi"}]},
]
LLAMA_FACTORY = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color?"}]},
            {"role": "assistant", "content": "red"},
        ],
        "images": ["pictures/red.png"],
        "system": "Be short.",
    },
    {
        "messages": [
            {"role": "user", "content": "<image>Which color is it?"},
            {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
        ],
        "images": ["pictures/blue.png"],
        "videos": [],
    },
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "pictures").mkdir(parents=True)
    for name, color in COLORS.items():
        Image.new("RGB", (8, 8), color).save(tmp_path / "set" / "pictures" / f"{name}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    return tmp_path / "set"


def write(file, rows, lines=False):
    file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1), encoding="utf-8")
    return file


def colors(example) -> list[tuple]:
    return [image.getpixel((3, 3)) for image in example["images"]]


@pytest.mark.parametrize(("name", "lines"), [("llava.json", False), ("llava.jsonl", True), ("lines.json", True)])
@pytest.mark.parametrize("is_folder", [False, True])
def test_llava(folder, name, lines, is_folder):
    file = write(folder / name, LLAVA, lines)
    data = VLMDataset.load(folder if is_folder else str(file))
    assert len(data) == 3
    first, second, third = data
    assert colors(first) == [COLORS["red"]] and colors(second) == [COLORS["green"], COLORS["blue"]]
    assert first["text"] == ["What color?", "Sure?"] and first["response"] == ["red", "yes"]
    assert second["text"] == "Which is green?" and second["response"] == "the first"
    assert third == {"images": [], "text": "Say hi", "response": "hi"}
    assert [data.size_of(i)[0] for i in range(3)] == [1, 2, 0]
    split = VLMDataset.load(file, turns="split")
    assert [example["response"] for example in split] == ["red", "yes", "the first", "hi"]


def test_llama_factory(folder):
    """With the files that it keeps beside: `dataset_info.json` has no rows."""
    write(folder / "dataset_info.json", {"demo": {"file_name": "demo.json"}})
    write(folder / "demo.json", LLAMA_FACTORY)
    first, second = VLMDataset.load(folder)
    assert first["text"] == "Be short.\nWhat color?" and first["response"] == "red"
    assert second["text"] == "Which color is it?" and second["response"] == "blue"
    assert colors(second) == [COLORS["blue"]]


def test_alpaca(folder):
    rows = [
        {"instruction": "What color?", "input": "", "output": "red", "images": ["pictures/red.png"]},
        {"instruction": "Translate.", "input": "rot", "output": "red", "system": "Be short."},
        {"instruction": "And this?", "output": "green", "history": [["What color?", "red"]]},
    ]
    file = write(folder / "alpaca.json", rows)
    first, second, third = VLMDataset.load(file)
    assert (first["text"], first["response"], colors(first)) == ("What color?", "red", [COLORS["red"]])
    assert (second["text"], second["images"]) == ("Be short.\nTranslate.\nrot", [])
    assert (third["text"], third["response"]) == (["What color?", "And this?"], ["red", "green"])
    assert [example["response"] for example in VLMDataset.load(file, turns="split")] == ["red", "red", "red", "green"]
    table = datasets.Dataset.from_dict({"instruction": ["Say hi"], "input": [None], "output": ["hi"]})
    assert VLMDataset(table)[0] == {"images": [], "text": "Say hi", "response": "hi"}
    with pytest.raises(ValueError, match=r"Row 0 has the history 'before'; expected is a list of \[question, answer\]"):
        VLMDataset.load(write(folder / "bad.json", [{"instruction": "a", "output": "b", "history": "before"}]))[0]


def test_pictures_in_the_messages(folder):
    """As OpenAI and Qwen have them; by their path, or with their content."""
    content = base64.b64encode((folder / "pictures/green.png").read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": "pictures/red.png"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{content}"},
        {"type": "image", "image": "pictures/blue.png"},
        {"type": "text", "text": "What colors?"},
    ]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "red, green, blue"}]}
    (example,) = VLMDataset.load(write(folder / "openai.json", [row]))
    assert colors(example) == list(COLORS.values()) and example["text"] == "What colors?"
    struct = [
        {"type": "text", "text": "What color?", "image": None},
        {"type": "image", "text": None, "image": "red.png"},
    ]
    messages = [
        {"role": "user", "content": struct},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    data = VLMDataset(datasets.Dataset.from_list([{"messages": messages}]), media_dir=folder / "pictures")
    assert colors(data[0]) == [COLORS["red"]] and data.size_of(0)[0] == 1
    with pytest.raises(ValueError, match=r"1 pictures are not in .*: pictures/none.png \(row 0\)"):
        bad = {"messages": [{"role": "user", "content": [{"type": "image", "path": "pictures/none.png"}]}]}
        VLMDataset.load(write(folder / "none.json", [bad]))
    with pytest.raises(ValueError, match=r"Row 0 has the images .*, and others in its messages"):
        VLMDataset.load(write(folder / "two.json", [{**row, "images": ["pictures/red.png"]}]))


@pytest.mark.parametrize(
    ("rows", "options", "text"),
    [
        ([{"image": "pictures/red.png", "question": "What color?", "answer": "red"}], {}, "What color?"),
        ([{"image": "pictures/red.png", "caption": "red"}], {}, "caption en"),
        (
            [{"image": "pictures/red.png", "query": "Color?", "label": "red"}],
            {"columns": {"question": "query", "answer": "label"}},
            "Color?",
        ),
        (
            [{"picture": "pictures/red.png", "chat": LLAVA[0]["conversations"][:2]}],
            {"columns": {"images": "picture", "messages": "chat"}},
            "What color?",
        ),
    ],
)
def test_other_layouts_with_paths(folder, rows, options, text):
    (example,) = VLMDataset.load(write(folder / "rows.jsonl", rows, lines=True), **options)
    assert (example["text"], example["response"], colors(example)) == (text, "red", [COLORS["red"]])


@pytest.mark.parametrize("column", [["pictures/red.png"], [["pictures/red.png"]]], ids=["one", "a list"])
def test_paths_in_any_dataset(folder, column):
    """In rows of `datasets`, in Parquet and streamed."""
    rows = datasets.Dataset.from_dict({"image": column, "question": ["What?"], "answer": ["red"]})
    rows.to_parquet(folder / "train.parquet")
    every = [
        VLMDataset(rows, media_dir=folder),
        VLMDataset.load(folder),
        VLMDataset.load(folder, streaming=True, num_rows=1),
    ]
    for data in every:
        assert colors(data[0]) == [COLORS["red"]]


def test_splits_are_files(folder):
    write(folder / "train.json", LLAVA)
    write(folder / "test.json", LLAMA_FACTORY)
    assert len(VLMDataset.load(folder)) == 3
    assert len(VLMDataset.load(folder, split="test")) == 2
    assert len(VLMDataset.load(folder, split="train[:34%]+test")) == 3
    with pytest.raises(ValueError, match="has the splits test, train"):
        VLMDataset.load(folder, split="validation")
    with pytest.raises(ValueError, match="has the splits train"):
        VLMDataset.load(folder / "test.json", split="test")


def test_pictures_elsewhere(folder, tmp_path):
    """Relative to a folder of their own; absolute paths within it; and links, as the Hub's cache has."""
    (tmp_path / "disk").symlink_to(folder / "pictures")
    for name in ("red.png", str(tmp_path / "disk" / "red.png")):
        file = write(tmp_path / "rows.json", [{"image": name, "caption": "red"}])
        with pytest.raises(ValueError, match="--vlm_media_dir"):
            VLMDataset.load(file, media_dir=tmp_path / "nowhere")
        (example,) = VLMDataset.load(file, media_dir=tmp_path / "disk")
        assert colors(example) == [COLORS["red"]]


@pytest.mark.parametrize("name", ["../outside.png", "pictures/../../outside.png", "/etc/passwd", "https://a.b/c.png"])
def test_paths_that_leave_the_folder_are_refused(folder, name):
    file = write(folder / "rows.json", [LLAVA[0], {**LLAVA[0], "image": name}])
    with pytest.raises(ValueError, match=r"Row 1: the picture '.*' is not in .*set"):
        VLMDataset.load(file)
    rows = datasets.Dataset.from_dict({"image": [name], "caption": ["a"]}).to_iterable_dataset()
    with pytest.raises(ValueError, match="Row 0: the picture"):
        VLMDataset(StreamedRows(rows, 1), media_dir=folder)[0]


def test_missing_pictures_are_named_at_once(folder):
    names = ["pictures/red.png", *(f"pictures/{i}.png" for i in range(7)), ""]
    file = write(folder / "rows.json", [{"image": name, "caption": "a"} for name in names])
    with pytest.raises(ValueError, match=r"^7 pictures are not in .*: pictures/0.png \(row 1\), .*4.png .* and 2 more"):
        VLMDataset.load(file)


def test_a_damaged_picture_is_named_with_its_row(folder):
    (folder / "pictures" / "blue.png").write_bytes(b"no picture")
    data = VLMDataset.load(write(folder / "rows.json", LLAMA_FACTORY))
    assert data[0]["images"]
    with pytest.raises(ValueError, match=r"Row 1: the image '.*blue.png' cannot be read"):
        data[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{}", "rows.json is no JSON: "),
        ('{"image": "a"}\n{"image"', "rows.json is no JSON, line 2"),
        (b"\xff\xfe{", "rows.json is no JSON: .*utf-8"),
        ("[]", "has no rows"),
        ("", "has no rows"),
        ("[1]", "row 0 is 1; expected is a map"),
        (json.dumps([{**LLAMA_FACTORY[0], "videos": ["a.mp4"]}]), "row 0 has videos; only pictures are read"),
        (json.dumps([{"messages": [{"role": "tool", "content": "x"}]}]), "Row 0 has a message of 'tool'"),
        (json.dumps([{"conversations": [{"from": "human"}]}]), "Row 0 has a message with the keys"),
        (json.dumps([{"image": "pictures/red.png", "answer": "a", "question": q} for q in ("a", 1)]), "one type"),
        (json.dumps([{"messages": [{"role": ["user"], "content": "x"}]}]), r"Row 0 has a message of \['user'\]"),
        (json.dumps([{"messages": [{"role": "user", "content": [5]}]}]), "Row 0 has a message with the item 5"),
        ("[" * 100_000, "is no JSON"),
        (json.dumps([{"image": 5, "caption": "a"}]), "rows.json: Row 0 has the image 5; expected is a path"),
        (json.dumps([{"images": [None], "caption": "a"}]), r"the image \[None\]"),
    ],
)
def test_damaged_files_are_refused_with_the_place(folder, content, message):
    file = folder / "rows.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        VLMDataset.load(file)


def test_what_a_file_cannot_have_is_refused(folder):
    file = write(folder / "rows.json", LLAVA)
    for options in ({"streaming": True, "num_rows": 3}, {"config": "ai2d"}):
        with pytest.raises(ValueError, match="is JSON: it is read whole"):
            VLMDataset.load(file, **options)


def test_every_kind_of_picture_is_the_same_as_elsewhere(folder):
    """One conversion: 16 bits by path are not white."""
    Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)).save(folder / "pictures" / "deep.png")
    (example,) = VLMDataset.load(write(folder / "rows.json", [{"image": "pictures/deep.png", "caption": "grey"}]))
    assert colors(example) == [(0x80,) * 3]

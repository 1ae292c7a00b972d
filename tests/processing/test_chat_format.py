"""Prompts are those of the training: whatever the chat template would write on another day, or in another version."""

import copy
import datetime
import json
import logging
import random

import pytest
import torch
from transformers.utils import chat_template_utils

from kivla.processing import KIVLAProcessor
from kivla.processing.chat_format import ChatFormats, chat_format
from tests.helpers.vlm_processors import LLAVA, each_kind
from tests.processing.test_processing_kivla import (
    LONG,
    QUESTION,
    SHORT,
    STATISTICS,
    WITHOUT_IMAGES,
    columns,
    image,
    make,
    observation,
    vlm_processor,
)

DATED = "SYSTEM: Today is {{ strftime_now('%d %b %Y') }}. " + LLAVA
MANY = QUESTION | {"images": [image(i) for i in range(9)]}


def processor(template: str = DATED) -> KIVLAProcessor:
    vlm = copy.deepcopy(vlm_processor("llava"))
    vlm.chat_template = template
    return KIVLAProcessor(vlm, statistics=STATISTICS, chunk_size=4, max_action_dim=4, max_state_dim=3)


@pytest.fixture
def on(monkeypatch):
    """Sets the day that chat templates see."""

    def set_day(day: int, month: int):
        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2026, month, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)

    return set_day


def batches(processor: KIVLAProcessor) -> list[dict]:
    turns = QUESTION | {"text": ["Hi?", "What is it?"], "response": ["Hello.", "a cup"]}
    return [
        processor(**columns(LONG, SHORT, QUESTION, WITHOUT_IMAGES)),
        processor(**columns(observation(LONG), observation(SHORT))),
        processor(**columns(turns)),
    ]


def assert_same_prompts(one: KIVLAProcessor, other: KIVLAProcessor):
    for batch, again in zip(batches(one), batches(other), strict=True):
        assert batch.keys() == again.keys()
        for name in batch:
            assert torch.equal(batch[name], again[name]), name


def test_a_policy_of_may_acts_in_june_with_the_same_prompt(on, tmp_path):
    on(3, 5)
    made_in_may = processor()
    made_in_may.save_pretrained(tmp_path)
    assert "Today is 03 May 2026." in made_in_may.tokenizer.decode(batches(made_in_may)[0]["input_ids"][0])
    on(21, 6)
    assert "Today is 21 Jun 2026." in processor().tokenizer.decode(batches(processor())[0]["input_ids"][0])
    loaded = KIVLAProcessor.from_pretrained(tmp_path)
    assert_same_prompts(loaded, made_in_may)
    assert loaded.to_dict() == made_in_may.to_dict()
    loaded.save_pretrained(tmp_path / "again")
    assert_same_prompts(KIVLAProcessor.from_pretrained(tmp_path / "again"), made_in_may)
    # with more images than were rendered in May
    for late in (loaded, made_in_may):
        with pytest.raises(ValueError, match=r"(?s)Example 0.*none with 9.*writes another prompt by now.*Use fewer"):
            late(**columns(MANY))
    on(3, 5)
    made_in_may(**columns(MANY))


def test_the_date_is_said(on, caplog):
    on(3, 5)
    with caplog.at_level(logging.WARNING):
        make("llava")
        assert not caplog.records
        processor()
    assert "writes the date. The prompts of this policy keep that of today" in caplog.text


def test_another_template_in_the_folder_changes_no_prompt(tmp_path):
    """A later version of a library may write its templates otherwise."""
    made = processor(LLAVA)
    made.save_pretrained(tmp_path)
    (file,) = (tmp_path / "vlm_processor").glob("*.jinja")
    file.write_text("NEW " + file.read_text())
    assert_same_prompts(KIVLAProcessor.from_pretrained(tmp_path), made)


def test_a_system_prompt_that_is_drawn(tmp_path):
    """It is drawn once, and the answer still begins as the template has it."""
    random.seed(0)
    drawn = "{{ range(1000) | random }} " + LLAVA
    made = processor(drawn)
    made.save_pretrained(tmp_path)
    loaded = KIVLAProcessor.from_pretrained(tmp_path)
    assert_same_prompts(loaded, made)
    for frame in loaded.to_dict()["prompt_frames"].values():
        assert (frame["after"], frame["lead"]) == (" ASSISTANT:", " ")


def test_processors_of_before_have_the_prompts_of_today(tmp_path):
    made = processor(LLAVA)
    made.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    for name in ("prompt_frames", "responds_first"):
        del settings[name]
    file.write_text(json.dumps(settings))
    assert_same_prompts(KIVLAProcessor.from_pretrained(tmp_path), made)


def test_a_template_that_is_set_too_late_is_refused():
    made = processor(LLAVA)
    made.vlm_processor.chat_template = DATED
    with pytest.raises(ValueError, match=r"chat template was changed after this processor was made.*make a new"):
        made(**columns(LONG))


def test_templates_that_refuse_some_numbers_of_images():
    """One image is enough to be a VLM; the others are refused where they are asked for, in the template's words."""
    template = "{% if messages[0]['content'] | length != 2 %}{{ raise_exception('one image, please') }}{% endif %}"
    made = processor(template + LLAVA)
    made(**columns(QUESTION))
    assert list(made.to_dict()["prompt_frames"]) == ["1"]
    for example in (LONG, WITHOUT_IMAGES):
        with pytest.raises(Exception, match="one image, please"):
            made(**columns(example))


@each_kind
def test_frames_are_kept_for_every_vlm(name):
    """What is saved is what the template writes, and it is enough: a processor with a broken template still works."""
    made = make(name)
    saved = json.loads(json.dumps(made.to_dict()["prompt_frames"]))
    assert list(saved) == [str(number) for number in range(9)]
    vlm = copy.deepcopy(made.vlm_processor)
    for number in (0, 1, 2, 8):
        assert ChatFormats(vlm, saved=saved)[number] == chat_format(vlm, number)
    if vlm.chat_template:
        vlm.chat_template = "{{ raise_exception('never asked') }}"
    assert ChatFormats(vlm, saved=saved)[2] == chat_format(made.vlm_processor, 2)
    assert "10" in ChatFormats(made.vlm_processor, most_images=10).to_dict()


FRAME = {"before": "", "after": "", "lead": "", "closing": "<eos>", "between": ""}


@pytest.mark.parametrize(
    "frames",
    [
        {},
        {"2": FRAME},
        {"1": FRAME, "one": FRAME},
        {"1": FRAME, "1" * 5000: FRAME},
        {"1": "a"},
        {"1": FRAME | {"closing": ""}},
        {"1": FRAME | {"lead": 3}},
        {"1": FRAME | {"more": ""}},
        {"1": {"before": ""}},
        {"1": FRAME, "-1": FRAME},
    ],
)
def test_damaged_frames_are_refused(frames):
    with pytest.raises(ValueError, match="prompt_frames"):
        make(prompt_frames=frames)

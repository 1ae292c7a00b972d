"""KIVLAProcessor with the real processors of many VLMs, and the models that take what it makes."""

import copy
import json
import os
import subprocess
import sys
from functools import cache, partial

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import normalizers
from transformers import AutoProcessor

from kivla.processing import (
    ActionDecodingFailure,
    BinningActionTokenizer,
    FASTActionTokenizer,
    KIVLAProcessor,
    Normalizer,
    compute_statistics,
)
from kivla.processing.chat_format import chat_format
from tests.helpers.families import FAMILIES
from tests.helpers.tolerance import assert_close_relative
from tests.helpers.vlm_processors import KINDS, each_kind

CHUNK, WIDTH, STATE = 4, 3, 2

_random = np.random.default_rng(0)
TRAJECTORIES = 5 + np.cumsum(_random.normal(size=(40, CHUNK, WIDTH)), axis=1)  # robot units
STATISTICS = {
    "actions": compute_statistics(TRAJECTORIES.reshape(-1, WIDTH)),
    "state": compute_statistics(_random.normal(size=(100, STATE))),
}
NORMALIZED = Normalizer(STATISTICS["actions"]).normalize(TRAJECTORIES)
FAST = FASTActionTokenizer.fit(NORMALIZED, vocab_size=128, scale=10)


def image(seed: int = 0, height: int = 10, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


LONG = {
    "images": [image(1), image(2, 20, 9)],
    "text": "pick up the red cup",
    "state": np.array([0.1, -0.4]),
    "actions": TRAJECTORIES[0],
    "response": None,
}
SHORT = {
    "images": [image(3, 30, 14)],
    "text": "go",
    "state": np.array([-0.9, 1.2]),
    "actions": TRAJECTORIES[1],
    "response": "move to the cup",
}
QUESTION = {"images": [image(4)], "text": "What is it?", "response": "a cup"}
WITHOUT_IMAGES = {"images": [], "text": "Say yes.", "response": "yes"}


def columns(*examples: dict) -> dict:
    keys = ("images", "text", "state", "actions", "response", "action_is_pad")
    return {key: [example.get(key) for example in examples] for key in keys}


def observation(example: dict) -> dict:
    return {key: example[key] for key in ("images", "text", "state")}


@cache
def vlm_processor(name: str):
    try:
        return KINDS[name].processor()
    except ImportError as error:  # an older transformers
        pytest.skip(str(error))


def make(name: str = "paligemma", action_tokenizer=FAST, statistics=STATISTICS, **options) -> KIVLAProcessor:
    options = {"chunk_size": CHUNK, "max_action_dim": WIDTH + 1, "max_state_dim": STATE + 1, **options}
    options = {"action_token_placement": KINDS[name].placement, **options}
    return KIVLAProcessor(copy.deepcopy(vlm_processor(name)), action_tokenizer, statistics, **options)


@cache
def shared(name: str = "paligemma") -> KIVLAProcessor:
    return make(name)


@cache
def policy(name: str = "paligemma", state_encoding: str = "text"):
    return KINDS[name].policy(
        chunk_size=CHUNK, max_action_dim=WIDTH + 1, max_state_dim=STATE + 1, state_encoding=state_encoding
    )


def real(batch, key: str, i: int = 0) -> list[int]:
    """Row i of a per-token tensor, padding cut off."""
    return batch[key][i][batch["attention_mask"][i].bool()].tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Every kind of VLM
# ---------------------------------------------------------------------------------------------------------------------


@each_kind
def test_batches_train_act_and_talk(name):
    processor, model = shared(name), policy(name)
    batch = processor(**columns(LONG, SHORT, QUESTION, WITHOUT_IMAGES))
    assert processor.vocab_size <= model.get_input_embeddings().num_embeddings
    out = model(**batch)
    assert torch.isfinite(out.token_loss) and torch.isfinite(out.flow_loss)
    out.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    model.zero_grad()
    inputs = processor(**columns(observation(LONG), observation(SHORT)))
    chunk = model.sample_actions(**inputs, num_steps=2)
    assert chunk.shape == (2, CHUNK, WIDTH + 1) and torch.isfinite(chunk).all()
    assert chunk[..., :WIDTH].all(), "a dimension of the robot was left out"
    assert not chunk[..., WIDTH:].any(), "a dimension that the robot does not have was filled"
    assert processor.unnormalize_actions(chunk).shape == (2, CHUNK, WIDTH)
    text = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert text.shape == (2, inputs["input_ids"].shape[1] + 2)


@each_kind
def test_an_example_in_a_batch_gives_what_it_gives_alone(name):
    processor, model = shared(name), policy(name)
    examples = [LONG, SHORT, WITHOUT_IMAGES | {"state": LONG["state"], "actions": TRAJECTORIES[2]}]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(examples), CHUNK, WIDTH + 1, generator=generator)
    timestep = torch.rand(len(examples), generator=generator)
    inputs = processor(**columns(*map(observation, examples)))
    with torch.no_grad():
        together = model(**processor(**columns(*examples)), noise=noise, timestep=timestep)
        chunks = model.sample_actions(**inputs, noise=noise, num_steps=2)
        alone = [
            model(**processor(**columns(example)), noise=noise[i : i + 1], timestep=timestep[i : i + 1])
            for i, example in enumerate(examples)
        ]
    # Chunked linear attention (qwen3_5) sums a shifted sequence in quite another order.
    close = partial(assert_close_relative, roundings=1024)
    close(together.velocity, torch.cat([out.velocity for out in alone]), what="velocity")
    close(together.logits, torch.cat([out.logits for out in alone]), what="logits")
    for i, example in enumerate(examples):
        single = processor(**columns(observation(example)))
        assert real(inputs, "input_ids", i) == single["input_ids"][0].tolist()
        chunk = model.sample_actions(**single, noise=noise[i : i + 1], num_steps=2)
        close(chunks[i], chunk[0], what=f"actions of example {i}")


@each_kind
def test_labels_are_the_suffix_and_nothing_else(name):
    processor = shared(name)
    batch = processor(**columns(LONG, SHORT, QUESTION))
    frame = chat_format(processor.vlm_processor, 1)
    for i, example in enumerate([LONG, SHORT, QUESTION]):
        ids, labels = np.array(real(batch, "input_ids", i)), np.array(real(batch, "labels", i))
        visible = np.array(real(batch, "expert_attention_mask", i))
        start = int((labels != -100).argmax())
        assert (labels[:start] == -100).all() and (labels[start:] == ids[start:]).all()
        assert visible[:start].all() and not visible[start:].any()
        actions = ""
        if "actions" in example:
            (codes,) = FAST.encode(processor.robot().actions.normalize(example["actions"])[None])
            actions = processor.tokenizer.decode(processor.action_token_ids[codes])
        said = "" if example["response"] is None else frame.lead + example["response"]
        assert processor.tokenizer.decode(labels[start:]) == said + actions + frame.closing
        assert not set(ids[:start]) & set(processor.action_token_ids), "action tokens in the prompt"
    padding = ~batch["attention_mask"].bool()
    assert padding.any() and not batch["expert_attention_mask"][padding].any()
    assert (batch["labels"][padding] == -100).all()
    assert not padding[:, 0].any(), "training batches are padded on the right"


@each_kind
@pytest.mark.parametrize("example", [LONG, SHORT, QUESTION], ids=["long", "short", "question"])
def test_prompt_is_the_same_in_training_and_inference(name, example):
    processor = shared(name)
    kind = "action" if "actions" in example else "text"
    inputs = {key: value for key, value in example.items() if key in ("images", "text", "state")}
    training = processor(**columns(example))
    inference = processor(**columns(inputs), prompt_kind=kind)
    prefix = training["labels"][0] == -100
    assert training["input_ids"][0][prefix].tolist() == inference["input_ids"][0].tolist()
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in inference:
            assert training[key][0][prefix].tolist() == inference[key][0].tolist()
    for key in inference.keys() - training.keys():
        assert key in ("action_mask", "state")
    assert inference["expert_attention_mask"].all()
    assert "labels" not in inference and "actions" not in inference


@each_kind
def test_token_types(name):
    processor, kind = shared(name), KINDS[name]
    batch = processor(**columns(LONG, SHORT))
    # Gemma 3n's processor gives some that its model has no use for
    expected = FAMILIES[kind.family].token_types or {"gemma3n": {"token_type_ids": "image"}}.get(name, {})
    assert {key for key in batch if "token_type" in key} == expected.keys()
    image_ids = torch.tensor([i for i in processor.vlm_processor.image_token_ids if i is not None])
    for key, marks in expected.items():
        marked = batch["labels"] != -100 if marks == "suffix" else torch.isin(batch["input_ids"], image_ids)
        if key == "moe_mm_token_type_ids":  # what stands around pictures goes to the same experts
            around = processor.tokenizer.convert_tokens_to_ids(["<|IMAGE_START|>", "<|IMAGE_END|>"])
            marked |= torch.isin(batch["input_ids"], torch.tensor(around))
        assert marked.any() and torch.equal(batch[key], marked.long()), key


@each_kind
def test_a_question_is_put_as_the_vlm_was_trained(name):
    """With the image and the words alone, our ids are those of the VLM's own processor."""
    processor, theirs = shared(name), vlm_processor(name)
    pictures = [Image.fromarray(image(1)), Image.fromarray(image(2, 20, 9))]
    ours = processor(images=[pictures], text=["What is it?"], prompt_kind="text")
    if theirs.chat_template is None:
        images = pictures if name == "got_ocr2" else [pictures]
        expected = theirs(text=[theirs.image_token * 2 + "What is it?"], images=images, return_tensors="pt")
    else:
        content = [*({"type": "image", "image": picture} for picture in pictures)]
        content.append({"type": "text", "text": "What is it?"})
        expected = theirs.apply_chat_template(
            [[{"role": "user", "content": content}]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt"},
        )
    assert torch.equal(ours["input_ids"], torch.as_tensor(expected["input_ids"]))
    assert (ours["input_ids"] == processor.tokenizer.bos_token_id).sum() <= 1, "BOS twice"
    image_tensors = [
        key for key in expected if key not in ("input_ids", "attention_mask", "labels") and "type" not in key
    ]
    assert any("pixel_values" in key for key in image_tensors)
    for key in image_tensors:
        assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(expected[key])), key
    assert "action_mask" not in ours


@each_kind
def test_action_tokens_decode_to_the_chunk(name):
    processor = shared(name)
    batch = processor(**columns(LONG, SHORT))
    for i, chunk in enumerate(processor.decode_actions(batch["labels"])):
        error = np.abs(chunk - batch["actions"][i, :, :WIDTH].numpy()).max()
        assert error <= FAST.quantization_error_bound(CHUNK) + 1e-6
    # what a model says after the prompt, with the prompt in front
    assert np.array_equal(processor.decode_actions(batch["input_ids"])[1], chunk)


# ---------------------------------------------------------------------------------------------------------------------
# Prompts
# ---------------------------------------------------------------------------------------------------------------------


def test_prompt_is_that_of_pi05_to_the_token():
    processor = shared("paligemma")
    tokenizer, image_id = processor.tokenizer, processor.vlm_processor.image_token_id
    low, high = STATISTICS["state"]["q01"], STATISTICS["state"]["q99"]
    for state in np.linspace(low, high, 20):
        normalized = Normalizer(STATISTICS["state"]).normalize(state)
        bins = np.digitize(normalized, np.linspace(-1, 1, 257)[:-1]) - 1  # openpi's formula
        given = LONG | {"text": " pick_up the\nRed cup ", "state": state}
        ids = processor(**columns(observation(given)))["input_ids"][0].tolist()
        words = f"Task: pick up the Red cup, State: {bins[0]} {bins[1]};\nAction: "
        expected = tokenizer(words, add_special_tokens=False)["input_ids"]
        assert ids == [*[image_id] * 8, tokenizer.bos_token_id, *expected]


@pytest.mark.parametrize("name", ["paligemma", "qwen2_vl"])
def test_state_encodings(name):
    for encoding in ("text", "continuous", "none"):
        processor = make(name, state_encoding=encoding)
        words = processor.tokenizer.decode(processor(**columns(observation(LONG)))["input_ids"][0])
        assert ("State:" in words) == (encoding == "text")
        batch = processor(**columns(LONG, SHORT, QUESTION))
        assert ("state" in batch) == (encoding == "continuous")
        assert torch.isfinite(policy(name, encoding)(**batch).loss)
        assert ("state" in processor.model_input_names) == ("state" in batch)
    processor = make(name, state_encoding="continuous")
    state = processor(**columns(LONG, QUESTION))["state"]
    expected = Normalizer(STATISTICS["state"]).normalize(LONG["state"])
    assert np.array_equal(state[0].numpy(), [*expected, 0]) and not state[1].any()
    assert "state" not in processor(**columns({"images": [image()], "text": "Hi?"}), prompt_kind="text")


def test_own_action_prompt():
    processor = make(action_prompt="{text} [{state}]")
    words = processor.tokenizer.decode(processor(**columns(observation(SHORT)))["input_ids"][0])
    assert words.startswith("<image><image><image><image><bos>go [") and words.endswith("]")
    for prompt in ("{text}", "{state}", "{text} {state} {robot}"):
        with pytest.raises(ValueError, match="action_prompt must contain"):
            make(action_prompt=prompt)
    plain = make(action_prompt="{text}\n", state_encoding="none")  # openpi's without state
    ids = plain(images=[[image()]], text=[" lift {it} "])["input_ids"][0]
    assert plain.tokenizer.decode(ids).endswith("<image><bos>lift {it}\n")


@each_kind
def test_answer_ends_as_in_the_chat_template(name):
    ends = {
        **dict.fromkeys(("paligemma", "paligemma2", "llava", "llava_without_chat", "llava_next"), "<eos>"),
        **dict.fromkeys(("vipllava", "llava_next_video", "granite4_vision", "paddleocr_vl"), "<eos>"),
        **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v", "glm_ocr"), "<eos>"),
        **dict.fromkeys(("deepseek_vl", "deepseek_vl_hybrid", "janus"), "<eos>"),
        **dict.fromkeys(("mistral3", "mistral3_moe", "mistral_large4"), "<eos>"),
        **dict.fromkeys(("chameleon", "got_ocr2", "deepseek_ocr2", "unlimited_ocr", "ernie4_5_vl_moe"), "<eos>"),
        **dict.fromkeys(("emu3", "video_llava", "glm5_next", "glmga"), "<eos>"),
        "dots3_note": "<|endofresponse|>",
        **dict.fromkeys(("smolvlm", "idefics3", "idefics2", "granite_docling"), "<end_of_utterance>"),
        **dict.fromkeys(("gemma3", "gemma3n"), "<end_of_turn>"),
        **dict.fromkeys(("gemma4", "gemma4_moe", "gemma4_unified"), "<turn|>"),
        **dict.fromkeys(("aya_vision", "cohere2_vision", "cohere_compass"), "<|END_OF_TURN_TOKEN|>"),
        **dict.fromkeys(("llama4", "perception_lm"), "<|eot|>"),
    }
    end = ends.get(name, "<|im_end|>")
    for example in (SHORT, QUESTION):
        labels = shared(name)(**columns(example))["labels"][0]
        assert shared(name).tokenizer.convert_ids_to_tokens(int(labels[-1])) == end
        assert (labels == labels[-1]).sum() == 1


@pytest.mark.parametrize("name", ["llava", "smolvlm"])
def test_answer_begins_as_in_the_chat_template(name):
    """After "Assistant:" the template writes a space, which the generation prompt has not."""
    batch = shared(name)(**columns(QUESTION))
    labels = batch["labels"][0]
    assert shared(name).tokenizer.decode(labels[labels != -100]).startswith(" a cup")


def test_answer_is_tokenized_as_a_continuation():
    """Tokenizers like Llama's put a space in front of every text, which does not belong between prompt and answer."""
    vlm = copy.deepcopy(vlm_processor("qwen2_vl"))
    vlm.tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(" ")
    processor = KIVLAProcessor(vlm, normalization="none", state_encoding="none")
    labels = processor(**columns(QUESTION))["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]).startswith("a cup")


def test_chat_template_that_swallows_words_is_refused():
    vlm = copy.deepcopy(vlm_processor("qwen2_vl"))
    for template, missing in (
        ("{% for m in messages %}{{ m['content'][0]['content'] }}{% endfor %}", "prompt"),
        ("{{ messages[0]['content'] | map(attribute='text') | join }}", "answer"),
    ):
        vlm.chat_template = template
        with pytest.raises(ValueError, match=f"leaves out the {missing}"):
            KIVLAProcessor(vlm, normalization="none")


@pytest.mark.parametrize("name", ["paligemma", "gemma3", "qwen2_vl"])
def test_tokenizer_without_padding_or_padding_on_the_left(name):
    expected = shared(name)(**columns(LONG, SHORT))
    vlm = copy.deepcopy(vlm_processor(name))
    vlm.tokenizer.padding_side = "left"
    vlm.tokenizer.pad_token = None
    processor = KIVLAProcessor(vlm, FAST, STATISTICS, chunk_size=CHUNK, max_action_dim=WIDTH + 1)
    batch = processor(**columns(LONG, SHORT))
    assert processor.tokenizer.pad_token == processor.tokenizer.eos_token
    for key in ("attention_mask", "labels", "expert_attention_mask"):
        assert torch.equal(batch[key], expected[key])
    padding = ~batch["attention_mask"].bool()
    assert (batch["input_ids"][padding] == processor.tokenizer.eos_token_id).all()
    assert torch.equal(batch["input_ids"][~padding], expected["input_ids"][~padding])
    inference = processor(**columns(observation(LONG), observation(SHORT)))
    assert inference["attention_mask"][1, 0] == 0 and inference["attention_mask"][1, -1] == 1


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def test_images_may_come_in_many_forms(tmp_path):
    processor, pixels = shared(), image()
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expected = processor(images=[[pixels]], text=["go"], state=[[0, 0]])["pixel_values"]
    for form in (
        Image.fromarray(pixels),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1),
        (pixels.astype(np.float32) - 0.25).clip(0) / 255,  # rounded, not cut
        Image.fromarray(np.dstack([pixels, pixels[..., :1]])),  # alpha
    ):
        assert torch.equal(processor(images=[[form]], text=["go"], state=[[0, 0]])["pixel_values"], expected)
    grey = Image.fromarray(pixels[..., 0])
    repeated = np.repeat(pixels[..., :1], 3, axis=2)
    a, b = (processor(images=[[x]], text=["go"], state=[[0, 0]])["pixel_values"] for x in (grey, repeated))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (image()[..., 0], r"got \(10, 12\)"),
        (np.dstack([image(), image()[..., :1]]), r"got \(10, 12, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "got "),
        (image().astype(np.float32), "must lie in"),
        (-image().astype(np.float32) / 255, "must lie in"),
        (np.full((4, 4, 3), np.nan), "must lie in"),
        (image().astype(np.int64), "got int64"),
        (Image.fromarray(image()[..., 0].astype(np.int32)), "mode 'I'"),
    ],
)
def test_images_that_are_none(bad, message):
    with pytest.raises(ValueError, match=f"Example 1: .*{message}"):
        shared()(images=[[image()], [bad]], text=["go", "go"], state=[[0, 0]] * 2)


def test_cameras_are_counted_and_put_in_order():
    processor = make(cameras=["base", "wrist"])
    base, wrist = image(1), image(2)
    rest = {"text": ["go"], "state": [[0, 0]]}
    expected = processor(images=[[base, wrist]], **rest)
    by_name = processor(images=[{"wrist": wrist, "base": base}], **rest)
    assert torch.equal(by_name["pixel_values"], expected["pixel_values"])
    one = processor(images=[{"wrist": wrist, "base": None}], **rest)
    assert torch.equal(one["pixel_values"], expected["pixel_values"][1:])
    assert one["input_ids"].shape[1] == expected["input_ids"].shape[1] - 4
    none = processor(images=[[None, None]], **rest)
    assert "pixel_values" not in none and none["input_ids"][0, 0] == processor.tokenizer.bos_token_id
    for images in ([[base]], [[base, wrist, base]], [[]], None):
        with pytest.raises(ValueError, match=r"Example 0: got . images for 2 cameras \['base', 'wrist'\]"):
            processor(images=images, **rest)
    for given in ({"base": base}, {"base": base, "wrist": wrist, "top": base}, {"base": base, "hand": wrist}):
        with pytest.raises(ValueError, match=r"given for the cameras .* has \['base', 'wrist'\].*(None for|--cameras)"):
            processor(images=[given], **rest)
    processor(**columns(QUESTION))  # a picture with a question is from no camera
    with pytest.raises(ValueError, match="no camera names"):
        shared()(images=[{"base": base}], **rest)
    with pytest.raises(ValueError, match="must be a list of images"):
        processor(images=[base], **rest)


# ---------------------------------------------------------------------------------------------------------------------
# Actions
# ---------------------------------------------------------------------------------------------------------------------


def test_short_chunks_and_padded_steps():
    processor = shared()
    short = LONG | {"actions": TRAJECTORIES[0][:3], "action_is_pad": [False, False, True]}
    batch = processor(**columns(short, QUESTION))
    held = TRAJECTORIES[0][[0, 1, 1, 1]]
    expected = Normalizer(STATISTICS["actions"]).normalize(held)
    assert np.array_equal(batch["actions"][0, :, :WIDTH].numpy(), expected)
    assert not batch["actions"][0, :, WIDTH:].any() and not batch["actions"][1].any()
    mask = np.zeros((2, CHUNK, WIDTH + 1), bool)
    mask[0, :2, :WIDTH] = True
    assert np.array_equal(batch["action_mask"].numpy(), mask)
    restored = processor.unnormalize_actions(batch["actions"])
    assert_close_relative(restored[0], held, roundings=16, dtype=torch.float32)
    assert "actions" not in processor(**columns(QUESTION)) and "action_mask" not in processor(**columns(QUESTION))


def test_unused_dimensions_may_hold_noise(tmp_path):
    processor = make(action_tokenizer=None, noise_padding=True)
    short = LONG | {"actions": TRAJECTORIES[0][:3], "action_is_pad": [False, False, True]}
    batch = processor(**columns(short, QUESTION))
    mask = np.zeros((2, CHUNK, WIDTH + 1), bool)
    mask[0, :2] = True
    assert np.array_equal(batch["action_mask"].numpy(), mask), "every dimension of every real step is learned"
    assert not batch["actions"][0, :, WIDTH:].any() and torch.isfinite(policy()(**batch).flow_loss)
    observed = processor(**columns(observation(LONG)))
    chunk = policy().sample_actions(**observed)
    assert observed["action_mask"].all() and chunk[..., WIDTH:].all()
    assert processor.unnormalize_actions(chunk).shape == (1, CHUNK, WIDTH)
    processor.save_pretrained(tmp_path)
    assert KIVLAProcessor.from_pretrained(tmp_path).noise_padding


@pytest.mark.parametrize("skip", [128, 1152])
def test_action_tokens_at_the_tail_of_the_vocabulary(skip):
    """openpi: `vocab_size - 1 - skip - code`, and 128 `<seg>` tokens, 1024 `<loc>` tokens at the end of PaliGemma's."""
    fast = FAST if skip == 128 else FASTActionTokenizer.fit(NORMALIZED, vocab_size=80, scale=5)
    processor = make(action_tokenizer=fast, action_token_placement="tail", action_token_skip=skip)
    tokenizer = processor.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer.vocab_size - 1) == "<seg127>"
    assert processor.action_token_ids[0] == tokenizer.vocab_size - 1 - skip
    assert list(np.diff(processor.action_token_ids)) == [-1] * (fast.vocab_size - 1)
    names = tokenizer.convert_ids_to_tokens(processor.action_token_ids.tolist())
    if skip == 128:
        assert names == [f"<loc{1023 - code:04}>" for code in range(fast.vocab_size)]
    else:
        assert not any(name.startswith(("<loc", "<seg")) for name in names)
    assert len(tokenizer) == len(shared().vlm_processor.tokenizer) - FAST.vocab_size, "no token was added"
    # here the words' own bytes are among the 80 tokens below `<loc>` and `<seg>`, so that only the first has a response
    examples = [LONG, SHORT | {"response": "<loc1000><loc0999> is the cup"}] if skip == 128 else [LONG]
    batch = processor(**columns(*examples))
    assert torch.isfinite(policy()(**batch).loss)
    for chunk, actions in zip(processor.decode_actions(batch["labels"]), batch["actions"], strict=True):
        assert np.abs(chunk - actions[:, :WIDTH].numpy()).max() <= fast.quantization_error_bound(CHUNK) + 1e-6
    with pytest.raises(ValueError, match=r"overwrite the special tokens|does not fit"):
        make(action_token_placement="tail", action_token_skip=skip + 256 + 1024)


def test_policies_without_action_tokens_and_with_bins():
    plain = make(action_tokenizer=None)
    batch = plain(**columns(LONG, QUESTION))
    assert (batch["labels"][0] == -100).all() and batch["action_mask"][0].any()
    assert torch.isfinite(policy()(**batch).loss)
    with pytest.raises(ValueError, match="no action tokenizer"):
        plain.decode_actions(batch["labels"])
    bins = make(action_tokenizer=BinningActionTokenizer(16))
    labels = bins(**columns(LONG))["labels"]
    assert (labels != -100).sum() == CHUNK * WIDTH + 1  # and the end


def test_sequences_that_are_no_actions():
    processor = shared()
    batch = processor(**columns(LONG))
    said = batch["labels"][0][batch["labels"][0] != -100].tolist()
    end = processor.tokenizer.eos_token_id
    unused = int(processor.action_token_ids[-1])
    results = processor.decode_actions([said, [end], said[:2], [unused] * 40, torch.tensor(said)])
    assert np.array_equal(results[0], results[4])
    assert all(isinstance(result, ActionDecodingFailure) for result in results[1:4])


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------

NAN = np.array([[np.nan] * WIDTH] * CHUNK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": [0.0, np.nan]}, "`state`: .*must be finite"),
        ({"state": [np.inf, 0.0]}, "`state`: .*must be finite"),
        ({"state": [0.0, 0.0, 0.0]}, "`state`: .*2 dimensions.*another robot"),
        ({"state": [[0.0, 0.0]] * 2}, r"one vector \(Ds,\), got shape \(2, 2\)"),
        ({"state": None}, 'no `state`.*state_encoding="text"'),
        ({"actions": NAN}, "`actions`: .*must be finite"),
        ({"actions": TRAJECTORIES[0] * np.inf}, "`actions`: .*must be finite"),
        ({"actions": TRAJECTORIES[0][:, :2]}, r"must be \(steps, 3\).*got shape \(4, 2\).*another robot"),
        ({"actions": TRAJECTORIES[0][0]}, r"must be \(steps, 3\).*got shape \(3,\)"),
        ({"actions": TRAJECTORIES[0][:0]}, r"got shape \(0, 3\)"),
        ({"actions": np.concatenate(TRAJECTORIES[:2])}, "8 action steps do not fit into chunk_size = 4"),
        ({"action_is_pad": [True]}, r"`action_is_pad` must be \(4,\)"),
        ({"response": ""}, "`response` is empty"),
        ({"response": " \n"}, "`response` is empty"),
        ({"response": 3}, "`response` must be a string, got int"),
        ({"text": None}, "`text` must be a string, got NoneType"),
        ({"text": "an <image> here"}, "`text` contains '<image>'"),
        ({"actions": None, "response": "yes", "text": ""}, "`text` is empty"),
        ({"actions": None}, "neither `response` nor `actions`"),
    ],
)
def test_bad_examples_are_refused(change, message):
    good = LONG | {"response": None}
    with pytest.raises(ValueError, match=f"(?s)Example 1.*{message}"):
        shared()(**columns(good, good | change))


def test_bad_batches_are_refused():
    processor = shared()
    for text in ("go", None, []):
        with pytest.raises(ValueError, match="must be a list with one instruction for each example"):
            processor(images=[[image()]], text=text, state=[[0, 0]])
    with pytest.raises(ValueError, match="`images` has 1 entries for 2 examples"):
        processor(images=[[image()]], text=["go", "go"])
    with pytest.raises(ValueError, match='prompt_kind must be "action", "text" or None'):
        processor(**columns(observation(LONG)), prompt_kind="question")
    with pytest.raises(ValueError, match='prompt_kind="text" does not ask for any'):
        processor(**columns(LONG), prompt_kind="text")
    processor(**columns(LONG | {"text": ""}))  # action-only data


def test_nothing_is_cut_to_fit():
    length = shared()(**columns(LONG))["input_ids"].shape[1]
    assert make(max_length=length)(**columns(LONG, SHORT))["input_ids"].shape[1] == length
    with pytest.raises(ValueError, match=f"Example 1 takes {length} tokens.*max_length is {length - 1}"):
        make(max_length=length - 1)(**columns(QUESTION, LONG))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_encoding": "words"}, "state_encoding must be"),
        ({"action_token_placement": "front"}, "action_token_placement must be"),
        ({"statistics": None}, "needs the statistics of your robot"),
        ({"statistics": {"actions": STATISTICS["actions"]}}, r'needs statistics\["state"\]'),
        ({"max_action_dim": 2}, "max_action_dim of at least 3"),
        ({"action_dim": 2}, "another robot"),
        ({"normalization": "standard"}, "Unknown normalisation mode"),
    ],
)
def test_contradictory_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("dim", "options", "sizes"),
    [
        (WIDTH, {}, (32, 32)),
        (44, {}, (44, 32)),  # a state in the prompt needs no room
        (44, {"state_encoding": "continuous"}, (44, 44)),
        (44, {"max_action_dim": 50}, (50, 32)),
        (44, {"normalization": "none", "statistics": None, "action_dim": 43}, (43, 32)),
    ],
)
def test_a_processor_of_a_vlm_is_as_large_as_the_robot(dim, options, sizes, tmp_path):
    vlm_processor("paligemma").save_pretrained(tmp_path)
    statistics = {name: compute_statistics(np.random.default_rng(0).normal(size=(50, dim))) for name in STATISTICS}
    processor = KIVLAProcessor.from_vlm(tmp_path, **{"statistics": statistics, **options})
    assert (processor.max_action_dim, processor.max_state_dim) == sizes
    if not options:
        processor = KIVLAProcessor.from_vlm(
            tmp_path, robots={"small": {"statistics": STATISTICS}, "large": {"statistics": statistics}}
        )
        assert processor.max_action_dim == max(32, dim)
        with pytest.raises(ValueError, match="max_action_dim of at least"):
            KIVLAProcessor.from_vlm(tmp_path, statistics=statistics, max_action_dim=dim - 1)


@pytest.mark.parametrize("mode", ["quantile", "mean_std"])
def test_actions_far_outside_the_data_are_clipped_and_counted(mode, caplog):
    """What was recorded stays exact; a glitch in other data does not reach the loss."""
    processor = make(normalization=mode, action_tokenizer=None)
    robot, highest = processor.robot(), STATISTICS["actions"]["max"]
    recorded, _ = robot.chunk(TRAJECTORIES[0], None, CHUNK)
    np.testing.assert_array_equal(recorded[: len(TRAJECTORIES[0])], robot.actions.normalize(TRAJECTORIES[0]))
    for _ in range(2):
        glitch = np.stack([highest, highest])
        glitch[1, 2] += 1e4
        chunk, _ = robot.chunk(glitch, None, CHUNK)
        assert chunk[1, 2] == chunk.max() == np.broadcast_to(robot.units.bound, chunk.shape[1:])[2] == 19
        assert chunk.dtype == np.float32
        np.testing.assert_array_equal(chunk[0], robot.actions.normalize(highest))
    assert robot.num_clipped == 2 * (CHUNK - 1)  # the last action is held
    assert [r.message.split(".")[0] for r in caplog.records] == [
        f"Clipped {CHUNK - 1} of {CHUNK * WIDTH} values of an action chunk: normalised they are beyond 19, far outside "
        "the data that the statistics are of (dimension 2)"
    ]


def test_older_statistics_keep_what_their_data_had():
    """A policy that was trained with 38,570 goes on with it; without `min` and `max` nothing is known of it."""
    values = np.random.default_rng(0).normal(0, 1e-5, (20_000, WIDTH))
    values[::150] = 1.0
    older = {name: v for name, v in compute_statistics(values).items() if name not in ("low", "high", "scale")}
    for names, bound in ((older.keys(), 10_000), (older.keys() - {"min", "max"}, None)):
        actions = {name: older[name] for name in names}
        robot = make(statistics={**STATISTICS, "actions": actions}, action_tokenizer=None).robot()
        chunk, _ = robot.chunk(np.ones((CHUNK, WIDTH)), None, CHUNK)
        if bound is None:
            assert chunk.max() == 19 and robot.num_clipped == CHUNK * WIDTH
        else:
            assert chunk.min() > bound and robot.num_clipped == 0


def test_without_normalisation_nothing_is_clipped():
    robot = make(normalization="none", statistics=None, action_tokenizer=None, action_dim=WIDTH).robot()
    assert robot.chunk(np.full((CHUNK, WIDTH), 1e6), None, CHUNK)[0].max() == 1e6


def test_state_that_is_wider_than_the_model():
    processor = make(state_encoding="continuous", max_state_dim=1)
    with pytest.raises(ValueError, match="2 values, but max_state_dim is 1"):
        processor(**columns(observation(LONG)))
    with pytest.raises(ValueError, match="too narrow for this robot's 3"):
        processor.unnormalize_actions(torch.zeros(1, CHUNK, 2))


# ---------------------------------------------------------------------------------------------------------------------
# On disk
# ---------------------------------------------------------------------------------------------------------------------

LOAD = """
import sys
import torch
from {module} import {name}

for folder in sys.argv[1:]:
    inputs = torch.load(folder + "/inputs.pt", weights_only=False)
    processor = {name}.from_pretrained(folder{options})
    batch = processor(**inputs)
    (chunk,) = processor.decode_actions(batch["labels"][:1])
    torch.save([dict(batch), processor.to_dict(), chunk], folder + "/outputs.pt")
"""


def load_in_new_process(folders: list, module: str, name: str, options: str = "", after: str = "") -> None:
    code = LOAD.format(module=module, name=name, options=options) + after
    environment = os.environ | {"HF_MODULES_CACHE": str(folders[0]) + "_modules", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr


def assert_same(folder, processor: KIVLAProcessor, batch) -> None:
    loaded, settings, chunk = torch.load(folder / "outputs.pt", weights_only=False)
    assert settings == processor.to_dict()
    assert loaded.keys() == batch.keys()
    for key, tensor in batch.items():
        assert torch.equal(torch.as_tensor(loaded[key]), torch.as_tensor(tensor)), key
    assert np.array_equal(chunk, processor.decode_actions(batch["labels"])[0])


def test_saved_processors_are_the_same_in_a_new_process(tmp_path):
    saved = {}
    for name, kind in KINDS.items():
        if kind.stand_ins:
            continue
        try:
            vlm_processor(name)
        except pytest.skip.Exception:
            continue
        placement = "tail" if name.startswith("paligemma") else kind.placement
        processor = make(name, cameras=["base"], action_token_placement=placement, max_length=500)
        inputs = columns(SHORT, QUESTION)
        processor.save_pretrained(tmp_path / name)
        torch.save(inputs, tmp_path / name / "inputs.pt")
        saved[name] = processor, processor(**inputs)
    assert len(saved) > 4
    load_in_new_process([tmp_path / name for name in saved], "kivla.processing", "KIVLAProcessor")
    for name, (processor, batch) in saved.items():
        assert_same(tmp_path / name, processor, batch)


def test_saved_processor_is_remote_code(tmp_path, monkeypatch):
    monkeypatch.setattr(KIVLAProcessor, "_auto_class", "AutoProcessor")
    processor, inputs = make(), columns(SHORT, QUESTION)
    processor.save_pretrained(tmp_path / "policy")
    torch.save(inputs, tmp_path / "policy" / "inputs.pt")
    load_in_new_process(
        [tmp_path / "policy"],
        "transformers",
        "AutoProcessor",
        ", trust_remote_code=True",
        "assert 'kivla' not in sys.modules and type(processor).__module__.startswith('transformers_modules')",
    )
    assert_same(tmp_path / "policy", processor, processor(**inputs))


def test_loading_for_another_robot(tmp_path):
    make(cameras=["base"]).save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is KIVLAProcessor  # `import kivla` has registered it
    statistics = {name: compute_statistics(np.random.default_rng(1).normal(size=(50, 2))) for name in STATISTICS}
    processor = KIVLAProcessor.from_pretrained(tmp_path, statistics=statistics, cameras=["left", "right"])
    assert processor.action_dim == 2 and processor.cameras == ["left", "right"] and processor.chunk_size == CHUNK
    with pytest.raises(TypeError, match=r"Unknown arguments \['statistic'\]"):
        KIVLAProcessor.from_pretrained(tmp_path, statistic=statistics)


def test_unfinished_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no complete KIVLA processor"):
        KIVLAProcessor.from_pretrained(tmp_path)
    processor = make()
    processor.save_pretrained(tmp_path)
    KIVLAProcessor.from_pretrained(tmp_path)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(processor.vlm_processor), "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        processor.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="save again"):
        KIVLAProcessor.from_pretrained(tmp_path)

    vlm_processor("paligemma").tokenizer.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "PaliGemmaProcessor"}))
    with pytest.raises(FileNotFoundError, match=r"found: PaliGemmaProcessor"):
        KIVLAProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (30, 30), (33, 20)])
def test_square_images_keep_their_proportions(size):
    """As if the black borders had been there: wide, high, square, and with a border that does not halve."""
    image = Image.fromarray(np.random.default_rng(0).integers(1, 256, (size[1], size[0], 3), dtype=np.uint8))
    side = max(size)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    prompt = {"text": ["go"], "state": [np.zeros(STATE)]}
    padded = make(square_images=True)(images=[[image]], **prompt)["pixel_values"]
    assert torch.equal(padded, make()(images=[[square]], **prompt)["pixel_values"])
    if size[0] != size[1]:
        assert not torch.equal(padded, make()(images=[[image]], **prompt)["pixel_values"])


# ---------------------------------------------------------------------------------------------------------------------
# What people pass to the library's processors
# ---------------------------------------------------------------------------------------------------------------------


def test_options_that_ask_for_what_is_done_anyway():
    processor, expected = shared(), shared()(**columns(LONG, SHORT))
    options = {"return_tensors": "pt", "padding": True, "truncation": False, "max_length": None, "videos": None}
    for some in (options, {"return_tensors": None, "padding": "longest"}):
        batch = processor(**columns(LONG, SHORT), **some)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"return_tensors": "np"}, ValueError, "return_tensors = 'np' is not possible here: batches are PyTorch"),
        ({"padding": "max_length"}, ValueError, "padding = 'max_length' is not possible here"),
        ({"padding": False}, ValueError, "padding = False"),
        ({"truncation": True}, ValueError, "nothing is cut"),
        ({"max_length": 20}, ValueError, "it is a setting of the processor"),
        ({"videos": [[0]]}, ValueError, "give the images of each camera"),
        ({"images_kwargs": {"do_resize": False}}, TypeError, "takes no 'images_kwargs'"),
        ({"add_special_tokens": False}, TypeError, "takes no 'add_special_tokens'"),
        ({"actoins": None}, TypeError, "takes no 'actoins'"),
    ],
)
def test_other_options_are_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        shared()(**columns(LONG), **options)


@each_kind
def test_parts_and_helpers_of_the_vlms_processor(name):
    processor, theirs = shared(name), vlm_processor(name)
    ids = processor(**columns(observation(LONG)))["input_ids"]
    assert processor.batch_decode(ids) == processor.tokenizer.batch_decode(ids)
    assert processor.decode(ids[0], skip_special_tokens=True) == processor.tokenizer.decode(ids[0], True)
    assert processor.image_processor is processor.vlm_processor.image_processor
    assert processor.chat_template == theirs.chat_template
    if theirs.chat_template:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
        options = {"add_generation_prompt": True, "tokenize": False}
        assert processor.apply_chat_template(messages, **options) == theirs.apply_chat_template(messages, **options)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(
            (name, value)
            for name in ("chunk_size", "max_action_dim", "max_length")
            for value in (0, -1, 1.5, "4", True)
        ),
        ("max_state_dim", -1),
        ("action_token_skip", -1),
        ("chunk_size", None),
        ("chunk_size", 10**9),
        ("noise_padding", 1),
        ("responds_first", "yes"),
        ("clip_actions", None),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be"):
        make(**{setting: value})

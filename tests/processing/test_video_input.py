"""Clips as videos, for VLMs whose processor takes them: what the VLM is given, and that all else stays the same.

Video processors want torchvision: those of the library are tested where it is installed, and a stand-in everywhere.
"""

import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import transformers
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from kivla.processing import BinningActionTokenizer, KIVLAProcessor
from kivla.processing.chat_format import chat_format
from kivla.processing.video_input import takes_video
from tests.helpers.tolerance import assert_close_relative
from tests.helpers.vlm_processors import KINDS

QWEN = "<|vision_start|><|video_pad|><|vision_end|>"
# What the released chat templates write for a video
ENTRIES = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), QWEN),
    "gemma4": "<|video|>",
    "glm4v": "<|begin_of_video|><|video|><|end_of_video|>",
    **dict.fromkeys(("smolvlm", "llava_onevision", "internvl"), "<video>"),
}
# Two whose processors make images of frames themselves, one that takes no videos of unequal length, and one in which
# the same token stands for images and frames
AS_IMAGES = ("smolvlm", "internvl", "llava_onevision", "glm4v")
TAKING = [name for name in ENTRIES if name not in AS_IMAGES]
CHUNK, WIDTH = 4, 3
with_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="video processors want torchvision")


class StandIn:
    """Of Qwen2-VL's video processor: two frames are one, and a patch is 4 x 4 pixels; pictures are not resized."""

    merge_size = 2
    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __call__(self, videos, do_sample_frames, **options):
        assert not do_sample_frames
        grids = [[-(-len(video) // 2), video.shape[1] // 4, video.shape[2] // 4] for video in videos]
        patches = [
            torch.from_numpy(np.resize(video.mean(dtype=np.float32) / 255, (int(np.prod(grid)), 96)))
            for video, grid in zip(videos, grids, strict=True)
        ]
        return {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)}


def with_videos(name: str, video_processor=None):
    """The processor of a kind with a video processor, and a chat template that has an entry for videos."""
    kind = KINDS[name]
    processor = kind.processor()
    of_text = re.search(r"{% (elif|if) '?(\w+)'?.{0,12}(in content|\['type'\] == 'text') %}", processor.chat_template)
    if of_text is None:  # GLM-4V and LLaVA-OneVision have other loops
        entry = (
            "{% for c in message['content'] | selectattr('type', 'equalto', 'video') %}"
            + ENTRIES[name]
            + "{% endfor %}"
        )
        head = "{% for item in message['content'] %}" if name == "glm4v" else "{% for content in message['content'] | s"
        template = processor.chat_template.replace(head, entry + head, 1)
        if name == "glm4v":
            template = template.replace("{% else %}", "{% elif item['type'] == 'text' %}")
    else:
        variable = re.search(r"for (\w+) in message\['content'\]", processor.chat_template)[1]
        entry = f"{{% {of_text[1]} {variable}['type'] == 'video' %}}{ENTRIES[name]}{{% elif"
        template = processor.chat_template.replace(of_text[0], entry + of_text[0].removeprefix("{% " + of_text[1]), 1)
    processor.chat_template = template
    if video_processor is None:
        names = VIDEO_PROCESSOR_MAPPING_NAMES[kind.family]
        class_name = names["torchvision"] if isinstance(names, dict) else names
        video_processor = getattr(transformers, class_name)(**kind.image_processor[1])
    processor.video_processor = video_processor
    return processor


def make(vlm_processor, history: int = 4, **options) -> KIVLAProcessor:
    return KIVLAProcessor(
        vlm_processor,
        action_tokenizer=BinningActionTokenizer(num_bins=16),
        **{"chunk_size": CHUNK, "max_action_dim": WIDTH, "cameras": ["front", "wrist"]},
        **{"state_encoding": "none", "normalization": "none", "history": history, **options},
    )


def frames(seed: int, count: int, side: int = 16) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def ask(processor: KIVLAProcessor, *images, **others):
    return processor(images=list(images), text=["go"] * len(images), **others)


@pytest.fixture(scope="module")
def stand_in() -> KIVLAProcessor:
    return make(with_videos("qwen2_vl", StandIn()))


# ------------------------------------------------------------------------------------------- everywhere, by a stand-in
def test_a_clip_is_a_video_and_one_frame_an_image(stand_in):
    assert stand_in.clips_as_video
    batch = ask(stand_in, [frames(0, 4), frames(1, 1)], [frames(2, 1), None])
    assert batch["video_grid_thw"].tolist() == [[2, 4, 4]]
    assert len(batch["image_grid_thw"]) == 2
    # Camera by camera: the first one's video, then the second one's image
    order = [token for token in batch["input_ids"][0].tolist() if token in _placeholders(stand_in)]
    vlm = stand_in.vlm_processor
    assert order == [vlm.video_token_id] * 8 + [vlm.image_token_id] * 4
    assert "pixel_values" not in ask(stand_in, [frames(0, 4), frames(1, 2)])
    with pytest.raises(ValueError, match=r"the frames of a clip have the sizes \[\(16, 16\), \(24, 24\)\]"):
        ask(stand_in, [frames(0, 1) + frames(0, 1, side=24), None])


def _placeholders(processor: KIVLAProcessor) -> tuple[int, int]:
    return processor.vlm_processor.image_token_id, processor.vlm_processor.video_token_id


def test_the_first_step_is_that_of_a_policy_without_history(stand_in):
    plain = make(with_videos("qwen2_vl", StandIn()), history=1)
    assert not plain.clips_as_video
    first, other = (ask(processor, [frames(0, 1), frames(1, 1)]) for processor in (stand_in, plain))
    for name, values in first.items():
        torch.testing.assert_close(values, other[name], rtol=0, atol=0)


def test_what_it_was_trained_with_is_saved_and_kept(stand_in, tmp_path):
    saved = stand_in.to_dict()
    assert saved["clips_as_video"] is True
    assert {"2", "v", "vv"} <= saved["prompt_frames"].keys()
    frame = chat_format(stand_in.vlm_processor, "vi")
    assert frame.before.count(QWEN) == 1 and frame.before.index(QWEN) < frame.before.index("<|image_pad|>")
    again = make(with_videos("qwen2_vl", StandIn()), clips_as_video=True, prompt_frames=saved["prompt_frames"])
    assert again.to_dict()["prompt_frames"] == saved["prompt_frames"]
    # Where its VLM takes no videos it does not silently see images
    with pytest.raises(ValueError, match=r"gives its VLM clips as videos, which Qwen2VLProcessor does not take here"):
        make(KINDS["qwen2_vl"].processor(), clips_as_video=True)
    images = make(with_videos("qwen2_vl", StandIn()), clips_as_video=False)
    assert len(ask(images, [frames(0, 4), frames(1, 4)])["image_grid_thw"]) == 8


@pytest.mark.parametrize("name", ["paligemma", "llava", "llava_without_chat", "qwen2_vl", "smolvlm"])
def test_a_processor_without_videos_is_given_images(name):
    processor = KINDS[name].processor()
    assert not takes_video(processor)
    assert not make(processor).clips_as_video


# --------------------------------------------------------------------------------- the library's own, with torchvision
@with_torchvision
@pytest.mark.parametrize("name", ENTRIES)
def test_which_families_take_videos(name):
    assert takes_video(with_videos(name)) == (name not in AS_IMAGES)


@with_torchvision
@pytest.mark.parametrize("name", TAKING)
def test_a_model_learns_and_acts_from_videos(name):
    """An example gives the same alone and beside others that have images, more frames, or nothing at all."""
    processor = make(with_videos(name))
    model = KINDS[name].policy(chunk_size=CHUNK, max_action_dim=WIDTH, state_encoding="none")
    model.resize_token_embeddings(max(processor.vocab_size, model.get_input_embeddings().num_embeddings))
    examples = [[frames(0, 4), frames(1, 2)], [frames(2, 1), frames(3, 1)], [frames(4, 3), None]]
    actions = np.random.default_rng(0).uniform(-1, 1, (3, CHUNK, WIDTH))
    loss = model(**ask(processor, *examples, actions=list(actions))).loss
    loss.backward()
    assert torch.isfinite(loss) and any(p.grad is not None for p in model.vlm.parameters())
    noise = torch.randn(3, CHUNK, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model.sample_actions(**ask(processor, *examples), noise=noise)
        for i, example in enumerate(examples):
            alone = model.sample_actions(**ask(processor, example), noise=noise[i : i + 1])
            assert_close_relative(alone[0], together[i])
        other = [[frames(9, 1)[0], *examples[0][0][1:]], examples[0][1]]
        changed = model.sample_actions(**ask(processor, other), noise=noise[:1])
    assert (changed - together[:1]).abs().max() > 1e-6, "the oldest frame makes no difference"

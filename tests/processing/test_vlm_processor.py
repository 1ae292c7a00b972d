"""The VLM's own processor: which library prepares its images, and what is said where one is missing."""

import json
import logging

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, SiglipConfig, SiglipImageProcessorPil
from transformers.models.auto import image_processing_auto

from kivla.cli import main
from kivla.processing import KIVLAProcessor
from kivla.processing.vlm_processor import (
    LIBRARIES,
    OWN_PROMPTS,
    image_backend,
    load_vlm_processor,
    missing_libraries,
)
from tests.helpers.families import FAMILIES
from tests.helpers.vlm_processors import KINDS, WITHOUT, each_kind
from tests.processing.test_processing_kivla import SHORT, columns, make

has_torchvision = not missing_libraries("torchvision")
with_torchvision = pytest.mark.skipif(not has_torchvision, reason="torchvision is not installed: make test-torchvision")
without_torchvision = pytest.mark.skipif(has_torchvision, reason="torchvision is installed")


class SiglipImageProcessor(SiglipImageProcessorPil):
    """In the place of the torchvision backend, by its name: says that it is one, and gives visibly other images."""

    @property
    def backend(self) -> str:
        return "torchvision"

    def _preprocess(self, *args, **kwargs):
        batch = super()._preprocess(*args, **kwargs)
        batch["pixel_values"] = [values + 1 for values in batch["pixel_values"]]
        return batch


@pytest.fixture
def torchvision_is_here(monkeypatch):
    """As if torchvision were installed: the library then chooses that backend, which `SiglipImageProcessor` is."""
    monkeypatch.setattr(image_processing_auto, "is_torchvision_available", lambda: True)
    monkeypatch.setattr(image_processing_auto, "DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS", [])
    content = {SiglipConfig: {"torchvision": SiglipImageProcessor, "pil": SiglipImageProcessorPil}}
    monkeypatch.setattr(image_processing_auto.IMAGE_PROCESSOR_MAPPING, "_extra_content", content)


def saved_backend(folder) -> str | None:
    return json.loads((folder / "processor_config.json").read_text()).get("image_backend")


def say_backend(folder, backend: str | None) -> None:
    """Let a saved processor say that it was made with this backend; None: as before there was this entry."""
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    del settings["image_backend"]
    path.write_text(json.dumps(settings | ({} if backend is None else {"image_backend": backend})))


def pixels(processor: KIVLAProcessor) -> torch.Tensor:
    return processor(**columns(SHORT))["pixel_values"]


def test_a_policy_keeps_the_backend_of_its_images(tmp_path, torchvision_is_here):
    processor = make()
    processor.save_pretrained(tmp_path)
    assert saved_backend(tmp_path) == "pil"
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "vlm_processor")
    assert isinstance(theirs, SiglipImageProcessor), "the library alone takes torchvision, where it is installed"
    loaded = KIVLAProcessor.from_pretrained(tmp_path)
    assert torch.equal(pixels(loaded), pixels(processor))
    assert loaded.to_dict() == processor.to_dict()
    # the other way round
    say_backend(tmp_path, "torchvision")
    other = KIVLAProcessor.from_pretrained(tmp_path)
    assert torch.equal(pixels(other), pixels(processor) + 1)
    other.save_pretrained(tmp_path / "again")
    assert saved_backend(tmp_path / "again") == "torchvision"
    # who asks for a backend gets it
    assert torch.equal(pixels(KIVLAProcessor.from_pretrained(tmp_path, use_fast=False)), pixels(processor))


def test_an_older_policy_loads_as_before(tmp_path, torchvision_is_here, caplog):
    make(cameras=["base"]).save_pretrained(tmp_path)
    say_backend(tmp_path, None)
    with caplog.at_level(logging.WARNING, "kivla"):
        loaded = KIVLAProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded.image_processor, SiglipImageProcessor)
    assert "prepare" not in caplog.text


@without_torchvision
def test_a_backend_that_is_not_installed_is_said_once(tmp_path, caplog):
    processor = make(cameras=["base"])
    processor.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "kivla"):
        KIVLAProcessor.from_pretrained(tmp_path)
    assert "prepare" not in caplog.text
    say_backend(tmp_path, "torchvision")
    with caplog.at_level(logging.WARNING, "kivla"):
        loaded = KIVLAProcessor.from_pretrained(tmp_path)
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("kivla")]
    assert "torchvision had prepared; here Pillow prepares them" in message
    assert "pip install 'kivla[vlm]'" in message
    assert torch.equal(pixels(loaded), pixels(processor))


def test_a_backend_that_is_no_name_is_damage(tmp_path):
    make().save_pretrained(tmp_path)
    say_backend(tmp_path, 3)
    with pytest.raises(ValueError, match="image_backend is 3"):
        KIVLAProcessor.from_pretrained(tmp_path)


@pytest.mark.skipif(
    bool(missing_libraries("torchvision")), reason="torchvision is not installed: make test-torchvision"
)
@each_kind
def test_how_far_the_backends_are_apart(name, tmp_path):
    """The figures of the warning: normalised pixel values of the two backends, over images of three sizes."""
    kind = KINDS[name]
    if kind.stand_ins or not kind.image_processor[0].endswith("Pil"):
        pytest.skip(f"{name} is not saved here, or has one backend")
    processor = make(name, cameras=None)
    processor.save_pretrained(tmp_path)
    say_backend(tmp_path, "torchvision")
    other = KIVLAProcessor.from_pretrained(tmp_path)
    assert image_backend(other.vlm_processor) == "torchvision"
    difference = (pixels(processor) - pixels(other)).abs()
    print(f"{name}: {difference.mean():.5f} on average, {difference.max():.5f} at most")
    assert difference.mean() <= 0.004 and difference.max() <= 0.09


# ---------------------------------------------------------------------------------------------------------------------
# Libraries that are not installed
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def vlm_for_videos(tmp_path):
    """A folder laid out as on the Hub whose processor takes videos, which transformers reads by torchvision alone."""
    kind, folder = KINDS["qwen2_vl"], tmp_path / "vlm"
    kind.tokenizer().save_pretrained(folder)
    name, settings = kind.image_processor
    getattr(transformers, name)(**settings).save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": kind.processor_class}))
    (folder / "video_preprocessor_config.json").write_text('{"video_processor_type": "Qwen2VLVideoProcessor"}')
    kind.vlm_config().save_pretrained(folder)
    return folder


@without_torchvision
def test_the_error_names_the_extra(vlm_for_videos, tmp_path):
    expected = r"wants torchvision, which is not installed. Install the extra: pip install 'kivla\[vlm\]'"
    with pytest.raises(ImportError, match=expected):
        KIVLAProcessor.from_vlm(vlm_for_videos)
    make().save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "vlm_processor").rename(tmp_path / "other")
    vlm_for_videos.rename(tmp_path / "policy" / "vlm_processor")
    with pytest.raises(ImportError, match=expected):
        KIVLAProcessor.from_pretrained(tmp_path / "policy")


@without_torchvision
@pytest.mark.parametrize("command", ["inspect", "train"])
def test_commands_name_the_extra(command, vlm_for_videos, tmp_path, capsys):
    words = {
        "inspect": ["inspect", str(vlm_for_videos)],
        "train": [
            *("train", "--vlm", str(vlm_for_videos), "--dataset", "tests/data/lerobot_v3_metaworld"),
            *("--output_dir", str(tmp_path / "out"), "--max_steps", "1"),
        ],
    }[command]
    with pytest.raises(SystemExit) as exit_:
        main(words)
    said = f"{exit_.value} {capsys.readouterr().err}"
    assert "wants torchvision" in said and "kivla[vlm]" in said


def test_commands_name_the_extra_for_what_a_model_wants(monkeypatch, capsys):
    def refuses(*args):
        raise ImportError("TimmWrapperModel requires the timm library but it was not found in your environment.")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("kivla.commands.inspect.run", refuses)
    with pytest.raises(SystemExit):
        main(["inspect", "vlm"])
    assert "it needs timm. Install the extra: pip install 'kivla[vlm]'" in capsys.readouterr().err


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_library_of_the_extra_is_recognised(library, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = f"Package `{library.capitalize()}` is required. Install it with `pip install it`"

    def refuses(*args, **kwargs):
        raise ImportError(message)

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", refuses)
    with pytest.raises(ImportError, match=rf"wants {library}, which"):
        load_vlm_processor("org/vlm")
    message = "Package `other` is required."
    with pytest.raises(ImportError, match="`other`"):
        load_vlm_processor(f"{library}/vlm")


# ---------------------------------------------------------------------------------------------------------------------
# Every family
# ---------------------------------------------------------------------------------------------------------------------


def test_every_held_family_has_a_processor_or_a_reason():
    """A new family: a kind in `tests/helpers/vlm_processors/`, or a reason in `OWN_PROMPTS` and a kind in `WITHOUT`."""
    tested = {kind.family for kind in KINDS.values()}
    assert not FAMILIES.keys() - tested - WITHOUT.keys()
    assert not tested & WITHOUT.keys()
    assert {kind.processor_class for kind in WITHOUT.values()} <= OWN_PROMPTS.keys()
    assert not {kind.processor_class for kind in KINDS.values()} & OWN_PROMPTS.keys()


def takes_prompts(processor) -> bool:
    """Whether a text is read as it is, with so many pictures as it has placeholders, each in its place."""
    picture = Image.new("RGB", (64, 64))
    try:
        token = str(processor.image_token)
        one, two, other = (
            processor(text=[token * n + words], images=[[picture] * n], return_tensors="pt")["input_ids"][0].tolist()
            for n, words in ((1, "go"), (2, "go"), (1, "on"))
        )
    except Exception:  # they raise all kinds of errors
        return False
    image_id = processor.tokenizer.convert_tokens_to_ids(token)
    return two.count(image_id) == 2 * one.count(image_id) and one != other


@pytest.mark.parametrize("name", ["paligemma", "llava_without_chat", "chameleon"])
def test_a_processor_that_takes_prompts(name):
    assert takes_prompts(KINDS[name].processor())


@pytest.mark.parametrize("name", WITHOUT)
def test_a_processor_with_prompts_of_its_own_is_refused(name):
    """Once the library's processor takes prompts as they are this fails: give it a kind, and take its reason away."""
    kind = WITHOUT[name]
    processor = kind.processor()
    with pytest.raises(ValueError, match=f"{kind.processor_class} {OWN_PROMPTS[kind.processor_class][:20]}"):
        KIVLAProcessor(processor, normalization="none")
    assert not takes_prompts(processor)

"""`Kind`: a VLM's processor, made of its own classes, and the tiny VLM that takes what it gives."""

import importlib.util
import json
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES
from transformers.models.smolvlm import processing_smolvlm

from kivla.demo.tiny_vlm import byte_tokenizer
from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from tests.helpers.families import FAMILIES, IMAGE_ID, VOCAB_SIZE, randomize_zero_parameters

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
FIRST_SPECIAL, NUM_SPECIALS = IMAGE_ID, 14  # ids 200..213 of `tests.helpers.families`
ROOMY_VOCAB_SIZE = 1024  # bytes, special tokens and action tokens

# SmolVLM asks for a package that spells out the number of a video's frames. No test has videos.
processing_smolvlm.num2words = processing_smolvlm.num2words or str


class NoMedia:
    """In the place of a video or audio processor: those need torchvision or torchaudio, and no test has such input."""

    model_input_names: list[str] = []  # noqa: RUF012
    merge_size = 2
    num_frames = fps = 1
    video_sampling = {"video_size": {"longest_edge": 16}}  # noqa: RUF012
    slice_mode, downsample_mode = False, "16x"


@dataclass(frozen=True)
class Kind:
    """A VLM's processor and how it meets a model of `tests.helpers.families`.

    Attributes:
        family: key in `FAMILIES`.
        image_processor: its class name and arguments.
        processor_class, arguments: of the processor.
        tokens: special tokens by the id that they have in the family's configuration.
        other_tokens: special tokens without a place in the configuration.
        named_tokens: attributes of the tokenizer, e.g. `{"image_token": "<image>"}`.
        chat_template: as in the released checkpoint, in short; None if that has none.
        settings: changes to the family's configuration, by dotted name.
        base_words: ordinary words of the tokenizer behind the bytes.
        placement: of action tokens; "tail" where the VLM has no room for new ones.
        adds_bos: whether the tokenizer begins every text with `<bos>` (unless told not to add special tokens).
        takes_media: the processors of video and audio that it has; without torchvision and torchaudio, `NoMedia`.
        needs: the library that the processor's code imports.
        is_slow: whether it is tested in the slow lane alone: its prompts and images are made as those of another kind.
    """

    family: str
    processor_class: str
    image_processor: tuple[str, dict[str, Any]]
    tokens: dict[int, str]
    chat_template: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    other_tokens: tuple[str, ...] = ()
    named_tokens: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    base_words: tuple[str, ...] = ()
    placement: str = "added"
    adds_bos: bool = False
    takes_media: tuple[str, ...] = ()
    needs: str | None = None
    is_slow: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether the library that its code imports is not installed."""
        return self.needs == "torchvision" and not HAS_TORCHVISION

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """What is missing of the processor in this environment; it cannot be saved, then."""
        return tuple(name for name in self.takes_media if name != "video_processor" or not HAS_TORCHVISION)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        layout = json.loads(byte_tokenizer().backend_tokenizer.to_str())
        vocabulary = layout["model"]["vocab"]
        vocabulary |= {word: len(vocabulary) + i for i, word in enumerate(self.base_words)}
        tokenizer = Tokenizer.from_str(json.dumps(layout))
        if self.adds_bos:
            tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
        specials = [self.tokens.get(i, f"<special_{i}>") for i in range(FIRST_SPECIAL, FIRST_SPECIAL + NUM_SPECIALS)]
        tokenizer.add_special_tokens([*specials, *self.other_tokens])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            extra_special_tokens=self.named_tokens,
        )

    def processor(self) -> ProcessorMixin:
        """The VLM's processor.

        Raises:
            ImportError: its code imports a library that is not installed.
        """
        if self.is_missing:
            raise ImportError(f"{self.processor_class} needs {self.needs}: `make test-torchvision` tests it.")
        name, settings = self.image_processor
        image_processor = getattr(transformers, name)(**settings)
        if self.processor_class == "PaliGemmaProcessor":
            image_processor.image_seq_length = 4
        media = {name: NoMedia() for name in self.stand_ins}
        if "video_processor" in self.takes_media and HAS_TORCHVISION:
            names = VIDEO_PROCESSOR_MAPPING_NAMES.get(FAMILIES[self.family].settings["model_type"])
            name = names["torchvision"] if isinstance(names, dict) else names
            # the parts of the omni models that see have that of Qwen2-VL
            media["video_processor"] = getattr(transformers, name or "Qwen2VLVideoProcessor")()
        chat = {} if self.chat_template is None else {"chat_template": self.chat_template}
        arguments = {**chat, **self.arguments, **media}
        with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class"):
            return getattr(transformers, self.processor_class)(
                image_processor=image_processor, tokenizer=self.tokenizer(), **arguments
            )

    def vlm_config(self):
        """The family's configuration with special token ids behind the bytes and a vocabulary that holds them."""
        shift = len(byte_tokenizer()) + len(self.base_words) - FIRST_SPECIAL
        settings = _shifted(FAMILIES[self.family].settings, shift)
        for name, value in self.settings.items():
            *path, last = name.split(".")
            target = settings
            for part in path:
                target = target[part]
            target[last] = value
        return AutoConfig.for_model(**settings)

    def policy(self, seed: int = 0, **config) -> KIVLAForActionPrediction:
        torch.manual_seed(seed)
        expert = {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2}
        model = KIVLAForActionPrediction(KIVLAConfig(vlm_config=self.vlm_config(), expert_config=expert, **config))
        randomize_zero_parameters(model)
        return model.eval()


def _shifted(settings: dict[str, Any], shift: int) -> dict[str, Any]:
    def moved(name: str, value):
        if isinstance(value, dict):
            return _shifted(value, shift)
        if isinstance(value, list):
            return [moved(name, item) for item in value]
        if str(name).startswith("vocab_size") and value == VOCAB_SIZE:
            return ROOMY_VOCAB_SIZE
        is_special = str(name).endswith(("_id", "_ids", "_index")) and value in range(FIRST_SPECIAL, VOCAB_SIZE)
        return value + shift if is_special else value

    return {name: moved(name, value) for name, value in settings.items()}


SMALL = {"height": 8, "width": 8}
MEDIUM = {"height": 16, "width": 16}
CHAT_ML_TOKENS = ("<|im_start|>", "<|im_end|>")
AYA_TURNS = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
(NEWLINE_ID,) = byte_tokenizer()("\n")["input_ids"]
FIRST_ID = len(byte_tokenizer())  # of the special tokens, where there are no other words


def named(tokens: dict[int, str], *names: str) -> dict[str, str]:
    """Attributes of a tokenizer, in the order of its tokens."""
    return dict(zip(names, tokens.values(), strict=True))

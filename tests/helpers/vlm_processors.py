"""Tiny but real processors of many VLM families, each with a matching tiny VLM.

    kind = KINDS["qwen2_vl"]
    vlm_processor = kind.processor()                        # what AutoProcessor.from_pretrained(vlm) would give
    model = kind.policy(chunk_size=4, max_action_dim=3)     # a KIVLAForActionPrediction that takes its token ids

Processors and image processors are the families' own. Tokenizers write bytes. Chat templates are those of the released
checkpoints without tools, system prompts and videos. Where an image processor has two backends it is Pillow's. Some
processors need torchvision (`needs`): `make test-torchvision`.
"""

import importlib.util
import json
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.smolvlm import processing_smolvlm

from kivla.demo.tiny_vlm import byte_tokenizer
from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from tests.helpers.families import (
    AUDIO_ID,
    END_ID,
    FAMILIES,
    IMAGE_ID,
    START_ID,
    VIDEO_ID,
    VOCAB_SIZE,
    randomize_zero_parameters,
)

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
FIRST_SPECIAL, NUM_SPECIALS = IMAGE_ID, 14  # ids 200..213 of `tests.helpers.families`
ROOMY_VOCAB_SIZE = 1024  # bytes, special tokens and action tokens

# SmolVLM asks for a package that spells out the number of a video's frames. No test has videos.
processing_smolvlm.num2words = processing_smolvlm.num2words or str


class NoMedia:
    """In the place of a video or audio processor: those need torchvision or torchaudio, and no test has such input."""

    model_input_names = ()
    merge_size = 2
    num_frames = fps = 1
    video_sampling = {"video_size": {"longest_edge": 16}}  # noqa: RUF012


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
            name = self.processor_class.removesuffix("Processor") + "VideoProcessor"
            # Qwen2.5-VL and EXAONE 4.5 have that of Qwen2-VL
            media["video_processor"] = getattr(transformers, name, transformers.Qwen2VLVideoProcessor)()
        arguments = {"chat_template": self.chat_template, **self.arguments, **media}
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
        if name.startswith("vocab_size") and value == VOCAB_SIZE:
            return ROOMY_VOCAB_SIZE
        is_special = name.endswith(("_id", "_ids", "_index")) and value in range(FIRST_SPECIAL, VOCAB_SIZE)
        return value + shift if is_special else value

    return {name: moved(name, value) for name, value in settings.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Chat templates
# ---------------------------------------------------------------------------------------------------------------------


def chat_ml(image: str, think: bool = False) -> str:
    """Qwen, InternVL, Ovis 2."""
    answer = "<|im_start|>assistant\n" + ("<think>\n" if think else "")
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
        "{% if content['type'] == 'image' %}" + image + "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}" + answer + "{% endif %}"
    )


GEMMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}<start_of_image>"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA4 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}<|image|>"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
VIPLLAVA = (
    "{% for message in messages %}###{{ 'Assistant' if message['role'] == 'assistant' else 'Human' }}: "
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>\n"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}###Assistant:{% endif %}"
)
LLAVA_ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{{ 'Assistant' if message['role'] == 'assistant' else 'User' }}: "
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}<image_placeholder>"
    "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ item['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
AYA = (
    "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>"
    "{{ '<|CHATBOT_TOKEN|>' if message['role'] == 'assistant' else '<|USER_TOKEN|>' }}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}<image>{% else %}{{ item['text'] }}"
    "{% endif %}{% endfor %}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
LLAMA4 = (
    "{{ bos_token }}{% for message in messages %}<|header_start|>{{ message['role'] }}<|header_end|>\n\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<|image|>"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}[IMG]"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}[/INST]"
    "{% else %}{{ message['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
)

# ---------------------------------------------------------------------------------------------------------------------
# The kinds
# ---------------------------------------------------------------------------------------------------------------------

CHAT_ML_TOKENS = ("<|im_start|>", "<|im_end|>")
SMALL = {"height": 8, "width": 8}
MEDIUM = {"height": 16, "width": 16}
QWEN_IMAGES = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 256}}
QWEN_TOKENS = {
    IMAGE_ID: "<|image_pad|>",
    VIDEO_ID: "<|video_pad|>",
    START_ID: "<|vision_start|>",
    END_ID: "<|vision_end|>",
}
IDEFICS_IMAGES = {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": False}
IDEFICS_TOKENS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>")
AYA_TURNS = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
PIXTRAL_IMAGES = {"size": {"longest_edge": 16}, "patch_size": {"height": 4, "width": 4}}
GLM_KIND = {
    "image_processor": (
        "Glm4vImageProcessorPil",
        {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 512}},
    ),
    "tokens": {
        IMAGE_ID: "<|image|>",
        VIDEO_ID: "<|video|>",
        START_ID: "<|begin_of_image|>",
        END_ID: "<|end_of_image|>",
    },
    "chat_template": GLM,
    "other_tokens": ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|begin_of_video|>", "<|end_of_video|>"),
    "takes_media": ("video_processor",),
}
LLAVA_NEXT_IMAGES = {"size": {"shortest_edge": 8}, "crop_size": SMALL, "image_grid_pinpoints": [[8, 8]]}
LLAVA_KIND = {
    "family": "llava",
    "processor_class": "LlavaProcessor",
    "image_processor": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 8}, "crop_size": SMALL}),
    "tokens": {IMAGE_ID: "<image>"},
    "arguments": {
        "patch_size": 4,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    },
    "adds_bos": True,
}

_ALL: dict[str, Kind] = {
    "paligemma": Kind(
        "paligemma",
        "PaliGemmaProcessor",
        ("SiglipImageProcessorPil", {"size": SMALL}),
        {IMAGE_ID: "<image>"},
        named_tokens={"image_token": "<image>"},
        settings={"vocab_size": 2048, "text_config.vocab_size": 2048},
        # the last words of the base vocabulary, as in the released tokenizer
        base_words=(*(f"<loc{i:04}>" for i in range(1024)), *(f"<seg{i:03}>" for i in range(128))),
    ),
    "gemma3": Kind(
        "gemma3",
        "Gemma3Processor",
        ("Gemma3ImageProcessorPil", {"size": MEDIUM}),
        {IMAGE_ID: "<image_soft_token>", START_ID: "<start_of_image>", END_ID: "<end_of_image>"},
        chat_template=GEMMA3,
        adds_bos=True,
        arguments={"image_seq_length": 4},
        other_tokens=("<start_of_turn>", "<end_of_turn>"),
        named_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    ),
    "gemma4": Kind(
        "gemma4",
        "Gemma4Processor",
        ("Gemma4ImageProcessorPil", {"patch_size": 4, "max_soft_tokens": 70}),
        {IMAGE_ID: "<|image|>", VIDEO_ID: "<|video|>", AUDIO_ID: "<|audio|>", START_ID: "<|image>", END_ID: "<image|>"},
        chat_template=GEMMA4,
        adds_bos=True,
        other_tokens=("<|turn>", "<turn|>"),
        named_tokens={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        settings={"vision_config.position_embedding_size": 64},
        takes_media=("video_processor", "feature_extractor"),
    ),
    **{
        name: Kind(
            name,
            "Qwen2_5_VLProcessor" if name == "qwen2_5_vl" else f"Qwen{version}VLProcessor",
            ("Qwen2VLImageProcessorPil", QWEN_IMAGES),
            QWEN_TOKENS,
            chat_template=chat_ml("<|vision_start|><|image_pad|><|vision_end|>", think=name == "qwen3_5"),
            other_tokens=CHAT_ML_TOKENS,
            takes_media=("video_processor",),
        )
        for name, version in (("qwen2_vl", 2), ("qwen2_5_vl", 2), ("qwen3_vl", 3), ("qwen3_5", 3))
    },
    "smolvlm": Kind(
        "smolvlm",
        "SmolVLMProcessor",
        ("SmolVLMImageProcessorPil", IDEFICS_IMAGES),
        {IMAGE_ID: "<image>"},
        chat_template=SMOLVLM,
        arguments={"image_seq_len": 4},
        other_tokens=(*IDEFICS_TOKENS, "<video>"),
        takes_media=("video_processor",),
    ),
    "idefics3": Kind(
        "idefics3",
        "Idefics3Processor",
        ("Idefics3ImageProcessorPil", IDEFICS_IMAGES),
        {IMAGE_ID: "<image>"},
        chat_template=SMOLVLM,
        arguments={"image_seq_len": 4},
        other_tokens=IDEFICS_TOKENS,
    ),
    "llava": Kind(**LLAVA_KIND, chat_template=LLAVA),
    "llava_without_chat": Kind(**LLAVA_KIND),
    "llava_next": Kind(
        "llava_next",
        "LlavaNextProcessor",
        ("LlavaNextImageProcessorPil", LLAVA_NEXT_IMAGES),
        {IMAGE_ID: "<image>"},
        chat_template=LLAVA,
        adds_bos=True,
        arguments=LLAVA_KIND["arguments"],
    ),
    "llava_onevision": Kind(
        "llava_onevision",
        "LlavaOnevisionProcessor",
        ("LlavaOnevisionImageProcessorPil", {"size": SMALL, "image_grid_pinpoints": [[8, 8]]}),
        {IMAGE_ID: "<image>", VIDEO_ID: "<video>"},
        chat_template=LLAVA_ONEVISION,
        arguments={"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
        other_tokens=CHAT_ML_TOKENS,
        takes_media=("video_processor",),
    ),
    "internvl": Kind(
        "internvl",
        "InternVLProcessor",
        ("GotOcr2ImageProcessorPil", {"size": MEDIUM, "max_patches": 2}),
        {IMAGE_ID: "<IMG_CONTEXT>", VIDEO_ID: "<video>", START_ID: "<img>", END_ID: "</img>"},
        chat_template=chat_ml("<IMG_CONTEXT>\n"),
        arguments={"image_seq_length": 4},
        other_tokens=CHAT_ML_TOKENS,
        named_tokens={
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
        takes_media=("video_processor",),
    ),
    "glm4v": Kind("glm4v", "Glm4vProcessor", **GLM_KIND),
    "ovis2": Kind(
        "ovis2",
        "Ovis2Processor",
        ("Ovis2ImageProcessorPil", {"size": SMALL}),
        {
            IMAGE_ID: "<IMG_ATOM>",
            205: "<IMG_START>",
            206: "<IMG_GRID>",
            207: "<IMG_COL>",
            208: "<IMG_ROW>",
            209: "<IMG_END>",
        },
        chat_template=chat_ml("<image>\n"),
        arguments={"image_seq_length": 4},
        other_tokens=("<image>", *CHAT_ML_TOKENS),
    ),
    "aya_vision": Kind(
        "aya_vision",
        "AyaVisionProcessor",
        ("GotOcr2ImageProcessorPil", {"size": MEDIUM, "max_patches": 2}),
        {IMAGE_ID: "<|IMG_PATCH|>"},
        chat_template=AYA,
        adds_bos=True,
        arguments={"patch_size": 4, "img_size": 16, "downsample_factor": 2},
        other_tokens=("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE", "TILE_GLOBAL", *AYA_TURNS),
    ),
    "fast_vlm": Kind(
        "fast_vlm",
        "LlavaProcessor",
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 8}, "crop_size": SMALL}),
        {IMAGE_ID: "<image>"},
        chat_template=chat_ml("<image>\n"),
        arguments={"patch_size": 4, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0},
        other_tokens=CHAT_ML_TOKENS,
        is_slow=True,
    ),
    "vipllava": Kind(
        **LLAVA_KIND | {"family": "vipllava"},
        chat_template=VIPLLAVA,
        is_slow=True,
    ),
    "idefics2": Kind(
        "idefics2",
        "Idefics2Processor",
        ("Idefics2ImageProcessorPil", {"size": {"shortest_edge": 8, "longest_edge": 16}, "do_image_splitting": False}),
        {IMAGE_ID: "<image>"},
        chat_template=SMOLVLM.replace("<|im_start|>", "{{ bos_token }}", 1),
        adds_bos=True,
        arguments={"image_seq_len": 4},
        other_tokens=("<fake_token_around_image>", "<end_of_utterance>"),
    ),
    "lighton_ocr": Kind(
        "lighton_ocr",
        "LightOnOcrProcessor",
        ("PixtralImageProcessorPil", PIXTRAL_IMAGES | {"patch_size": {"height": 8, "width": 8}}),
        {IMAGE_ID: "<|image_pad|>"},
        chat_template=chat_ml("<|image_pad|>"),
        arguments={"patch_size": 4, "spatial_merge_size": 2},
        other_tokens=("<|vision_pad|>", "<|vision_end|>", *CHAT_ML_TOKENS),
        named_tokens={
            "image_token": "<|image_pad|>",
            "image_break_token": "<|vision_pad|>",
            "image_end_token": "<|vision_end|>",
        },
    ),
    "glm46v": Kind(
        "glm46v",
        "Glm46VProcessor",
        **GLM_KIND | {"image_processor": ("Glm46VImageProcessorPil", GLM_KIND["image_processor"][1])},
        is_slow=True,
    ),
    "glm_ocr": Kind(
        "glm_ocr",
        "Glm46VProcessor",
        **GLM_KIND | {"image_processor": ("Glm46VImageProcessorPil", GLM_KIND["image_processor"][1])},
        is_slow=True,
    ),
    "paddleocr_vl": Kind(
        "paddleocr_vl",
        "PaddleOCRVLProcessor",
        ("PaddleOCRVLImageProcessorPil", QWEN_IMAGES),
        {IMAGE_ID: "<|IMAGE_PLACEHOLDER|>", START_ID: "<|IMAGE_START|>", END_ID: "<|IMAGE_END|>"},
        chat_template=DEEPSEEK.replace("<image_placeholder>", "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
        adds_bos=True,
        named_tokens={"image_token": "<|IMAGE_PLACEHOLDER|>"},
        is_slow=True,
    ),
    "deepseek_vl_hybrid": Kind(
        "deepseek_vl_hybrid",
        "DeepseekVLHybridProcessor",
        (
            "DeepseekVLHybridImageProcessorPil",
            {"size": SMALL, "min_size": 2, "high_res_size": {"height": 32, "width": 32}},
        ),
        {IMAGE_ID: "<image_placeholder>"},
        chat_template=DEEPSEEK,
        adds_bos=True,
        arguments={"num_image_tokens": 4},
        named_tokens={"image_token": "<image_placeholder>"},
        is_slow=True,
    ),
    "exaone4_5": Kind(
        "exaone4_5",
        "Exaone4_5_Processor",
        ("Qwen2VLImageProcessorPil", QWEN_IMAGES),
        {IMAGE_ID: "<|image_pad|>", VIDEO_ID: "<|video_pad|>"},
        chat_template=chat_ml("<vision><|image_pad|></vision>"),
        other_tokens=("<vision>", "</vision>", *CHAT_ML_TOKENS),
        takes_media=("video_processor",),
        is_slow=True,
    ),
    "qianfan_ocr": Kind(
        "qianfan_ocr",
        "QianfanOCRProcessor",
        ("GotOcr2ImageProcessorPil", {"size": MEDIUM, "max_patches": 2}),
        {IMAGE_ID: "<IMG_CONTEXT>", START_ID: "<img>", END_ID: "</img>"},
        chat_template=chat_ml("<image>\n"),
        arguments={"image_seq_length": 4},
        other_tokens=("<image>", *CHAT_ML_TOKENS),
        named_tokens={
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
        },
        is_slow=True,
    ),
    "llava_next_video": Kind(
        "llava_next_video",
        "LlavaNextVideoProcessor",
        ("LlavaNextImageProcessorPil", LLAVA_NEXT_IMAGES),
        {IMAGE_ID: "<image>", VIDEO_ID: "<video>"},
        chat_template=LLAVA,
        adds_bos=True,
        arguments=LLAVA_KIND["arguments"],
        takes_media=("video_processor",),
        is_slow=True,
    ),
    "granite4_vision": Kind(
        "granite4_vision",
        "Granite4VisionProcessor",
        (
            "LlavaNextImageProcessorPil",
            {"size": {"shortest_edge": 16}, "crop_size": MEDIUM, "image_grid_pinpoints": [[16, 16]]},
        ),
        {IMAGE_ID: "<image>"},
        chat_template=LLAVA,
        arguments={
            "patch_size": 4,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
            "downsample_rate": "1/2",
        },
        is_slow=True,
    ),
    "deepseek_vl": Kind(
        "deepseek_vl",
        "DeepseekVLProcessor",
        ("DeepseekVLImageProcessorPil", {"size": SMALL, "min_size": 2}),
        {IMAGE_ID: "<image_placeholder>"},
        chat_template=DEEPSEEK,
        adds_bos=True,
        arguments={"num_image_tokens": 4},
        named_tokens={"image_token": "<image_placeholder>"},
        is_slow=True,
    ),
    "janus": Kind(
        "janus",
        "JanusProcessor",
        ("JanusImageProcessorPil", {"size": SMALL, "min_size": 2}),
        {IMAGE_ID: "<image_placeholder>"},
        chat_template=DEEPSEEK,
        adds_bos=True,
        arguments={"num_image_tokens": 4},
        other_tokens=("<begin_of_image>", "<end_of_image>"),
        named_tokens={
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        },
        is_slow=True,
    ),
}

# Their code imports torchvision
_OF_TORCHVISION: dict[str, Kind] = {
    "lfm2_vl": Kind(
        "lfm2_vl",
        "Lfm2VlProcessor",
        (
            "Lfm2VlImageProcessor",
            {
                "encoder_patch_size": 4,
                "tile_size": 16,
                "min_tiles": 2,
                "max_tiles": 2,
                "min_image_tokens": 2,
                "max_image_tokens": 4,
            },
        ),
        {IMAGE_ID: "<image>"},
        chat_template="{{ bos_token }}" + chat_ml("<image>"),
        other_tokens=(
            *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *CHAT_ML_TOKENS),
            *(f"<|img_row_{row}_col_{column}|>" for row, column in ((1, 1), (1, 2), (2, 1))),
        ),
        named_tokens={"image_token": "<image>"},
    ),
    "molmo2": Kind(
        "molmo2",
        "Molmo2Processor",
        ("Molmo2ImageProcessor", {"size": MEDIUM, "patch_size": 4, "max_crops": 2, "overlap_margins": [1, 1]}),
        {
            IMAGE_ID: "<im_patch>",
            START_ID: "<im_start>",
            END_ID: "<im_end>",
            205: "<low_res_im_start>",
            206: "<frame_start>",
            207: "<frame_end>",
        },
        chat_template=chat_ml("<|image|>"),
        other_tokens=("<im_col>", "<im_low>", "<|image|>", "<|video|>", *CHAT_ML_TOKENS),
        named_tokens={"image_token": "<|image|>"},
        takes_media=("video_processor",),
    ),
    "cohere2_vision": Kind(
        "cohere2_vision",
        "Cohere2VisionProcessor",
        ("Cohere2VisionImageProcessor", {"size": MEDIUM, "max_patches": 2, "patch_size": 2}),
        {IMAGE_ID: "<|IMG_PATCH|>"},
        chat_template=AYA.replace("<image>", "<|IMG_PATCH|>"),
        adds_bos=True,
        other_tokens=("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", *AYA_TURNS),
        named_tokens={
            "image_token": "<|IMG_PATCH|>",
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
    ),
    "llama4": Kind(
        "llama4",
        "Llama4Processor",
        ("Llama4ImageProcessor", {"size": MEDIUM, "max_patches": 2}),
        {IMAGE_ID: "<|patch|>", START_ID: "<|image_start|>", END_ID: "<|image_end|>"},
        chat_template=LLAMA4,
        adds_bos=True,
        arguments={"patch_size": 4},
        other_tokens=(
            *("<|image|>", "<|tile_x_separator|>", "<|tile_y_separator|>"),
            *("<|header_start|>", "<|header_end|>", "<|eot|>"),
        ),
    ),
    "perception_lm": Kind(
        "perception_lm",
        "PerceptionLMProcessor",
        ("PerceptionLMImageProcessor", {"tile_size": 8, "vision_input_type": "vanilla"}),
        {IMAGE_ID: "<|image|>", VIDEO_ID: "<|video|>"},
        chat_template=LLAMA4,
        adds_bos=True,
        arguments={"patch_size": 4, "pooling_ratio": 1},
        other_tokens=("<|header_start|>", "<|header_end|>", "<|eot|>"),
        named_tokens={"image_token": "<|image|>", "video_token": "<|video|>"},
        takes_media=("video_processor",),
    ),
    "mistral3": Kind(
        "mistral3",
        "PixtralProcessor",
        ("PixtralImageProcessorPil", PIXTRAL_IMAGES),
        {IMAGE_ID: "[IMG]"},
        chat_template=MISTRAL,
        adds_bos=True,
        arguments={"patch_size": 4, "spatial_merge_size": 2},
        other_tokens=("[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"),
    ),
}
_ALL |= {name: replace(kind, needs="torchvision") for name, kind in _OF_TORCHVISION.items()}

# The processor of another kind, and a decoder of its own
_ALL |= {
    name: replace(_ALL[like], family=name, is_slow=True)
    for name, like in {
        "paligemma2": "paligemma",
        "qwen3_vl_moe": "qwen3_vl",
        "qwen3_5_moe": "qwen3_5",
        "cosmos3_omni": "qwen3_vl",
        "qwen4_exp": "qwen3_vl",
        "mistral3_moe": "mistral3",
        "mistral_large4": "mistral3",
        "glm4v_moe": "glm4v",
        "gemma4_moe": "gemma4",
    }.items()
}

# an older transformers has fewer families
KINDS = {name: kind for name, kind in _ALL.items() if kind.family in FAMILIES}

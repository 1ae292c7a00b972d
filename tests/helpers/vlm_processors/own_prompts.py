"""Processors that write prompts of their own: `KIVLAProcessor` refuses them. By the family whose they are."""

from kivla.demo.tiny_vlm import byte_tokenizer
from tests.helpers.families import FAMILIES, IMAGE_ID, VIDEO_ID

from .chat_templates import GEMMA3
from .kind import SMALL, Kind
from .one_size import ONE_SIZE

BLIP_IMAGES = ("BlipImageProcessorPil", {"size": SMALL})
BLIP = {
    "tokens": {IMAGE_ID: "<image>", VIDEO_ID: "<video>"},
    "arguments": {"num_query_tokens": 4},
}
KOSMOS_TOKENS = {"image_token": "<s>", "boi_token": "<image>", "eoi_token": "</image>"}

_ALL = {
    "blip-2": Kind("blip-2", "Blip2Processor", BLIP_IMAGES, **BLIP),
    **{
        name: Kind(
            name,
            processor_class,
            BLIP_IMAGES,
            takes_media=media,
            **BLIP | {"arguments": {"num_query_tokens": 4, "qformer_tokenizer": byte_tokenizer()}},
        )
        for name, processor_class, media in (
            ("instructblip", "InstructBlipProcessor", ()),
            ("instructblipvideo", "InstructBlipVideoProcessor", ("video_processor",)),
        )
    },
    "kosmos-2": Kind(
        "kosmos-2",
        "Kosmos2Processor",
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 8}, "crop_size": SMALL}),
        {},
        arguments={"num_patch_index_tokens": 4},
    ),
    "kosmos-2.5": Kind(
        "kosmos-2.5",
        "Kosmos2_5Processor",
        ("Kosmos2_5ImageProcessorPil", {"patch_size": {"height": 4, "width": 4}}),
        {IMAGE_ID: "<s>"},
        arguments={"num_image_tokens": 4},
        other_tokens=("<image>", "</image>"),
        named_tokens=KOSMOS_TOKENS,
    ),
    "fuyu": Kind(
        "fuyu",
        "FuyuProcessor",
        ("FuyuImageProcessorPil", {"size": SMALL, "patch_size": {"height": 4, "width": 4}}),
        {IMAGE_ID: "|SPEAKER|"},
        other_tokens=("|NEWLINE|", "<0x04>", "<s>"),
    ),
    "shieldgemma2": Kind(
        "shieldgemma2",
        "ShieldGemma2Processor",
        ONE_SIZE["gemma3"].image_processor,
        ONE_SIZE["gemma3"].tokens,
        chat_template=GEMMA3,
        arguments=ONE_SIZE["gemma3"].arguments,
        named_tokens=ONE_SIZE["gemma3"].named_tokens,
    ),
}
WITHOUT = {name: kind for name, kind in _ALL.items() if name in FAMILIES}

"""Processors that cut pictures into a grid of patches: the larger a picture, the more tokens it takes."""

from dataclasses import replace

from tests.helpers.families import AUDIO_ID, END_ID, IMAGE_ID, START_ID, VIDEO_ID

from .chat_templates import AYA, DEEPSEEK, DOTS, GEMMA4, GLM, KIMI, LLAVA, MISTRAL, chat_ml
from .kind import AYA_TURNS, CHAT_ML_TOKENS, FIRST_ID, SMALL, Kind, named

QWEN_IMAGES = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 256}}
QWEN_TOKENS = {
    IMAGE_ID: "<|image_pad|>",
    VIDEO_ID: "<|video_pad|>",
    START_ID: "<|vision_start|>",
    END_ID: "<|vision_end|>",
}
QWEN_CHAT = chat_ml("<|vision_start|><|image_pad|><|vision_end|>")
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
SOUND_TOO = ("video_processor", "feature_extractor")
MUSE_KIND = {
    "image_processor": ("MuseGlimmerImageProcessor", {"patch_size": 4, "max_image_tokens": 8}),
    "tokens": {
        IMAGE_ID: "<|patch|>",
        VIDEO_ID: "<|video|>",
        AUDIO_ID: "<|audio|>",
        START_ID: "<|image_start|>",
        END_ID: "<|image_end|>",
    },
    "chat_template": chat_ml("<|patch|>"),
    "other_tokens": ("<|vid_frame_separator|>", "<|vid_start|>", "<|vid_end|>", *CHAT_ML_TOKENS),
    "needs": "torchvision",
    "is_slow": True,
}
INKLING_IMAGE = "<|unused_200054|>"
OMNI_TOKENS = {
    IMAGE_ID: "<|IMAGE|>",
    VIDEO_ID: "<|VIDEO|>",
    AUDIO_ID: "<|AUDIO|>",
    START_ID: "<|vision_bos|>",
    END_ID: "<|vision_eos|>",
    205: "<|audio_bos|>",
    206: "<|audio_eos|>",
}
APERTUS_TOKENS = {
    IMAGE_ID: "<|image|>",
    AUDIO_ID: "<|audio|>",
    START_ID: "<|img_start|>",
    END_ID: "<|img_end|>",
    205: "<|img_token_start|>",
    206: "<|img_end_of_row|>",
    207: "<|audio_start|>",
    208: "<|audio_end|>",
}
ERNIE_TOKENS = {
    IMAGE_ID: "<|IMAGE_PLACEHOLDER|>",
    VIDEO_ID: "<|VIDEO_PLACEHOLDER|>",
    START_ID: "<|IMAGE_START|>",
    END_ID: "<|IMAGE_END|>",
    205: "<|VIDEO_START|>",
    206: "<|VIDEO_END|>",
}

GRIDS: dict[str, Kind] = {
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
    "glm4v": Kind("glm4v", "Glm4vProcessor", **GLM_KIND),
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
    "mistral3": Kind(
        "mistral3",
        "PixtralProcessor",
        ("PixtralImageProcessorPil", PIXTRAL_IMAGES),
        {IMAGE_ID: "[IMG]"},
        chat_template=MISTRAL,
        adds_bos=True,
        arguments={"patch_size": 4, "spatial_merge_size": 2},
        other_tokens=("[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"),
        needs="torchvision",
    ),
    "cohere_compass": Kind(
        "cohere_compass",
        "CohereCompassProcessor",
        ("CohereCompassImageProcessorPil", QWEN_IMAGES),
        {
            IMAGE_ID: "<|IMAGE_PAD|>",
            VIDEO_ID: "<|VIDEO_PAD|>",
            START_ID: "<|VISION_START|>",
            END_ID: "<|VISION_END|>",
        },
        chat_template=AYA.replace("<image>", "<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"),
        adds_bos=True,
        other_tokens=AYA_TURNS,
        takes_media=("video_processor",),
        is_slow=True,
    ),
    "hy_v4_vl": Kind(
        "hy_v4_vl",
        "HYV4VLProcessor",
        ("HYV4VLImageProcessorPil", QWEN_IMAGES),
        {IMAGE_ID: "<|image_pad|>", VIDEO_ID: "<|video_pad|>"},
        chat_template=QWEN_CHAT,
        other_tokens=("<|vision_start|>", "<|vision_end|>", *CHAT_ML_TOKENS),
        takes_media=("video_processor",),
        is_slow=True,
    ),
    "cosmos3_edge": Kind(
        "cosmos3_edge",
        "Cosmos3EdgeProcessor",
        ("Cosmos3EdgeImageProcessorPil", QWEN_IMAGES),
        QWEN_TOKENS,
        chat_template=QWEN_CHAT,
        other_tokens=CHAT_ML_TOKENS,
        takes_media=("video_processor",),
    ),
    "lfm3_vl": Kind(
        "lfm3_vl",
        "Lfm3VlProcessor",
        ("Qwen2VLImageProcessorPil", QWEN_IMAGES),
        QWEN_TOKENS,
        chat_template="{{ bos_token }}" + QWEN_CHAT,
        other_tokens=CHAT_ML_TOKENS,
        takes_media=("video_processor",),
        is_slow=True,
    ),
    "hyperclovax_vision_v2": Kind(
        "hyperclovax_vision_v2",
        "HyperCLOVAXVisionV2Processor",
        ("Qwen2VLImageProcessorPil", QWEN_IMAGES),
        {IMAGE_ID: "<|image_pad|>", VIDEO_ID: "<|video_pad|>"},
        chat_template=chat_ml("<|image_start|><|image_pad|><|image_end|>"),
        other_tokens=("<|image_start|>", "<|image_end|>", *CHAT_ML_TOKENS),
        takes_media=("video_processor",),
        is_slow=True,
    ),
    "video_llama_3": Kind(
        "video_llama_3",
        "VideoLlama3Processor",
        ("VideoLlama3ImageProcessorPil", QWEN_IMAGES),
        {IMAGE_ID: "<image>", VIDEO_ID: "<video>"},
        chat_template=chat_ml("<image>\n"),
        other_tokens=CHAT_ML_TOKENS,
        named_tokens={"image_token": "<image>", "video_token": "<video>"},
        takes_media=("video_processor",),
        is_slow=True,
    ),
    "dots3_note": Kind(
        "dots3_note",
        "Dots3NoteProcessor",
        ("Qwen2VLImageProcessorPil", QWEN_IMAGES | {"temporal_patch_size": 1}),
        {IMAGE_ID: "<|imgpad|>", VIDEO_ID: "<|video_pad|>", AUDIO_ID: "<|audio_comp_pad|>"},
        chat_template=DOTS,
        other_tokens=(
            *("<|img|>", "<|endofimg|>", "<|userprompt|>", "<|endofuserprompt|>"),
            *("<|response|>", "<|endofresponse|>"),
        ),
        takes_media=SOUND_TOO,
        is_slow=True,
    ),
    "ernie4_5_vl_moe": Kind(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeProcessor",
        ("Ernie4_5_VLMoeImageProcessorPil", QWEN_IMAGES),
        ERNIE_TOKENS,
        chat_template=DEEPSEEK.replace("<image_placeholder>", "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
        adds_bos=True,
        named_tokens=named(
            ERNIE_TOKENS,
            *("image_token", "video_token", "image_start_token", "image_end_token"),
            *("video_start_token", "video_end_token"),
        ),
        takes_media=("video_processor",),
        is_slow=True,
    ),
    **{
        name: Kind(
            name,
            processor_class,
            ("Qwen2VLImageProcessorPil", QWEN_IMAGES),
            OMNI_TOKENS,
            chat_template=chat_ml("<|vision_bos|><|IMAGE|><|vision_eos|>"),
            other_tokens=CHAT_ML_TOKENS,
            named_tokens=named(
                OMNI_TOKENS,
                *("image_token", "video_token", "audio_token", "vision_bos_token", "vision_eos_token"),
                *("audio_bos_token", "audio_eos_token"),
            ),
            takes_media=SOUND_TOO,
            is_slow=True,
        )
        for name, processor_class in (
            ("qwen2_5_omni_thinker", "Qwen2_5OmniProcessor"),
            ("qwen3_omni_moe_thinker", "Qwen3OmniMoeProcessor"),
        )
    },
    "glm5_next": Kind(
        "glm5_next",
        "Glm5NextProcessor",
        **GLM_KIND
        | {
            "image_processor": (
                "Glm5NextImageProcessorPil",
                {"patch_size": 4, "min_image_tokens": 1, "max_image_tokens": 8},
            )
        },
        is_slow=True,
    ),
    "glmga": Kind(
        "glmga",
        "Glm46VProcessor",
        **GLM_KIND | {"image_processor": ("GlmgaImageProcessorPil", GLM_KIND["image_processor"][1])},
        is_slow=True,
    ),
    "hunyuan_vl": Kind(
        "hunyuan_vl",
        "HunYuanVLProcessor",
        ("HunYuanVLImageProcessorPil", QWEN_IMAGES),
        {IMAGE_ID: "<image>", START_ID: "<im_start>", END_ID: "<im_end>", 205: "<im_newline>"},
        chat_template=chat_ml("<im_start><image><im_end>"),
        other_tokens=CHAT_ML_TOKENS,
        named_tokens={"image_token": "<image>", "image_start_token": "<im_start>", "image_end_token": "<im_end>"},
        is_slow=True,
    ),
    "emu3": Kind(
        "emu3",
        "Emu3Processor",
        ("Emu3ImageProcessor", {"min_pixels": 64, "max_pixels": 256}),
        {IMAGE_ID: "<image>"},
        chat_template=LLAVA.replace("<image>\n", "<image>"),
        other_tokens=("<|image start|>", "<|image end|>", "<|image token|>", "<|extra_201|>"),
        named_tokens={
            "image_token": "<image>",
            "boi_token": "<|image start|>",
            "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>",
            "eof_token": "<|extra_201|>",
        },
        settings={
            "vq_config.channel_multiplier": [1, 1, 1, 1],
            "vocabulary_map": {"<image>": FIRST_ID, "<|extra_200|>": 900}
            | {f"<|visual token {i:06}|>": 901 + i for i in range(16)},
        },
        is_slow=True,
    ),
    "apertus1p5": Kind(
        "apertus1p5",
        "Apertus1p5Processor",
        ("Apertus1p5ImageProcessor", {"size": {"min_pixels": 16, "max_pixels": 128}, "spatial_factor": 4}),
        APERTUS_TOKENS,
        chat_template=chat_ml("<|image|>"),
        other_tokens=CHAT_ML_TOKENS,
        named_tokens=named(
            APERTUS_TOKENS,
            *("image_token", "audio_token", "boi_token", "eoi_token", "image_wrapper_token", "eol_token"),
            *("boa_token", "eoa_token"),
        ),
        settings={"image_token_offset": 900, "audio_token_offset": 916},
        takes_media=("feature_extractor",),
        needs="torchvision",
        is_slow=True,
    ),
    "inkling2": Kind(
        "inkling2",
        "Inkling2Processor",
        ("Inkling2ImageProcessor", {"size": SMALL}),
        {IMAGE_ID: INKLING_IMAGE},
        chat_template=chat_ml(INKLING_IMAGE),
        other_tokens=CHAT_ML_TOKENS,
        settings={"text_config.unpadded_vocab_size": 1000},
        needs="torchvision",
        is_slow=True,
    ),
    "inkling_mm_model": Kind(
        "inkling_mm_model",
        "InklingProcessor",
        ("InklingImageProcessor", {"size": {"height": 4, "width": 4}}),
        {
            IMAGE_ID: INKLING_IMAGE,
            AUDIO_ID: "<|unused_200053|>",
            START_ID: "<|content_image|>",
            205: "<|content_audio_input|>",
        },
        chat_template=chat_ml("<|content_image|>" + INKLING_IMAGE),
        other_tokens=CHAT_ML_TOKENS,
        takes_media=("feature_extractor",),
        needs="torchvision",
        is_slow=True,
    ),
    "kimi_k25": Kind(
        "kimi_k25",
        "Kimi_K25Processor",
        ("Kimi_K25ImageProcessor", {"patch_size": 4, "max_patches": 16}),
        {IMAGE_ID: "<|media_pad|>", VIDEO_ID: "<|kimi_k25_video_placeholder|>"},
        chat_template=KIMI,
        other_tokens=(
            *("<|media_begin|>", "<|media_content|>", "<|media_end|>"),
            *("<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
        ),
        takes_media=("video_processor",),
        needs="torchvision",
        is_slow=True,
    ),
    "minimax_m3_vl": Kind(
        "minimax_m3_vl",
        "MiniMaxM3VLProcessor",
        ("MiniMaxM3VLImageProcessor", QWEN_IMAGES),
        {IMAGE_ID: "]<]image[>[", VIDEO_ID: "]<]video[>["},
        chat_template=chat_ml("]<]image[>["),
        other_tokens=("]<]start of image[>[", "]<]end of image[>[", *CHAT_ML_TOKENS),
        takes_media=("video_processor",),
        needs="torchvision",
        is_slow=True,
    ),
    "muse_glimmer": Kind("muse_glimmer", "MuseGlimmerProcessor", takes_media=("video_processor",), **MUSE_KIND),
    "muse_spark": Kind("muse_spark", "MuseSparkProcessor", takes_media=SOUND_TOO, **MUSE_KIND),
    "nemotron_h_omni": Kind(
        "nemotron_h_omni",
        "NemotronH_Omni_Reasoning_V3Processor",
        (
            "NemotronH_Omni_Reasoning_V3ImageProcessor",
            {"patch_size": 4, "min_num_patches": 4, "max_num_patches": 16},
        ),
        {IMAGE_ID: "<image>", VIDEO_ID: "<video>", AUDIO_ID: "<so_embedding>"},
        chat_template=chat_ml("<image>\n"),
        other_tokens=("<img>", "</img>", *CHAT_ML_TOKENS),
        takes_media=SOUND_TOO,
        needs="torchvision",
        is_slow=True,
    ),
}
GRIDS["gemma4_unified"] = replace(
    GRIDS["gemma4"],
    family="gemma4_unified",
    processor_class="Gemma4UnifiedProcessor",
    image_processor=("Gemma4UnifiedImageProcessor", GRIDS["gemma4"].image_processor[1]),
    settings={"vision_config.mm_posemb_size": 64},
    needs="torchvision",
    is_slow=True,
)

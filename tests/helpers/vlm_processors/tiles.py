"""Processors that cut large pictures into tiles of one size, perhaps beside a small picture of the whole."""

from tests.helpers.families import END_ID, IMAGE_ID, START_ID, VIDEO_ID

from .chat_templates import AYA, DEEPSEEK, LLAMA4, LLAVA, LLAVA_ONEVISION, SMOLVLM, chat_ml
from .kind import AYA_TURNS, CHAT_ML_TOKENS, MEDIUM, NEWLINE_ID, SMALL, Kind, named
from .one_size import LLAVA_KIND

IDEFICS_IMAGES = {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": False}
IDEFICS_TOKENS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>")
LLAVA_NEXT_IMAGES = {"size": {"shortest_edge": 8}, "crop_size": SMALL, "image_grid_pinpoints": [[8, 8]]}
MINICPM_TOKENS = {
    IMAGE_ID: "<unk_image>",
    VIDEO_ID: "<unk_video>",
    START_ID: "<image>",
    END_ID: "</image>",
    205: "<slice>",
    206: "</slice>",
}
MINICPM_IDS = ("<image_id>", "</image_id>")
MINICPM_KIND = {
    "image_processor": (
        "MiniCPMV4_6ImageProcessorPil",
        {"scale_resolution": 32, "patch_size": 4, "max_slice_nums": 2},
    ),
    "tokens": MINICPM_TOKENS,
    "chat_template": chat_ml("<unk_image>\n"),
    "other_tokens": (*MINICPM_IDS, *CHAT_ML_TOKENS),
    "named_tokens": named(
        MINICPM_TOKENS,
        *("image_token", "video_token", "image_start_token", "image_end_token"),
        *("slice_start_token", "slice_end_token"),
    )
    | dict(zip(("image_id_start_token", "image_id_end_token"), MINICPM_IDS, strict=True)),
    "takes_media": ("video_processor",),
    "is_slow": True,
}
# Of DeepSeek's readers of documents
OCR_KIND = {
    "tokens": {IMAGE_ID: "<image>"},
    "chat_template": DEEPSEEK.replace("<image_placeholder>", "<image>"),
    "adds_bos": True,
    "arguments": {"patch_size": 4},
    "is_slow": True,
}

TILES: dict[str, Kind] = {
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
        needs="torchvision",
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
        needs="torchvision",
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
        needs="torchvision",
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
        needs="torchvision",
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
        needs="torchvision",
    ),
    "granite_docling": Kind(
        "granite_docling",
        "GraniteDoclingProcessor",
        ("GraniteDoclingImageProcessorPil", {"size": MEDIUM, "max_patches": 2}),
        {IMAGE_ID: "<image>"},
        chat_template=SMOLVLM,
        arguments={"image_seq_len": 4},
        other_tokens=(*IDEFICS_TOKENS, "<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>"),
        is_slow=True,
    ),
    "deepseek_ocr2": Kind(
        "deepseek_ocr2",
        "DeepseekOcr2Processor",
        # the smallest that makes the 144 tokens of its tower
        ("DeepseekOcr2ImageProcessorPil", {"size": {"height": 192, "width": 192}, "tile_size": 192}),
        **OCR_KIND,
    ),
    "unlimited_ocr": Kind(
        "unlimited_ocr",
        "UnlimitedOcrProcessor",
        ("UnlimitedOcrImageProcessor", {"size": {"height": 32, "width": 32}, "tile_size": 32}),
        needs="torchvision",
        **OCR_KIND,
    ),
    "minicpmv4_6": Kind("minicpmv4_6", "MiniCPMV4_6Processor", **MINICPM_KIND),
    "minicpmv4_7": Kind(
        "minicpmv4_7",
        "MiniCPMV4_7Processor",
        **MINICPM_KIND,
        settings={"newline_id": NEWLINE_ID},
    ),
    "minicpm_ocr": Kind(
        "minicpm_ocr",
        "MiniCPMOcrProcessor",
        **MINICPM_KIND
        | {
            "image_processor": (
                "MiniCPMOcrImageProcessor",
                {"scale_resolution": 16, "patch_size": 4, "max_slice_nums": 2},
            )
        },
        needs="torchvision",
    ),
    "step3p7": Kind(
        "step3p7",
        "Step3p7Processor",
        (
            "Step3p7ImageProcessor",
            {"size": {"height": 32, "width": 32}, "patch_size": 16, "vision_patch_size": 4},
        ),
        {IMAGE_ID: "<im_patch>"},
        chat_template=chat_ml("<im_patch>"),
        other_tokens=("<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", "<im_end>", *CHAT_ML_TOKENS),
        needs="torchvision",
        is_slow=True,
    ),
}

"""Processors that make every picture the same size: each takes as many tokens as the next."""

from tests.helpers.families import END_ID, IMAGE_ID, START_ID, VIDEO_ID

from .chat_templates import DEEPSEEK, GEMMA3, LLAVA, SMOLVLM, VIPLLAVA, chat_ml
from .kind import CHAT_ML_TOKENS, FIRST_ID, MEDIUM, SMALL, Kind

CLIP_IMAGES = {"size": {"shortest_edge": 8}, "crop_size": SMALL}
LLAVA_KIND = {
    "family": "llava",
    "processor_class": "LlavaProcessor",
    "image_processor": ("CLIPImageProcessorPil", CLIP_IMAGES),
    "tokens": {IMAGE_ID: "<image>"},
    "arguments": {
        "patch_size": 4,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    },
    "adds_bos": True,
}
GOT_TOKENS = ("<img>", "</img>", *CHAT_ML_TOKENS)
# Gemma 3n knows the ids behind its words as pictures and sound, so action tokens are written over the last words
GEMMA3N_WORDS = ("<start_of_turn>", "<end_of_turn>", *(f"<unused{i}>" for i in range(400)))
GEMMA3N_FIRST = FIRST_ID + len(GEMMA3N_WORDS)

ONE_SIZE: dict[str, Kind] = {
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
    "llava": Kind(**LLAVA_KIND, chat_template=LLAVA),
    "llava_without_chat": Kind(**LLAVA_KIND),
    "fast_vlm": Kind(
        "fast_vlm",
        "LlavaProcessor",
        ("CLIPImageProcessorPil", CLIP_IMAGES),
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
    "aria": Kind(
        "aria",
        "AriaProcessor",
        ("AriaImageProcessorPil", {}),
        {IMAGE_ID: "<|img|>"},
        chat_template=chat_ml("<fim_prefix><|img|><fim_suffix>"),
        # it always makes pictures of 980 pixels
        arguments={"size_conversion": {980: 4}},
        other_tokens=("<fim_prefix>", "<fim_suffix>", *CHAT_ML_TOKENS),
        named_tokens={"image_token": "<|img|>"},
        settings={
            "vision_config.image_size": 980,
            "vision_config.patch_size": 196,
            "projector_patch_to_query_dict": {25: 4},
        },
        is_slow=True,
    ),
    "chameleon": Kind(
        "chameleon",
        "ChameleonProcessor",
        ("ChameleonImageProcessorPil", CLIP_IMAGES),
        {IMAGE_ID: "<image>"},
        arguments={"image_seq_length": 4},
        adds_bos=True,
        other_tokens=("<racm3:break>", "<eoss>", "<reserved08706>"),
        named_tokens={"sep_token": "<reserved08706>"},
        settings={
            "vocabulary_map": {"<image>": FIRST_ID}
            | {f"IMGIMG{''.join('ABCDEFGHIJ'[int(n)] for n in str(i))}Z": 900 + i for i in range(16)}
        },
    ),
    "gemma3n": Kind(
        "gemma3n",
        "Gemma3nProcessor",
        ("SiglipImageProcessorPil", {"size": SMALL}),
        {
            IMAGE_ID: "<image_soft_token>",
            204: "<audio_soft_token>",
            210: "<start_of_image>",
            211: "<end_of_image>",
            212: "<start_of_audio>",
            213: "<end_of_audio>",
        },
        chat_template=GEMMA3.replace("<start_of_image>", "<image_soft_token>"),
        adds_bos=True,
        arguments={"image_seq_length": 4},
        base_words=GEMMA3N_WORDS,
        other_tokens=GEMMA3N_WORDS[:2],
        placement="tail",
        named_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "audio_token": "<audio_soft_token>",
            "boa_token": "<start_of_audio>",
            "eoa_token": "<end_of_audio>",
        },
        settings={
            "text_config.vocab_size_per_layer_input": GEMMA3N_FIRST,
            "vision_config.vocab_offset": GEMMA3N_FIRST,
            "audio_config.vocab_offset": GEMMA3N_FIRST + 4,
            "vision_config.vocab_size": 4,
            "audio_config.vocab_size": 12,
        },
        takes_media=("feature_extractor",),
    ),
    "got_ocr2": Kind(
        "got_ocr2",
        "GotOcr2Processor",
        ("GotOcr2ImageProcessorPil", {"size": {"height": 256, "width": 256}}),
        {IMAGE_ID: "<imgpad>"},
        other_tokens=GOT_TOKENS,
        # it writes 256 tokens for each picture
        settings={
            "vision_config.image_size": 256,
            "vision_config.patch_size": 4,
            "vision_config.global_attn_indexes": [],
        },
        is_slow=True,
    ),
    "pp_chart2table": Kind(
        "pp_chart2table",
        "PPChart2TableProcessor",
        ("PPChart2TableImageProcessorPil", {"size": {"height": 64, "width": 64}}),
        {IMAGE_ID: "<imgpad>"},
        chat_template=chat_ml(f"<img>{'<imgpad>' * 4}</img>\n"),  # the template writes them all
        other_tokens=GOT_TOKENS,
    ),
    "video_llava": Kind(
        "video_llava",
        "VideoLlavaProcessor",
        ("VideoLlavaImageProcessor", CLIP_IMAGES),
        {IMAGE_ID: "<image>", VIDEO_ID: "<video>"},
        chat_template=LLAVA,
        adds_bos=True,
        arguments={"patch_size": 4},
        takes_media=("video_processor",),
        is_slow=True,
    ),
}

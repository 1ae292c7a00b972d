"""Which families the fast lane tests, and which the slow lane adds."""

from collections.abc import Callable

import pytest

from .broken import BROKEN
from .table import FAMILIES

SLOW = frozenset(
    {
        "chameleon",
        "cohere_compass",
        "cosmos3_edge",
        "cosmos3_omni",
        "deepseek_ocr2",
        "deepseek_vl_hybrid",
        "dots3_note",
        "emu3",
        "fuyu",
        "gemma4_unified",
        "glm46v",
        "glm5_next",
        "glmga",
        "granite4_vision",
        "granite_docling",
        "hunyuan_vl",
        "hyperclovax_vision_v2",
        "inkling2",
        "inkling_mm_model",
        "lfm3_vl",
        "llava_next_video",
        "minicpm_ocr",
        "minicpmv4_6",
        "minicpmv4_7",
        "minimax_m3_vl",
        "mistral3_moe",
        "mistral_large4",
        "muse_glimmer",
        "muse_spark",
        "nemotron_h_omni",
        "pp_chart2table",
        "qianfan_ocr",
        "qwen2_5_omni_thinker",
        "qwen3_omni_moe_thinker",
        "qwen4_exp",
        "shieldgemma2",
        "step3p7",
        "unlimited_ocr",
        "video_llama_3",
        "video_llava",
    }
)


def each_family(test: Callable) -> Callable:
    """Decorator: the test is run for each family, by `name`; where the library's code breaks it, it must fail."""
    broken = BROKEN.get(test.__name__, {})
    cases = []
    for name in FAMILIES:
        marks = [pytest.mark.slow] if name in SLOW else []
        if name in broken:
            marks.append(pytest.mark.xfail(strict=True, reason=broken[name]))
        cases.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("name", cases)(test)

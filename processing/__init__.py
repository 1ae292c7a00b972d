from .action_tokenizers import ACTION_TOKENIZERS, ActionDecodingFailure, ActionTokenizer
from .binning_tokenizer import BinningActionTokenizer
from .fast_tokenizer import FASTActionTokenizer
from .normalization import (
    NORMALIZATION_MODES,
    STATISTICS,
    Normalizer,
    clip_to_range,
    compute_statistics,
    discretize_state,
    plain_statistics,
    statistics_from_json,
    statistics_to_json,
    with_ranges,
)
from .processing_kivla import KIVLAProcessor
from .relative_actions import RelativeActions, Rotation
from .tokenizer_registry import action_tokenizer_class, load_action_tokenizer

__all__ = [
    "ACTION_TOKENIZERS",
    "NORMALIZATION_MODES",
    "STATISTICS",
    "ActionDecodingFailure",
    "ActionTokenizer",
    "BinningActionTokenizer",
    "FASTActionTokenizer",
    "KIVLAProcessor",
    "Normalizer",
    "RelativeActions",
    "Rotation",
    "action_tokenizer_class",
    "clip_to_range",
    "compute_statistics",
    "discretize_state",
    "load_action_tokenizer",
    "plain_statistics",
    "statistics_from_json",
    "statistics_to_json",
    "with_ranges",
]

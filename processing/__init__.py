from .action_tokenizers import (
    ACTION_TOKENIZERS,
    ActionDecodingFailure,
    ActionTokenizer,
    BinningActionTokenizer,
    FASTActionTokenizer,
    load_action_tokenizer,
)
from .normalization import (
    NORMALIZATION_MODES,
    STATISTICS,
    Normalizer,
    clip_to_range,
    compute_statistics,
    discretize_state,
    statistics_from_json,
    statistics_to_json,
)
from .processing_kivla import KIVLAProcessor

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
    "clip_to_range",
    "compute_statistics",
    "discretize_state",
    "load_action_tokenizer",
    "statistics_from_json",
    "statistics_to_json",
]

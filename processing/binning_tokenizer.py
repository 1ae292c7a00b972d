"""Action tokens by bins: one code per value (RT-2, arXiv 2307.15818; OpenVLA, arXiv 2406.09246)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .action_constraint import CodeGrammar
from .action_tokenizers import ActionDecodingFailure, ActionTokenizer
from .saved_settings import check_bins, check_names


class BinningActionTokenizer(ActionTokenizer):
    """One code per value: `num_bins` bins of equal width between `low` and `high`, decoded to their centres.

    The codes of a chunk `(H, D)` are in C order: all dimensions of step 0, then of step 1, ...

    Raises:
        ValueError: fewer than two bins, or `low` not below `high`.
    """

    kind = "binning"

    def __init__(self, num_bins: int = 256, low: float = -1.0, high: float = 1.0):
        check_bins(num_bins, low, high)
        self.num_bins = num_bins
        self.low = low
        self.high = high

    @property
    def vocab_size(self) -> int:
        return self.num_bins

    @property
    def rms_error_bound(self) -> float:
        """Half a bin."""
        return (self.high - self.low) / self.num_bins / 2

    def quantization_error_bound(self, chunk_size: int) -> float:
        """Half a bin, whatever the chunk size."""
        return self.rms_error_bound

    def max_tokens(self, chunk_size: int, action_dim: int) -> int:
        return chunk_size * action_dim

    def steps_of(self, codes: Sequence[int], action_dim: int) -> np.ndarray:
        return np.arange(len(codes)) // action_dim

    def grammar(self) -> CodeGrammar:
        """Every code is one value."""
        return CodeGrammar(*np.repeat([[1], [0], [0]], self.num_bins, axis=1))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "num_bins": self.num_bins, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BinningActionTokenizer":
        check_names(values, ("num_bins", "low", "high"))
        return cls(values["num_bins"], values["low"], values["high"])

    @property
    def covers(self) -> str:
        return f"values {self.low}..{self.high}"

    def encode_chunk(self, chunk: np.ndarray) -> tuple[list[int], int]:
        clipped = np.clip(chunk, self.low, self.high)
        bins = np.floor((clipped - self.low) / (self.high - self.low) * self.num_bins).astype(np.int64)
        bins = np.minimum(bins, self.num_bins - 1)  # `high` itself belongs to the last bin
        return bins.ravel().tolist(), int((clipped != chunk).sum())

    def decode_codes(self, codes: list[int], chunk_size: int, action_dim: int) -> np.ndarray | ActionDecodingFailure:
        if len(codes) != chunk_size * action_dim:
            return ActionDecodingFailure("value_count", chunk_size * action_dim, len(codes))
        bins = np.array(codes).reshape(chunk_size, action_dim)
        return (self.low + (bins + 0.5) * (self.high - self.low) / self.num_bins).astype(np.float32)


__all__ = ["BinningActionTokenizer"]

"""An action tokenizer of a user's own, in one file: one code per value, with finer levels near zero (mu-law)."""

import numpy as np

from kivla.processing import ActionDecodingFailure, ActionTokenizer

MU = 255.0


class CompandingActionTokenizer(ActionTokenizer):
    kind = "companding"

    def __init__(self, limit: float, vocab_size: int = 64):
        self.limit = limit
        self.vocab_size = vocab_size

    @classmethod
    def fit(cls, chunks):
        return cls(limit=float(max(np.abs(chunk).max() for chunk in chunks)))

    def encode_chunk(self, chunk):
        within = np.clip(chunk / self.limit, -1, 1)
        level = np.sign(within) * np.log1p(MU * np.abs(within)) / np.log1p(MU)  # -1..1
        codes = np.rint((level + 1) / 2 * (self.vocab_size - 1)).astype(int)
        return codes.ravel().tolist(), int((np.abs(chunk) > self.limit).sum())

    def decode_codes(self, codes, chunk_size, action_dim):
        if len(codes) != chunk_size * action_dim:
            return ActionDecodingFailure("value_count", chunk_size * action_dim, len(codes))
        level = 2 * np.array(codes) / (self.vocab_size - 1) - 1
        values = np.sign(level) * np.expm1(np.abs(level) * np.log1p(MU)) / MU * self.limit
        return values.reshape(chunk_size, action_dim).astype(np.float32)

    def max_tokens(self, chunk_size, action_dim):
        return chunk_size * action_dim

    def to_dict(self):
        return {"kind": self.kind, "limit": self.limit, "vocab_size": self.vocab_size}

    @classmethod
    def from_dict(cls, values):
        return cls(values["limit"], values["vocab_size"])

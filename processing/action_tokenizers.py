"""Action tokenizers: a chunk of continuous actions <-> a short list of discrete codes.

The codes are what the VLM learns to predict; the processor maps code `k` to a token of the VLM's vocabulary.

* `FASTActionTokenizer`: DCT over time, rounding, byte-pair encoding (Pertsch et al. 2025, arXiv 2501.09747).
  Reads and writes the layout of `physical-intelligence/fast` without running that repository's code.
* `BinningActionTokenizer`: one code per value, uniform bins (RT-2, arXiv 2307.15818; OpenVLA, arXiv 2406.09246).

Both work on normalised float chunks `(chunk_size, action_dim)`, in numpy alone. What cannot be represented is
clipped, counted in `num_clipped` and logged once; what cannot be decoded is an `ActionDecodingFailure`.
"""

import json
import logging
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from .action_constraint import CodeGrammar

logger = logging.getLogger(__name__)

# `chr(c)` for c in 0xD800..0xDFFF is a lone surrogate, which no UTF-8 text (hence no BPE string) can hold.
FIRST_SURROGATE = 0xD800
# The character that stands for a byte in a byte-level BPE (GPT-2's table) -> the byte. Printable Latin-1 characters
# stand for themselves, the others are numbered from 256 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))}


@dataclass(frozen=True)
class ActionDecodingFailure:
    """Why a sequence of codes is no action chunk. Returned by `decode` in place of the chunk, never raised.

    Tell it from a chunk with `isinstance(result, ActionDecodingFailure)`.

    Attributes:
        reason: `"foreign_code"` (a code outside the vocabulary), `"value_count"` (too few or too many values for
            the chunk), `"undecodable_bytes"` (byte-level FAST only: the bytes form no character) or `"out_of_range"`
            (byte-level FAST only: a coefficient beyond any seen in `fit`, which would decode to an absurd action).
        expected: what a good sequence would have had.
        got: what this one had.
    """

    reason: str
    expected: Any
    got: Any

    def __str__(self) -> str:
        return f"no action chunk ({self.reason}): expected {self.expected}, got {self.got}"


# Every kind of action tokenizer, by the name that is saved with it
ACTION_TOKENIZERS: dict[str, type["ActionTokenizer"]] = {}


class ActionTokenizer(ABC):
    """What every action tokenizer offers. Codes are integers `0 .. vocab_size - 1`.

    One of your own is a subclass with a new `kind`; the processor takes it like the two below. To load a policy that
    was saved with it, import its class first.

    Attributes:
        kind: the name in `to_dict()` and in `ACTION_TOKENIZERS`.
        vocab_size: number of codes to reserve in the VLM's vocabulary.
        num_clipped: how many values (bins) or DCT coefficients (FAST) this object has clipped while encoding.
    """

    kind: ClassVar[str]
    vocab_size: int
    num_clipped: int = 0

    def __init_subclass__(cls, **kwargs):
        """A tokenizer of your own is known by its `kind` as soon as its class is defined."""
        super().__init_subclass__(**kwargs)
        ACTION_TOKENIZERS[cls.kind] = cls

    def __call__(self, chunks) -> list[list[int]]:
        """Same as `encode`."""
        return self.encode(chunks)

    def encode(self, chunks) -> list[list[int]]:
        """Turns chunks into codes, one list per chunk.

        Args:
            chunks: normalised floats `(B, H, D)`, one chunk `(H, D)`, or a list of chunks of different shapes.

        Raises:
            ValueError: another shape, or a value that is NaN or infinite (the message names the example).
        """
        sequences = []
        for chunk in _as_chunks(chunks):
            codes, clipped = self._encode_chunk(chunk)
            if clipped and not self.num_clipped:
                logger.warning(
                    f"Clipped {clipped} of {chunk.size} values of an action chunk, which this {type(self).__name__} "
                    f"cannot represent: it covers {self._range}. `num_clipped` goes on counting, this message is not "
                    "repeated. Check the normalisation statistics, or fit a tokenizer on data like this."
                )
            self.num_clipped += clipped
            sequences.append(codes)
        return sequences

    def decode(self, tokens, chunk_size: int, action_dim: int) -> list[np.ndarray | ActionDecodingFailure]:
        """Turns codes back into chunks. Sequences that a model made up never raise.

        Args:
            tokens: a list of sequences of codes (lists, or rows of an integer array or tensor).
            chunk_size: H, number of steps of each chunk.
            action_dim: D, number of values per step.

        Returns:
            For each sequence a float32 chunk `(H, D)`, or an `ActionDecodingFailure` that says why there is none.

        Raises:
            TypeError: `tokens` is a single flat sequence.
            ValueError: `chunk_size` or `action_dim` is not positive.
        """
        if chunk_size < 1 or action_dim < 1:
            raise ValueError(f"chunk_size and action_dim must be positive, got {chunk_size} and {action_dim}.")
        results = []
        for sequence in tokens:
            if isinstance(sequence, Integral):
                raise TypeError("decode() takes a list of sequences; put a single sequence into a list: [tokens].")
            codes = list(sequence) if isinstance(sequence, list | tuple) else sequence.tolist()
            foreign = [code for code in codes if not (isinstance(code, Integral) and 0 <= int(code) < self._num_codes)]
            if foreign:
                results.append(ActionDecodingFailure("foreign_code", f"codes 0..{self._num_codes - 1}", foreign[0]))
            else:
                results.append(self._decode_codes(codes, chunk_size, action_dim))
        return results

    def roundtrip_error(self, chunks) -> dict[str, float]:
        """How many codes the chunks take and what encoding loses, in normalised units.

        Returns:
            `tokens_mean` and `tokens_max` per chunk, `rmse` and `max_error` over all values, and `clipped`, the number
            of values or coefficients that had to be clipped.
        """
        chunks = _as_chunks(chunks)
        clipped_before = self.num_clipped
        sequences = self.encode(chunks)
        pairs = zip(chunks, sequences, strict=True)
        errors = np.concatenate([(self.decode([codes], *chunk.shape)[0] - chunk).ravel() for chunk, codes in pairs])
        lengths = [len(codes) for codes in sequences]
        return {
            "tokens_mean": float(np.mean(lengths)),
            "tokens_max": max(lengths),
            "rmse": float(np.sqrt(np.mean(errors**2))),
            "max_error": float(np.abs(errors).max()),
            "clipped": self.num_clipped - clipped_before,
        }

    @property
    @abstractmethod
    def rms_error_bound(self) -> float:
        """Upper bound on the root-mean-square error of a decoded chunk, as long as nothing was clipped."""

    @abstractmethod
    def quantization_error_bound(self, chunk_size: int) -> float:
        """Upper bound on the error of any single decoded value, as long as nothing was clipped."""

    @abstractmethod
    def max_tokens(self, chunk_size: int, action_dim: int) -> int:
        """Upper bound on the number of codes of one chunk."""

    def steps_of(self, codes: Sequence[int], action_dim: int) -> np.ndarray | None:
        """(n,), the step of the chunk that each code is about; None where every code is about all of them (FAST)."""
        return None

    def grammar(self) -> CodeGrammar | None:
        """How codes add up to a chunk, so that decoding can be held to complete ones; None if that cannot be said."""
        return None

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything needed to rebuild the tokenizer, ready for JSON. See `load_action_tokenizer`."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: dict[str, Any]) -> "ActionTokenizer":
        """Inverse of `to_dict`."""

    @classmethod
    @abstractmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike, **hub_kwargs) -> "ActionTokenizer":
        """Loads from a folder or the Hub; `hub_kwargs` (`revision`, `token`, ...) go to `snapshot_download`."""

    @abstractmethod
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes what `from_pretrained` reads. Files appear complete or not at all."""

    @property
    def _num_codes(self) -> int:
        """Codes that mean something; a BPE that ran out of merges has fewer than `vocab_size`."""
        return self.vocab_size

    @property
    @abstractmethod
    def _range(self) -> str:
        """The representable range, in words."""

    @abstractmethod
    def _encode_chunk(self, chunk: np.ndarray) -> tuple[list[int], int]:
        """(H, D) finite float64 -> (codes, number of clipped values)."""

    @abstractmethod
    def _decode_codes(self, codes: list[int], chunk_size: int, action_dim: int) -> np.ndarray | ActionDecodingFailure:
        """Known codes -> float32 (H, D), or the failure."""


class FASTActionTokenizer(ActionTokenizer):
    """FAST: the DCT coefficients of a chunk, rounded, lowest frequencies first, compressed by a BPE.

    A chunk `(H, D)` is transformed by an orthonormal DCT-II over time, multiplied by `scale`, rounded, and flattened
    in C order. Each coefficient minus `min_token` is the code point of one character; the BPE eats that string.

    Two kinds of BPE are read, and they behave as they were fitted:

    * *Character level*, what `fit` makes: one base code per coefficient value in `min_token..max_token`. Every code
      stands for whole coefficients, so encoding is lossless, and decoding can only fail by the number of values.
    * *Byte level*, what the published class makes. It splits characters into UTF-8 bytes and cuts the string at what
      looks like letters, digits and spaces. Bytes that its training data lacked are not in its vocabulary: the
      published class drops such a coefficient without a word, and the rest of the chunk shifts or turns into U+FFFD.
      Here the coefficient moves to the nearest one that can be written, and is counted in `num_clipped`. So are
      coefficients above the largest one of `fit`. Within the range both give the same codes and the same chunks.

    Args:
        tokenizer: the BPE over coefficient strings.
        scale: multiplier of the coefficients before rounding. Larger is more exact and takes more codes.
        vocab_size: number of codes.
        min_token: smallest coefficient that can be represented.

    Raises:
        ValueError: the BPE has no code for the character of `min_token`, or `scale` is not positive.
    """

    kind = "fast"

    CONFIG_FILE = "processor_config.json"
    TOKENIZER_FILE = "tokenizer.json"
    _SETTINGS = ("scale", "vocab_size", "min_token")

    def __init__(self, tokenizer: Tokenizer, scale: float, vocab_size: int, min_token: int):
        if not _is_number(scale) or not 0 < scale < 1e9:
            raise ValueError(f"scale must be positive, got {str(scale)[:200]}.")
        if not _is_count(vocab_size, 1 << 20) or not _is_count(
            abs(min_token) if _is_number(min_token) else None, 1 << 30
        ):
            raise ValueError(
                f"vocab_size and min_token must be whole numbers, got {str(vocab_size)[:200]}, {str(min_token)[:200]}."
            )
        vocab = tokenizer.get_vocab()
        alphabet_size = 0
        # Both kinds of `fit` give the character of every coefficient in min_token..max_token a code of its own, so the
        # largest coefficient can be read back from there. (Characters that stand for bytes may happen to continue
        # the run: this can make the range of a byte-level file a little wider, never narrower.)
        while chr(alphabet_size) in vocab:
            alphabet_size += 1
        if not alphabet_size:
            raise ValueError("This tokenizer has no code for its smallest coefficient: it was not fitted by FAST.")
        self.tokenizer = tokenizer
        self.scale = scale
        # The published `fit` may end up with a few more codes than asked for, because it does not count bytes.
        self.vocab_size = max(vocab_size, len(vocab))
        if max(vocab.values()) >= self.vocab_size:
            raise ValueError(f"its codes go up to {max(vocab.values())}, but there are only {self.vocab_size} of them.")
        self.min_token = min_token
        self.max_token = min_token + alphabet_size - 1
        self._vocab_len = len(vocab)
        # Characters that survive encode -> decode: all of them at character level, perhaps not at byte level.
        self._characters = np.array([c for c in range(alphabet_size) if self._text(self._codes(chr(c))) == chr(c)])

    @classmethod
    def fit(cls, chunks, vocab_size: int = 1024, scale: float = 10) -> "FASTActionTokenizer":
        """Learns the BPE from data.

        Args:
            chunks: normalised floats `(N, H, D)`, or a list of `(H_i, D)`.
            vocab_size: number of codes. With little data fewer may be learned; the rest stays unused.
            scale: see the class.

        Raises:
            ValueError: no chunks, NaN or infinity in one (named), or more distinct coefficients than codes.
        """
        coefficients = [_dct_coefficients(chunk, scale) for chunk in _as_chunks(chunks)]
        if not coefficients:
            raise ValueError("fit() needs at least one action chunk, got none.")
        min_token = int(min(c.min() for c in coefficients))
        alphabet_size = int(max(c.max() for c in coefficients)) - min_token + 1
        if alphabet_size > vocab_size or alphabet_size > FIRST_SURROGATE:
            raise ValueError(
                f"The data has DCT coefficients from {min_token} to {min_token + alphabet_size - 1}, which take "
                f"{alphabet_size} codes, but there are {min(vocab_size, FIRST_SURROGATE)} (vocab_size={vocab_size}, "
                f"and at most {FIRST_SURROGATE} characters below the UTF-16 surrogates). Check for outliers and "
                "un-normalised actions, lower the scale, or raise vocab_size."
            )
        tokenizer = Tokenizer(BPE())
        # Joins tokens without a space. Without a pre-tokenizer, merges are free to cross any character.
        tokenizer.decoder = Fuse()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=[chr(c) for c in range(alphabet_size)],
        )
        tokenizer.train_from_iterator((_to_text(c.ravel() - min_token) for c in coefficients), trainer)
        return cls(tokenizer, scale=scale, vocab_size=vocab_size, min_token=min_token)

    @property
    def rms_error_bound(self) -> float:
        """The DCT is orthonormal, so the chunk's RMS error is the coefficients': at most `0.5 / scale`."""
        return 0.5 / self.scale

    def quantization_error_bound(self, chunk_size: int) -> float:
        """Each coefficient k is off by at most `0.5 / scale` and adds to step t by the basis value b_k(t).

        The bound is `0.5 / scale · max_t Σ_k |b_k(t)|`. It grows with the square root of `chunk_size`.
        """
        return self.rms_error_bound * float(np.abs(_dct_matrix(chunk_size)).sum(axis=0).max())

    def max_tokens(self, chunk_size: int, action_dim: int) -> int:
        symbols = 1
        if isinstance(self.tokenizer.pre_tokenizer, ByteLevel):
            symbols = len(chr(self.max_token - self.min_token).encode())  # UTF-8 is longest for the last character
        return symbols * chunk_size * action_dim

    def grammar(self) -> CodeGrammar:
        """Character level: a code is as many values as it has characters. Byte level: UTF-8 tells lead bytes (which
        begin a value) from continuation bytes."""
        code_of = self.tokenizer.get_vocab()
        values, closes, opens = np.full((3, self.vocab_size), [[-1], [0], [0]])
        is_bytes = isinstance(self.tokenizer.pre_tokenizer, ByteLevel)
        for token, code in code_of.items():
            if not is_bytes:
                values[code] = len(token)
                continue
            known = all(character in _BYTE_OF for character in token)  # or the decoder takes the token for plain text
            data = bytes(_BYTE_OF[character] for character in token) if known else token.encode()
            continues = [byte & 0xC0 == 0x80 for byte in data]
            values[code] = continues.count(False)
            closes[code] = (*continues, False).index(False)
            if values[code]:
                last = len(data) - 1 - continues[::-1].index(False)
                opens[code] = _utf8_length(data[last]) - (len(data) - last)
                if opens[code] < 0:  # more continuation bytes than the lead byte asks for
                    values[code] = -1
        return CodeGrammar(values, closes, opens)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "scale": self.scale,
            "vocab_size": self.vocab_size,
            "min_token": self.min_token,
            "tokenizer": json.loads(self.tokenizer.to_str()),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FASTActionTokenizer":
        _need(values, ("tokenizer", "scale", "vocab_size", "min_token"))
        return cls(_parse_tokenizer(json.dumps(values["tokenizer"])), *(values[name] for name in cls._SETTINGS))

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike, **hub_kwargs) -> "FASTActionTokenizer":
        """Loads the published layout (for example `physical-intelligence/fast`) without running remote code.

        Raises:
            FileNotFoundError: a file of the layout is missing.
            ValueError: `processor_config.json` is not that of a FAST tokenizer.
        """
        folder = _local_folder(folder_or_hub_id, [cls.CONFIG_FILE, cls.TOKENIZER_FILE], **hub_kwargs)
        config = _read_json(folder / cls.CONFIG_FILE)
        try:
            _need(config, cls._SETTINGS)
            tokenizer = _parse_tokenizer(_read(folder / cls.TOKENIZER_FILE))
            return cls(tokenizer, *(config[name] for name in cls._SETTINGS))
        except ValueError as error:
            raise ValueError(f"{folder / cls.CONFIG_FILE} is not of a FAST tokenizer: {error}") from error

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the published layout, so that other programs' FAST reads it too.

        The published class itself is not copied: `auto_map` points to its own repository.
        """
        processor_class = "UniversalActionProcessor"
        config = {
            "action_dim": None,
            "auto_map": {"AutoProcessor": f"physical-intelligence/fast--processing_action_tokenizer.{processor_class}"},
            "min_token": self.min_token,
            "processor_class": processor_class,
            "scale": self.scale,
            "time_horizon": None,
            "vocab_size": self.vocab_size,
        }
        tokenizer_config = {
            "clean_up_tokenization_spaces": False,  # or transformers 4 would delete coefficients
            "processor_class": processor_class,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        _write_files(
            folder,
            {
                self.TOKENIZER_FILE: self.tokenizer.to_str(pretty=True),
                "tokenizer_config.json": json.dumps(tokenizer_config, indent=2),
                "special_tokens_map.json": "{}",
                self.CONFIG_FILE: json.dumps(config, indent=2),
            },
        )

    @property
    def _num_codes(self) -> int:
        return self._vocab_len

    @property
    def _range(self) -> str:
        return f"DCT coefficients {self.min_token}..{self.max_token} at scale {self.scale}"

    def _codes(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _text(self, codes: list[int]) -> str:
        return self.tokenizer.decode(codes, skip_special_tokens=False)

    def _encode_chunk(self, chunk: np.ndarray) -> tuple[list[int], int]:
        wanted = _dct_coefficients(chunk, self.scale).ravel() - self.min_token  # (H * D,)
        borders = (self._characters[1:] + self._characters[:-1]) / 2
        nearest = self._characters[np.searchsorted(borders, wanted)]
        return self._codes(_to_text(nearest)), int((nearest != wanted).sum())

    def _decode_codes(self, codes: list[int], chunk_size: int, action_dim: int) -> np.ndarray | ActionDecodingFailure:
        text = self._text(codes)
        if "\N{REPLACEMENT CHARACTER}" in text:
            return ActionDecodingFailure("undecodable_bytes", "whole UTF-8 characters", "a broken byte sequence")
        coefficients = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64) + self.min_token
        if len(coefficients) != chunk_size * action_dim:
            return ActionDecodingFailure("value_count", chunk_size * action_dim, len(coefficients))
        if coefficients.max() > self.max_token:
            expected = f"DCT coefficients {self.min_token}..{self.max_token}"
            return ActionDecodingFailure("out_of_range", expected, int(coefficients.max()))
        coefficients = coefficients.reshape(chunk_size, action_dim)
        return (_dct_matrix(chunk_size).T @ (coefficients / self.scale)).astype(np.float32)


class BinningActionTokenizer(ActionTokenizer):
    """One code per value: `num_bins` bins of equal width between `low` and `high`, decoded to their centres.

    The codes of a chunk `(H, D)` are in C order: all dimensions of step 0, then of step 1, ...

    Raises:
        ValueError: fewer than two bins, or `low` not below `high`.
    """

    kind = "binning"

    FILE = "action_tokenizer.json"

    def __init__(self, num_bins: int = 256, low: float = -1.0, high: float = 1.0):
        numbers = _is_count(num_bins, 1 << 20) and _is_number(low) and _is_number(high)
        if not numbers or num_bins < 2 or not -1e30 < low < high < 1e30:
            given = ", ".join(str(value)[:100] for value in (num_bins, low, high))
            raise ValueError(f"Need a whole num_bins >= 2 and finite low < high, got {given}.")
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
        """One value each."""
        return CodeGrammar(*np.repeat([[1], [0], [0]], self.num_bins, axis=1))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "num_bins": self.num_bins, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BinningActionTokenizer":
        _need(values, ("num_bins", "low", "high"))
        return cls(values["num_bins"], values["low"], values["high"])

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike, **hub_kwargs) -> "BinningActionTokenizer":
        folder = _local_folder(folder_or_hub_id, [cls.FILE], **hub_kwargs)
        return cls.from_dict(_read_json(folder / cls.FILE))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        _write_files(folder, {self.FILE: json.dumps(self.to_dict(), indent=2)})

    @property
    def _range(self) -> str:
        return f"values {self.low}..{self.high}"

    def _encode_chunk(self, chunk: np.ndarray) -> tuple[list[int], int]:
        clipped = np.clip(chunk, self.low, self.high)
        bins = np.floor((clipped - self.low) / (self.high - self.low) * self.num_bins).astype(np.int64)
        bins = np.minimum(bins, self.num_bins - 1)  # `high` itself belongs to the last bin
        return bins.ravel().tolist(), int((clipped != chunk).sum())

    def _decode_codes(self, codes: list[int], chunk_size: int, action_dim: int) -> np.ndarray | ActionDecodingFailure:
        if len(codes) != chunk_size * action_dim:
            return ActionDecodingFailure("value_count", chunk_size * action_dim, len(codes))
        bins = np.array(codes).reshape(chunk_size, action_dim)
        return (self.low + (bins + 0.5) * (self.high - self.low) / self.num_bins).astype(np.float32)


def load_action_tokenizer(source: dict[str, Any] | str | os.PathLike, **hub_kwargs) -> ActionTokenizer:
    """Rebuilds an action tokenizer of whatever kind from its `to_dict()`, a folder, or a Hub repository.

    Raises:
        ValueError: the dictionary names no known kind.
        FileNotFoundError: the folder holds no action tokenizer.
    """
    if isinstance(source, dict):
        if not isinstance(source.get("kind"), str) or source["kind"] not in ACTION_TOKENIZERS:
            raise ValueError(
                f"Unknown action tokenizer {str(source.get('kind'))[:200]!r}, expected one of "
                f"{list(ACTION_TOKENIZERS)}. If it is one of your own, import its class first."
            )
        return ACTION_TOKENIZERS[source["kind"]].from_dict(source)
    fast_files = [FASTActionTokenizer.CONFIG_FILE, FASTActionTokenizer.TOKENIZER_FILE]
    folder = _local_folder(source, [BinningActionTokenizer.FILE, *fast_files], **hub_kwargs)
    if (folder / BinningActionTokenizer.FILE).is_file():
        return BinningActionTokenizer.from_pretrained(folder)
    return FASTActionTokenizer.from_pretrained(folder)


def _utf8_length(lead_byte: int) -> int:
    """Bytes of a character, from its first one."""
    return 1 + (lead_byte >= 0xC0) + (lead_byte >= 0xE0) + (lead_byte >= 0xF0)


def _as_chunks(chunks) -> list[np.ndarray]:
    """`(B, H, D)`, `(H, D)` or a list of `(H_i, D_i)` -> list of finite, non-empty float64 `(H_i, D_i)`."""
    if isinstance(chunks, Sequence) and all(np.ndim(chunk) == 2 for chunk in chunks):
        arrays = [np.asarray(chunk, dtype=np.float64) for chunk in chunks]
    else:
        array = np.asarray(chunks, dtype=np.float64)
        if array.ndim not in (2, 3):
            raise ValueError(f"Expected action chunks of shape (B, H, D) or (H, D), got {array.shape}.")
        arrays = list(array) if array.ndim == 3 else [array]
    for index, array in enumerate(arrays):
        if not array.size:
            raise ValueError(f"Action chunk {index} is empty: its shape is {array.shape}.")
        if not np.isfinite(array).all():
            step, dimension = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"Action chunk {index} is {array[step, dimension]} at step {step}, dimension {dimension}. "
                "Actions must be finite: drop the example or mend the data."
            )
    return arrays


def _dct_coefficients(chunk: np.ndarray, scale: float) -> np.ndarray:
    """(H, D) values -> (H, D) rounded coefficients, frequency by dimension, still float64."""
    return np.around(_dct_matrix(len(chunk)) @ chunk * scale)


@lru_cache(maxsize=32)
def _dct_matrix(steps: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix (coefficient, step), `scipy.fft.dct(..., norm="ortho")`; its transpose is the
    inverse. A policy must run where only transformers and torch are installed, which have none."""
    step, coefficient = np.arange(steps), np.arange(steps)[:, None]
    matrix = np.sqrt(2 / steps) * np.cos(np.pi * (2 * step + 1) * coefficient / (2 * steps))
    matrix[0] /= np.sqrt(2)
    return matrix


def _to_text(characters: np.ndarray) -> str:
    """Code points below the surrogates -> string."""
    return characters.astype("<u4").tobytes().decode("utf-32-le")


def _local_folder(folder_or_hub_id: str | os.PathLike, files: list[str], **hub_kwargs) -> Path:
    """The folder itself, or a download of just `files` from the Hub."""
    folder = Path(folder_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(folder_or_hub_id, os.PathLike) or folder.is_absolute() or len(folder.parts) > 2:
        raise FileNotFoundError(f"There is no folder {folder}, and this is no name of a Hub repository either.")
    return Path(snapshot_download(folder_or_hub_id, allow_patterns=files, **hub_kwargs))


def _read(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.parent} has no {file.name}. It has: {sorted(path.name for path in file.parent.iterdir())}."
        )
    return file.read_text(encoding="utf-8")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a map, not a {type(values).__name__}.")
    return values


def _need(values: dict[str, Any], names: Sequence[str]) -> None:
    if missing := sorted(set(names) - values.keys()):
        raise ValueError(f"it lacks {missing}.")


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_count(value, limit: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) <= limit


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """`tokenizers` is Rust: over a file that breaks its assumptions it panics, with what is not even an `Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise ValueError(str(error)) from error


def _parse_tokenizer(text: str) -> Tokenizer:
    try:
        with panics_as_errors():
            return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"its tokenizer is damaged: {error}") from error


def _write_files(folder: str | os.PathLike, contents: dict[str, str]) -> None:
    """Writes all files aside, then moves them into place: an interrupted save leaves no half-written file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        for name, text in contents.items():
            (Path(aside) / name).write_text(text + "\n", encoding="utf-8")
        for name in contents:
            os.replace(Path(aside) / name, folder / name)

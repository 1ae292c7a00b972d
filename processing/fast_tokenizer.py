"""FAST action tokens: DCT over time, rounding, byte-pair encoding (Pertsch et al. 2025, arXiv 2501.09747).

Reads and writes the layout of `physical-intelligence/fast` without running that repository's code.
"""

import json
import os
import sys
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from tqdm.auto import tqdm

from .action_constraint import CodeGrammar
from .action_tokenizers import ActionDecodingFailure, ActionTokenizer, as_chunks
from .saved_files import local_folder, read_json, read_text, write_files
from .saved_settings import check_fast, check_names, parse_tokenizer

# What `fit` learns from: more chunks give the same error and no shorter codes (benchmarks/fitting_fast.md)
MAX_CHUNKS = 2000
# `chr(c)` for c in 0xD800..0xDFFF is a lone surrogate, which no UTF-8 text (hence no BPE string) can hold.
FIRST_SURROGATE = 0xD800
# The character that stands for a byte in a byte-level BPE (GPT-2's table) -> the byte. Printable Latin-1 characters
# stand for themselves, the others are numbered from 256 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))}


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
    files = (CONFIG_FILE, TOKENIZER_FILE)
    _SETTINGS = ("scale", "vocab_size", "min_token")

    def __init__(self, tokenizer: Tokenizer, scale: float, vocab_size: int, min_token: int):
        check_fast(scale, vocab_size, min_token)
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
    def fit(
        cls, chunks, vocab_size: int = 1024, scale: float = 10, max_chunks: int = MAX_CHUNKS
    ) -> "FASTActionTokenizer":
        """Learns the BPE from data.

        Args:
            chunks: normalised floats `(N, H, D)`, or a list of `(H_i, D)`.
            vocab_size: number of codes. With little data fewer may be learned; the rest stays unused.
            scale: see the class.
            max_chunks: how many chunks the BPE learns from, spread evenly; the range of coefficients is that of all.
                Memory and time grow with it (3 GB and a minute for 29,000 chunks of 50 x 26), and more of them do not
                make the codes better (benchmarks/fitting_fast.md).

        Raises:
            ValueError: no chunks, NaN or infinity in one (named), or more distinct coefficients than codes (the message
                names the dimension).
        """
        arrays = as_chunks(chunks)
        if not arrays:
            raise ValueError("fit() needs at least one action chunk, got none.")
        chosen = set(np.linspace(0, len(arrays) - 1, min(max_chunks, len(arrays))).round().astype(int).tolist())
        learned, lowest, highest = [], np.inf, -np.inf
        for i, chunk in enumerate(tqdm(arrays, desc="FAST: coefficients", disable=None, leave=False)):
            coefficients = _dct_coefficients(chunk, scale)
            lowest, highest = min(lowest, coefficients.min()), max(highest, coefficients.max())
            if i in chosen:
                learned.append(coefficients)
        min_token, alphabet_size = int(lowest), int(highest - lowest) + 1
        if alphabet_size > vocab_size or alphabet_size > FIRST_SURROGATE:
            raise ValueError(
                f"The data has DCT coefficients from {min_token} to {int(highest)}, which take {alphabet_size} codes, "
                f"but there are {min(vocab_size, FIRST_SURROGATE)} (vocab_size={vocab_size}, and at most "
                f"{FIRST_SURROGATE} characters below the UTF-16 surrogates). The largest is of dimension "
                f"{_largest_dimension(arrays, scale)}, counted from 0. Check for outliers and un-normalised actions, "
                "lower the scale, or raise vocab_size."
            )
        tokenizer = Tokenizer(BPE())
        # Joins tokens without a space. Without a pre-tokenizer, merges are free to cross any character.
        tokenizer.decoder = Fuse()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=sys.stderr.isatty(),
            special_tokens=[],
            initial_alphabet=[chr(c) for c in range(alphabet_size)],
        )
        tokenizer.train_from_iterator((_to_text(c.ravel() - min_token) for c in learned), trainer)
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
        """Say how codes add up to values.

        Character level: a code is as many values as it has characters. Byte level: UTF-8 tells lead bytes (which begin
        a value) from continuation bytes.
        """
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
        check_names(values, ("tokenizer", "scale", "vocab_size", "min_token"))
        return cls(parse_tokenizer(json.dumps(values["tokenizer"])), *(values[name] for name in cls._SETTINGS))

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike, **hub_kwargs) -> "FASTActionTokenizer":
        """Loads the published layout (for example `physical-intelligence/fast`) without running remote code.

        Raises:
            FileNotFoundError: a file of the layout is missing.
            ValueError: `processor_config.json` is not that of a FAST tokenizer.
        """
        folder = local_folder(folder_or_hub_id, cls.files, **hub_kwargs)
        config = read_json(folder / cls.CONFIG_FILE)
        try:
            check_names(config, cls._SETTINGS)
            tokenizer = parse_tokenizer(read_text(folder / cls.TOKENIZER_FILE))
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
        write_files(
            folder,
            {
                self.TOKENIZER_FILE: self.tokenizer.to_str(pretty=True),
                "tokenizer_config.json": json.dumps(tokenizer_config, indent=2),
                "special_tokens_map.json": "{}",
                self.CONFIG_FILE: json.dumps(config, indent=2),
            },
        )

    @property
    def num_codes(self) -> int:
        return self._vocab_len

    @property
    def covers(self) -> str:
        return f"DCT coefficients {self.min_token}..{self.max_token} at scale {self.scale}"

    def _codes(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _text(self, codes: list[int]) -> str:
        return self.tokenizer.decode(codes, skip_special_tokens=False)

    def encode_chunk(self, chunk: np.ndarray) -> tuple[list[int], int]:
        wanted = _dct_coefficients(chunk, self.scale).ravel() - self.min_token  # (H * D,)
        borders = (self._characters[1:] + self._characters[:-1]) / 2
        nearest = self._characters[np.searchsorted(borders, wanted)]
        return self._codes(_to_text(nearest)), int((nearest != wanted).sum())

    def decode_codes(self, codes: list[int], chunk_size: int, action_dim: int) -> np.ndarray | ActionDecodingFailure:
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


def _largest_dimension(chunks: list[np.ndarray], scale: float) -> int:
    """The dimension that has the largest coefficient of all."""
    largest = [np.abs(_dct_coefficients(chunk, scale)).max(axis=0) for chunk in chunks]  # (D_i,) each
    return int(max(largest, key=np.max).argmax())


def _utf8_length(lead_byte: int) -> int:
    """Bytes of a character, from its first one."""
    return 1 + (lead_byte >= 0xC0) + (lead_byte >= 0xE0) + (lead_byte >= 0xF0)


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


__all__ = ["FASTActionTokenizer"]

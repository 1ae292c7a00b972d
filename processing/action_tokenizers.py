"""Action tokenizers: a chunk of continuous actions <-> a short list of discrete codes.

The codes are what the VLM learns to predict; the processor maps code `k` to a token of the VLM's vocabulary. Here is
what every action tokenizer offers: FAST (`fast_tokenizer.py`), bins (`binning_tokenizer.py`) and those of other
packages, which `tokenizer_registry.py` finds by their names.

All work on normalised float chunks `(chunk_size, action_dim)`, in numpy alone. What cannot be represented is clipped,
counted in `num_clipped` and logged once; what cannot be decoded is an `ActionDecodingFailure`.
"""

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from .action_constraint import CodeGrammar
from .plugins import check_has
from .saved_files import local_folder, read_json, write_files

logger = logging.getLogger(__name__)

# What the processor, the model and training use of an action tokenizer: of its class, and of an object
_OF_CLASS = ("kind", "files", "fit", "from_dict", "from_pretrained")
_OF_OBJECT = (
    "kind",
    "vocab_size",
    "encode",
    "decode",
    "roundtrip_error",
    "max_tokens",
    "steps_of",
    "grammar",
    "to_dict",
)


@dataclass(frozen=True)
class ActionDecodingFailure:
    """Why a sequence of codes is no action chunk. Returned by `decode` in place of the chunk, never raised.

    Tell it from a chunk with `isinstance(result, ActionDecodingFailure)`.

    Attributes:
        reason: `"foreign_code"` (a code outside the vocabulary), `"value_count"` (too few or too many values for
            the chunk), `"undecodable_bytes"` (byte-level FAST only: the bytes form no character) or `"out_of_range"`
            (byte-level FAST only: a coefficient beyond any seen in `fit`, which would decode to an absurd action).
            Action tokenizers of other packages may have reasons of their own.
        expected: what a good sequence would have had.
        got: what this one had.
    """

    reason: str
    expected: Any
    got: Any

    def __str__(self) -> str:
        return f"no action chunk ({self.reason}): expected {self.expected}, got {self.got}"


# Every kind of action tokenizer whose class was imported, by the name that is saved with it
ACTION_TOKENIZERS: dict[str, type["ActionTokenizer"]] = {}


class ActionTokenizer(ABC):
    """What every action tokenizer offers. Codes are integers `0 .. vocab_size - 1`.

    One of your own is a subclass with `kind`, `vocab_size`, `encode_chunk`, `decode_codes`, `max_tokens`, `to_dict` and
    `from_dict`; the rest may stay as it is here. `KIVLAProcessor(..., action_tokenizer=MyTokenizer())` takes it, and
    so does `kivla train --action_tokenizer my_package.my_module:MyTokenizer`, which makes it with `fit`.

    A policy is saved with `to_dict()` and its `kind`, and loads again where the class is known by it: once its module
    is imported (`kivla rollout policy --import my_module`), or, without any import, where its package is installed and
    names it in its pyproject.toml:

        [project.entry-points."kivla.action_tokenizers"]
        my_kind = "my_package.my_module:MyTokenizer"

    Attributes:
        kind: the name in saved policies and in `ACTION_TOKENIZERS`.
        vocab_size: number of codes to reserve in the VLM's vocabulary.
        num_clipped: how many values (bins) or DCT coefficients (FAST) this object has clipped while encoding.
        files: what `from_pretrained` reads in a folder or on the Hub. A kind with a layout of its own has its own here.
    """

    FILE = "action_tokenizer.json"

    kind: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = (FILE,)
    vocab_size: int
    num_clipped: int = 0

    def __init_subclass__(cls, **kwargs):
        """A tokenizer of your own is known by its `kind` as soon as its class is defined."""
        super().__init_subclass__(**kwargs)
        if "kind" not in vars(cls):
            return  # a variant of another class, or a base of several
        known = ACTION_TOKENIZERS.get(cls.kind, cls)
        # The same name is the same class, defined once more: a notebook's cell, or a script that is also imported
        if known.__qualname__ != cls.__qualname__:
            raise TypeError(
                f"{cls.__module__}.{cls.__qualname__} has kind = {cls.kind!r}, which is that of {known.__module__}."
                f"{known.__qualname__}. Policies are saved with it: give each class a kind of its own."
            )
        ACTION_TOKENIZERS[cls.kind] = cls

    # ------------------------------------------------------------------------------------------- what a kind must have
    @abstractmethod
    def encode_chunk(self, chunk: np.ndarray) -> tuple[list[int], int]:
        """(H, D) finite float64 -> its codes, and how many values had to be clipped."""

    @abstractmethod
    def decode_codes(self, codes: list[int], chunk_size: int, action_dim: int) -> np.ndarray | ActionDecodingFailure:
        """Known codes -> float32 (H, D), or why they are no chunk. Never raises: codes are what a model made up."""

    @abstractmethod
    def max_tokens(self, chunk_size: int, action_dim: int) -> int:
        """Upper bound on the number of codes of one chunk."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything needed to rebuild the tokenizer, ready for JSON. (`kind` is saved with it: `saved`.)"""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: dict[str, Any]) -> "ActionTokenizer":
        """Inverse of `to_dict`.

        Raises:
            ValueError: the values are damaged.
        """

    # ------------------------------------------------------------------------------------------------- what it may have
    @classmethod
    def fit(cls, chunks, **options) -> "ActionTokenizer":
        """Make one for this data, as `kivla train` does. By default nothing is learned from the data.

        Args:
            chunks: normalised floats `(N, H, D)`, or a list of `(H_i, D)`.
            options: of the class.
        """
        return cls(**options)

    def steps_of(self, codes: Sequence[int], action_dim: int) -> np.ndarray | None:
        """(n,), the step of the chunk that each code is about; None where every code is about all of them (FAST)."""
        return None

    def grammar(self) -> CodeGrammar | None:
        """How codes add up to a chunk, so that decoding can be held to complete ones; None if that cannot be said."""
        return None

    @property
    def num_codes(self) -> int:
        """Codes that mean something; a BPE that ran out of merges has fewer than `vocab_size`."""
        return self.vocab_size

    @property
    def covers(self) -> str:
        """What can be represented, in words, for the message about clipped values."""
        return f"what its {self.num_codes} codes stand for"

    @property
    def rms_error_bound(self) -> float | None:
        """Upper bound on the root-mean-square error of a decoded chunk if nothing was clipped; None if not known."""
        return None

    def quantization_error_bound(self, chunk_size: int) -> float | None:
        """Upper bound on the error of any decoded value if nothing was clipped; None if not known."""
        return None

    # ---------------------------------------------------------------------------------------------------- what all have
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
        for chunk in as_chunks(chunks):
            codes, clipped = self.encode_chunk(chunk)
            if clipped and not self.num_clipped:
                logger.warning(
                    f"Clipped {clipped} of {chunk.size} values of an action chunk, which this {type(self).__name__} "
                    f"cannot represent: it covers {self.covers}. `num_clipped` goes on counting, this message is not "
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
            foreign = [code for code in codes if not (isinstance(code, Integral) and 0 <= int(code) < self.num_codes)]
            if foreign:
                results.append(ActionDecodingFailure("foreign_code", f"codes 0..{self.num_codes - 1}", foreign[0]))
            else:
                results.append(self.decode_codes(codes, chunk_size, action_dim))
        return results

    def roundtrip_error(self, chunks) -> dict[str, float]:
        """How many codes the chunks take and what encoding loses, in normalised units.

        Returns:
            `tokens_mean` and `tokens_max` per chunk, `rmse` and `max_error` over all values, and `clipped`, the number
            of values or coefficients that had to be clipped.

        Raises:
            ValueError: the codes do not decode, or are more than `max_tokens` says.
        """
        chunks = as_chunks(chunks)
        clipped_before = self.num_clipped
        sequences = self.encode(chunks)
        errors = []
        for i, (chunk, codes) in enumerate(zip(chunks, sequences, strict=True)):
            if len(codes) > (most := self.max_tokens(*chunk.shape)):
                raise ValueError(
                    f"{type(self).__name__} has {len(codes)} codes for chunk {i}, more than max_tokens, {most}."
                )
            (decoded,) = self.decode([codes], *chunk.shape)
            if isinstance(decoded, ActionDecodingFailure):
                raise ValueError(f"{type(self).__name__} cannot decode its own codes of chunk {i}: {decoded}")
            errors.append((decoded - chunk).ravel())
        errors = np.concatenate(errors)
        lengths = [len(codes) for codes in sequences]
        return {
            "tokens_mean": float(np.mean(lengths)),
            "tokens_max": max(lengths),
            "rmse": float(np.sqrt(np.mean(errors**2))),
            "max_error": float(np.abs(errors).max()),
            "clipped": self.num_clipped - clipped_before,
        }

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike, **hub_kwargs) -> "ActionTokenizer":
        """Loads from a folder or the Hub; `hub_kwargs` (`revision`, `token`, ...) go to `snapshot_download`.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: the file is damaged.
        """
        folder = local_folder(folder_or_hub_id, cls.files, **hub_kwargs)
        return cls.from_dict(read_json(folder / cls.FILE))

    def saved(self) -> dict[str, Any]:
        """What is saved with a policy: `to_dict()`, and the kind that says which class rebuilds it."""
        return {**self.to_dict(), "kind": self.kind}

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes what `from_pretrained` reads. Files appear complete or not at all."""
        write_files(folder, {self.FILE: json.dumps(self.saved(), indent=2)})


def check_action_tokenizer(found) -> None:
    """Check that something can be used as an action tokenizer.

    Args:
        found: an action tokenizer, or the class of one.

    Raises:
        TypeError: it cannot be used as one; the message names all that is missing.
    """
    advice = "Make its class a subclass of kivla.processing.ActionTokenizer, which says what each is."
    names = _OF_CLASS if isinstance(found, type) else _OF_OBJECT
    check_has(found, names, "an action tokenizer", advice)


def as_chunks(chunks) -> list[np.ndarray]:
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


__all__ = ["ACTION_TOKENIZERS", "ActionDecodingFailure", "ActionTokenizer", "as_chunks", "check_action_tokenizer"]

"""Per-token lists of one example, and batches of them."""

from dataclasses import dataclass

import torch


@dataclass
class Span:
    """Tokens after the prompt: whether they are learned (the mask M^ℓ), and whether the expert reads them."""

    ids: list[int]
    is_learned: bool
    expert_reads: bool = False


def extend(row: dict[str, list], ids: list[int], **fill) -> dict[str, list]:
    """Append tokens to the per-token lists of one example; lists without an entry in `fill` get zeros."""
    return {
        name: values + (ids if name == "input_ids" else [fill.get(name, 0)] * len(ids)) for name, values in row.items()
    }


def pad_rows(rows: list[list], length: int, value, side: str) -> torch.Tensor:
    """Make a tensor (B, length) of lists of unequal length; `side` is where the padding goes, "left" or "right"."""
    padding = [[value] * (length - len(row)) for row in rows]
    padded = [row + pad if side == "right" else pad + row for row, pad in zip(rows, padding, strict=True)]
    return torch.tensor(padded, dtype=torch.bool if isinstance(rows[0][0], bool) else torch.long)


__all__ = ["Span", "extend", "pad_rows"]

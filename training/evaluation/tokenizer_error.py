"""What action tokenizers cost and what they lose, on chunks that they have not seen."""

from collections.abc import Callable, Sequence

import numpy as np

from ...processing import Normalizer
from ...processing.action_tokenizers import ActionTokenizer, as_chunks
from ..data.robot_dataset import RobotDataset
from .metrics import ChunkReconstruction


def split(
    reader: Callable[..., RobotDataset], dataset: str, chunk_size: int, episodes: Sequence[int] | None = None
) -> tuple[RobotDataset, RobotDataset]:
    """The episodes with even and with odd numbers, without their pictures.

    Args:
        reader: what opens the dataset.
        episodes: which of them; all by default.

    Raises:
        ValueError: there are none of one sort.
    """
    every = reader(dataset, chunk_size, episodes, cameras=[]).episodes
    halves = [[episode for episode in every if episode % 2 == rest] for rest in (0, 1)]
    if not all(halves):
        raise ValueError(
            f"{dataset} has the episodes {every}: one with an even and one with an odd number are needed, to fit on "
            "the one and to measure on the other."
        )
    even, odd = (reader(dataset, chunk_size, episodes, cameras=[]) for episodes in halves)
    return even, odd


def measure(tokenizer: ActionTokenizer, actions: np.ndarray, normalizer: Normalizer) -> dict:
    """Encode and decode chunks.

    Args:
        actions: (n, H, D), robot units; relative ones where the policy's are (`ActionUnits.learned`).
        normalizer: what the tokenizer's units are.

    Returns:
        what `ChunkReconstruction` has, in normalised units; `rmse_robot_units` and
        `max_error_robot_units`, of each dimension apart and then averaged over dimensions; and `clipped`, the share of
        values (bins) or DCT coefficients (FAST) that the tokenizer cannot represent.
    """
    chunks = as_chunks(normalizer.normalize(actions))
    codes, clipped = zip(*map(tokenizer.encode_chunk, chunks), strict=True)  # what is clipped is a figure here
    decoded = np.stack(tokenizer.decode(codes, *chunks[0].shape))
    error = np.abs(normalizer.unnormalize(decoded) - actions)
    return {
        **ChunkReconstruction(vocab_size=tokenizer.vocab_size, keep_in_memory=True).compute(
            predictions=decoded, references=chunks, num_tokens=[len(code) for code in codes]
        ),
        "rmse_robot_units": float(np.sqrt(np.square(error).mean((0, 1))).mean()),
        "max_error_robot_units": float(error.max((0, 1)).mean()),
        "clipped": sum(clipped) / actions.size,
    }


def format_table(rows: list[dict]) -> str:
    """A Markdown table with one line for each tokenizer."""
    lines = [
        "| tokenizer | tokens per chunk | at most | bits per value | RMSE | max error | RMSE, robot units | "
        "max error, robot units | clipped |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["tokenizer"],
            f"{row['tokens_per_chunk']:.1f}",
            str(row["max_tokens_per_chunk"]),
            f"{row['bits_per_value']:.2f}",
            *(f"{row[name]:.4f}" for name in ("rmse", "max_error", "rmse_robot_units", "max_error_robot_units")),
            f"{100 * row['clipped']:.2f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)

"""`kivla tokenizers`: what action tokenizers cost and what they lose, on chunks that they have not seen."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from . import BinningActionTokenizer, FASTActionTokenizer, LeRobotDataset
from .cli import parse
from .processing import Normalizer
from .processing.action_tokenizers import ActionTokenizer
from .training.metrics import ChunkReconstruction


@dataclass
class TokenizerArguments:
    """FAST is fitted on the episodes with an even number and measured, like bins, on those with an odd number."""

    dataset: str = field(metadata={"help": "LeRobot dataset (v2.1 or v3.0): a Hub id or a folder."})
    chunk_size: int = field(default=50, metadata={"help": "Actions in a chunk (H)."})
    num_chunks: int = field(default=2000, metadata={"help": "Chunks to fit on, and to measure on, spread evenly."})
    vocab_size: int = field(default=1024, metadata={"help": "Codes of FAST."})
    scales: list[float] = field(
        default_factory=lambda: [5.0, 10.0, 20.0], metadata={"help": "Resolutions of FAST, one row for each."}
    )
    num_bins: int = field(default=256, metadata={"help": "Bins of a value."})
    output: str = field(default="outputs/tokenizers.json", metadata={"help": "Where the JSON goes."})


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((TokenizerArguments,), arguments, prog="kivla tokenizers", positional="dataset")
    fitted_on, held_out = split(args.dataset, args.chunk_size)
    normalizer = Normalizer(fitted_on.statistics["actions"])
    chunks = normalizer.normalize(fitted_on.action_chunks(args.num_chunks))
    tokenizers = {
        f"FAST, scale {scale:g}": FASTActionTokenizer.fit(chunks, args.vocab_size, scale) for scale in args.scales
    }
    tokenizers[f"{args.num_bins} bins"] = BinningActionTokenizer(args.num_bins)
    actions = held_out.action_chunks(args.num_chunks)
    rows = [{"tokenizer": name, **measure(one, actions, normalizer)} for name, one in tokenizers.items()]
    file = Path(args.output)
    file.parent.mkdir(parents=True, exist_ok=True)
    report = {**asdict(args), "num_fitted": len(chunks), "num_measured": len(actions), "rows": rows}
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{len(actions)} chunks of held-out episodes, {args.chunk_size} x {held_out.action_dim} values each\n")
    print(f"{format_table(rows)}\n\n{file}")


def split(dataset: str, chunk_size: int) -> tuple[LeRobotDataset, LeRobotDataset]:
    """The episodes with even and with odd numbers, without their pictures.

    Raises:
        ValueError: there are none of one sort.
    """
    every = LeRobotDataset(dataset, chunk_size, cameras=[]).episodes
    halves = [[episode for episode in every if episode % 2 == rest] for rest in (0, 1)]
    if not all(halves):
        raise ValueError(
            f"{dataset} has the episodes {every}: one with an even and one with an odd number are needed, to fit on "
            "the one and to measure on the other."
        )
    even, odd = (LeRobotDataset(dataset, chunk_size, episodes, cameras=[]) for episodes in halves)
    return even, odd


def measure(tokenizer: ActionTokenizer, actions: np.ndarray, normalizer: Normalizer) -> dict:
    """Encode and decode chunks.

    Args:
        actions: (n, H, D), robot units.
        normalizer: what the tokenizer's units are.

    Returns:
        what [`~kivla.training.metrics.ChunkReconstruction`] has, in normalised units; `rmse_robot_units` and
        `max_error_robot_units`, of each dimension apart and then averaged over dimensions; and `clipped`, the share of
        values (bins) or DCT coefficients (FAST) that the tokenizer cannot represent.
    """
    chunks = normalizer.normalize(actions)
    clipped_before = tokenizer.num_clipped
    codes = tokenizer.encode(chunks)
    decoded = np.stack(tokenizer.decode(codes, *chunks.shape[1:]))
    error = np.abs(normalizer.unnormalize(decoded) - actions)
    return {
        **ChunkReconstruction(vocab_size=tokenizer.vocab_size, keep_in_memory=True).compute(
            predictions=decoded, references=chunks, num_tokens=[len(code) for code in codes]
        ),
        "rmse_robot_units": float(np.sqrt(np.square(error).mean((0, 1))).mean()),
        "max_error_robot_units": float(error.max((0, 1)).mean()),
        "clipped": (tokenizer.num_clipped - clipped_before) / chunks.size,
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

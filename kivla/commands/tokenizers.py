"""`kivla tokenizers`: what action tokenizers cost and what they lose, on chunks that they have not seen."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..command_line import parse
from ..processing import BinningActionTokenizer, FASTActionTokenizer
from ..processing.action_units import ActionUnits
from ..training.data.relative_chunks import learned_chunks, robot_statistics
from ..training.dataset_options import DatasetOptions
from ..training.evaluation.tokenizer_error import format_table, measure, split
from ..training.policy_options import RelativeOptions
from ..training.relative_options import told_relative
from ..training.run_folder import check_can_write_file


@dataclass
class TokenizerArguments(RelativeOptions, DatasetOptions):
    """FAST is fitted on the episodes with an even number and measured, like bins, on those with an odd number."""

    dataset: str = field(metadata={"help": "LeRobot dataset: a Hub id or a folder."})
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
    check_can_write_file(file := Path(args.output))
    fitted_on, held_out = split(args.reader(), args.dataset, args.chunk_size, args.chosen_episodes(args.dataset))
    relative = told_relative(fitted_on, args)
    statistics = robot_statistics([fitted_on], relative)
    units = ActionUnits(statistics, "quantile", fitted_on.action_dim, relative, adapt_to_pi=False)
    chunks = units.normalizer.normalize(learned_chunks(fitted_on, units, args.num_chunks))
    tokenizers = {
        f"FAST, scale {scale:g}": FASTActionTokenizer.fit(chunks, args.vocab_size, scale) for scale in args.scales
    }
    tokenizers[f"{args.num_bins} bins"] = BinningActionTokenizer(args.num_bins)
    actions = learned_chunks(held_out, units, args.num_chunks)
    rows = [{"tokenizer": name, **measure(one, actions, units.normalizer)} for name, one in tokenizers.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    report = {**asdict(args), "num_fitted": len(chunks), "num_measured": len(actions), "rows": rows}
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{len(actions)} chunks of held-out episodes, {args.chunk_size} x {held_out.action_dim} values each\n")
    print(f"{format_table(rows)}\n\n{file}")

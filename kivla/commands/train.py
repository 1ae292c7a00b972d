"""`kivla train`: fine-tune a VLM into a policy on LeRobot datasets, by any of the recipes."""

from collections.abc import Sequence
from pathlib import Path

from ..command_line import parse
from ..training.arguments import KIVLATrainingArguments
from ..training.policy_card import evaluated_sets
from ..training.run import BEFORE, train
from ..training.run_options import DataArguments, ModelArguments


def run(arguments: Sequence[str]) -> None:
    kinds = (ModelArguments, DataArguments, KIVLATrainingArguments)
    model_args, data_args, args = parse(kinds, arguments, prog="kivla train", required=("output_dir",))
    trainer, metrics = train(model_args, data_args, args, command=arguments)
    if trainer.is_world_process_zero():
        print_results(metrics, Path(args.output_dir))


def print_results(metrics: dict[str, float], folder: Path) -> None:
    """Print the evaluation as a table, in robot units, whether the VLM still answers, and how it predicts texts."""
    print(f"\n{'evaluated on':20}{'mean abs. error':>18}{'of the mean action':>22}{'times better':>16}")
    for name, row in evaluated_sets(metrics).items():
        error, mean, times = row.values()
        print(f"{name:20}{error:18.4f}{mean:22.4f}{times:16.2f}")
    if f"{BEFORE}_vlm_answer_accuracy" in metrics:
        before, after = metrics[f"{BEFORE}_vlm_answer_accuracy"], metrics["eval_vlm_answer_accuracy"]
        print(f"\nVLM data: {100 * before:.1f} % of the answers word for word before, {100 * after:.1f} % after")
    if f"{BEFORE}_text_nll" in metrics:
        before, after = metrics[f"{BEFORE}_text_nll"], metrics["eval_text_nll"]
        change, low, high = (metrics[f"text_nll_difference{suffix}"] for suffix in ("", "_low", "_high"))
        print(
            f"\nTexts: {before:.3f} nats a token before, {after:.3f} after; difference {change:+.3f} ({low:+.3f} to "
            f"{high:+.3f})"
        )
    print(f"\nPolicy, eval_results.json and training.png are in {folder}")

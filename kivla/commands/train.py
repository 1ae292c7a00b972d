"""`kivla train`: fine-tune a VLM into a policy on LeRobot datasets, by any of the recipes."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..command_line import parse
from ..training.arguments import KIVLATrainingArguments
from ..training.checkpoints import put_aside
from ..training.data_parallel import unsharded_init
from ..training.evaluation.plots import plot_training_curves
from ..training.policy_card import evaluated_sets
from ..training.policy_options import refuse
from ..training.run import BEFORE, answers_before, load_sources, make_trainer, run_facts, save, split_run
from ..training.run_options import DataArguments, ModelArguments
from ..training.training_facts import write_card, write_facts


def run(arguments: Sequence[str]) -> None:
    kinds = (ModelArguments, DataArguments, KIVLATrainingArguments)
    model_args, data_args, args = parse(kinds, arguments, prog="kivla train", required=("output_dir",))
    stages, output_dir, start = model_args.stages, Path(args.output_dir), None
    if args.resume_from_checkpoint is not None and len(stages) > 1:
        reason = f"a run of {len(stages)} stages finds where it was by itself, by the same command"
        refuse({"resume_from_checkpoint": reason})
    if args.restart:
        with args.main_process_first(local=False):
            if args.process_index == 0:
                put_aside(output_dir)
        args = replace(args, restart=False)
    start_time, made_from = time.monotonic(), {}
    for number, (stage, stage_args) in enumerate(zip(stages, split_run(stages, args), strict=True), 1):
        folder = Path(stage_args.output_dir)
        is_last = number == len(stages)
        facts = run_facts(model_args, args, number)
        trainer, made = make_trainer(model_args, data_args, stage_args, stage, start, facts)
        made_from = made_from or made  # what the first stage begins with
        checkpoint = args.resume_from_checkpoint
        if checkpoint is None:
            checkpoint = trainer.newest_checkpoint()
            trainer.claim_folder(output_dir)
        if not is_last and (folder / "trainer_state.json").is_file():  # written last
            start = folder
            continue
        if len(stages) > 1 and args.process_index == 0:
            print(f"\nStage {number} of {len(stages)}: trains {' and '.join(stage.trains)}, {stage.config}")
        before = answers_before(trainer, output_dir / "vlm_before.json")
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.state.log_history.insert(0, {**before, "step": 0})
        save(trainer, folder)
        start = folder
    metrics = {**before, **trainer.evaluate()}
    if trainer.is_world_process_zero():
        plot_training_curves(output_dir / "training.png", trainer.state.log_history)
        (output_dir / "eval_results.json").write_text(json.dumps(metrics, indent=2) + "\n")
        recipe_name, recipe = model_args.chosen_recipe
        with unsharded_init(args):
            write_facts(
                output_dir,
                trainer,
                load_sources(model_args, data_args),
                metrics,
                arguments,
                recipe=recipe_name,
                what_it_is=recipe.description,
                vlm=model_args.vlm or model_args.policy,
                made_from=made_from,
                vlm_dataset=data_args.vlm_dataset,
                trains_vlm_data=data_args.vlm_dataset is not None and recipe.vlm_data,
                minutes=(time.monotonic() - start_time) / 60,
            )
        write_card(output_dir)
        print_results(metrics, output_dir)
    if args.push_to_hub:
        trainer.push_to_hub()


def print_results(metrics: dict[str, float], folder: Path) -> None:
    """The evaluation as a table, in robot units, and whether the VLM still answers."""
    print(f"\n{'evaluated on':20}{'mean abs. error':>18}{'of the mean action':>22}{'times better':>16}")
    for name, row in evaluated_sets(metrics).items():
        error, mean, times = row.values()
        print(f"{name:20}{error:18.4f}{mean:22.4f}{times:16.2f}")
    if f"{BEFORE}_vlm_answer_accuracy" in metrics:
        before, after = metrics[f"{BEFORE}_vlm_answer_accuracy"], metrics["eval_vlm_answer_accuracy"]
        print(f"\nVLM data: {100 * before:.1f} % of the answers word for word before, {100 * after:.1f} % after")
    print(f"\nPolicy, eval_results.json and training.png are in {folder}")

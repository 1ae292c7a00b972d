"""The plan of a run without the run: no weights are read, and nothing is written."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from .arguments import KIVLATrainingArguments
from .checkpoints import RUN_MARKS
from .plan import format_plan, memory_table
from .run import check_options, make_trainer, refuse_own_inputs, run_facts, split_run
from .run_folder import check_is_free
from .run_options import DataArguments, ModelArguments


def plan_alone(model_args: ModelArguments, data_args: DataArguments, args: KIVLATrainingArguments) -> Iterator[str]:
    """Go through the plans of all stages of a run that `train` would do with the same arguments.

    Data and options are checked as `train` checks them. The policy is built from its config alone, so that a laptop can
    plan what is to run on eight GPUs; memory is planned for one device, and for several that share (FSDP2).

    Raises:
        ValueError: options and data do not fit each other; or several processes were started.
    """
    if args.world_size > 1:
        raise ValueError("A plan is made by one process, for one device and several: start it without a launcher.")
    check_options(model_args, data_args, args)
    refuse_own_inputs(Path(args.output_dir), model_args, data_args)
    check_is_free(Path(args.output_dir), RUN_MARKS)
    stages = model_args.stages
    model_args = replace(model_args)
    model_args.without_weights = True
    for number, (stage, stage_args) in enumerate(zip(stages, split_run(stages, args), strict=True), 1):
        with TemporaryDirectory() as scratch:  # the library makes the trainer's folder
            aside = replace(stage_args, output_dir=scratch, push_to_hub=False)
            facts = run_facts(model_args, data_args, args, number)
            trainer, _ = make_trainer(model_args, data_args, aside, stage, facts=facts)
            trainer.args.output_dir = stage_args.output_dir  # whose disk is planned for
            yield format_plan(trainer, stages, number) + "\n" + memory_table(trainer)
        data_args = replace(data_args, check_data=False)  # once is enough

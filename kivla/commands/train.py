"""`kivla train`: fine-tune a VLM into a policy on LeRobot datasets, by any of the recipes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from ..command_line import option_values, parse
from ..training.data_parallel import ended_process_group
from ..training.plan_alone import plan_alone
from ..training.policy_card import evaluated_sets
from ..training.policy_options import refuse
from ..training.run import BEFORE, train
from ..training.run_arguments import PRESETS, RunArguments, advanced_options
from ..training.run_folder import write_whole
from ..training.run_options import START, DataArguments, ModelArguments


@dataclass
class TrainArguments(RunArguments):
    plan: bool = field(
        default=False,
        metadata={
            "help": "Say what the run would do and the memory that it needs on 1, 2, 4 and 8 devices, and end: no "
            "weights are read, nothing is written."
        },
    )

    def __post_init__(self):
        self.use_cpu = self.use_cpu or self.plan  # what needs a GPU can be planned without one
        super().__post_init__()


OPTIONS = (ModelArguments, DataArguments, TrainArguments)
SETTINGS = {"prog": "kivla train", "required": ("output_dir",), "presets": PRESETS}
# The options of a run, in its folder. A name that begins with _ is not pushed to the Hub: folders of this machine are
# among them.
RUN_YAML = "_run.yaml"
# Not of the run, but of one start of it; and what is nobody's business
_NOT_WRITTEN = ("plan", "restart", "resume_from_checkpoint", "hub_token")


def run(arguments: Sequence[str]) -> None:
    model_args, data_args, args = parse(OPTIONS, arguments, **SETTINGS, advanced=advanced_options())
    values = option_values(OPTIONS, arguments, **SETTINGS)
    if values.get("num_train_epochs") is not None and values.get("max_steps", -1) > 0:
        refuse({"num_train_epochs": f"--max_steps {values['max_steps']} says how long the run is"})
    args = args.for_stages(model_args.stages, is_new_policy=model_args.meaning == START)

    def write_options() -> None:
        values = effective_options(arguments, args)
        file = Path(args.output_dir) / RUN_YAML
        head = f"# All options of this run. To do the same elsewhere: kivla train {file} --output_dir ...\n"
        write_whole(file, head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        print(f"Options of this run: {file}")

    if args.plan:
        for text in plan_alone(model_args, data_args, args):
            print(text)
        return
    with ended_process_group():
        trainer, metrics = train(model_args, data_args, args, command=arguments, on_claim=write_options)
    if trainer.is_world_process_zero():
        print_results(metrics, Path(args.output_dir))


def effective_options(arguments: Sequence[str], args: TrainArguments) -> dict:
    """Every option that has a value, with what was derived: `kivla train` takes it back as YAML.

    Args:
        arguments: as given.
        args: what became of them.
    """
    values = option_values(OPTIONS, arguments, **SETTINGS)
    derived = ("max_steps", "expert_learning_rate", "adam_beta2")
    values |= {name: getattr(args, name) for name in derived if getattr(args, name) is not None}
    order = [field.name for kind in OPTIONS for field in fields(kind) if field.name not in _NOT_WRITTEN]
    return {name: values[name] for name in order if name in values}


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

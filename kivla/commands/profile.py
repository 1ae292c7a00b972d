"""`kivla profile`: where the time of a training step goes. The options are those of `kivla train`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.profiler import ProfilerActivity, profile, schedule
from torch.profiler import supported_activities as activities_here
from transformers import TrainerCallback

from ..command_line import parse
from ..hub_cards.environment_info import environment_info
from ..training.run import check_options, make_trainer
from ..training.run_arguments import PRESETS, RunArguments, advanced_options
from ..training.run_folder import check_can_write
from ..training.run_options import START, DataArguments, ModelArguments

# Range in the profile -> what it is. Ranges that lie inside another one are indented.
RANGES = {
    "kivla::data": "reading and preparing the batch",
    "kivla::step": "forward and backward",
    "kivla::forward": "  forward",
    "kivla::backbone": "    backbone",
    "kivla::expert": "    action expert",
}
_OPTIMIZER = "Optimizer.step#"


@dataclass
class ProfileArguments:
    profile_steps: int = field(default=10, metadata={"help": "Steps to measure."})
    warmup_steps_before: int = field(default=5, metadata={"help": "Steps before them that are not measured."})


def run(arguments: Sequence[str]) -> None:
    # Kernels are waited for where they are launched, so that on a GPU, too, a range lasts as long as its work.
    os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
    options, model_args, data_args, args = parse(
        (ProfileArguments, ModelArguments, DataArguments, RunArguments),
        arguments,
        prog="kivla profile",
        presets=PRESETS,
        advanced=advanced_options(),
    )
    args = args.for_stages(model_args.stages, is_new_policy=model_args.meaning == START)
    warmup, steps = options.warmup_steps_before, options.profile_steps
    args = replace(args, max_steps=warmup + steps + 1, save_strategy="no", eval_strategy="no", report_to="none")
    check_options(model_args, data_args, args)
    trace = Path(args.output_dir) / "trace.json"
    check_can_write(trace.parent)
    scratch = TemporaryDirectory()  # the folder may hold the run that is profiled
    args = replace(args, output_dir=scratch.name)
    trainer, _ = make_trainer(model_args, data_args, args, model_args.stages[-1])
    activities = [ProfilerActivity.CPU, *(activities_here() & {ProfilerActivity.CUDA})]
    with profile(activities=activities, schedule=schedule(wait=0, warmup=warmup, active=steps, repeat=1)) as profiler:
        trainer.add_callback(_NextStep(profiler))
        trainer.train()
    scratch.cleanup()
    trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(trace))
    print(f"\n{format_table(milliseconds(profiler, steps))}\n")
    about = environment_info()
    print(f"Means over {steps} steps on {about['gpu'] or about['cpu']}, {about['threads']} CPU threads.")
    print(f"Every operation: {trace} (open it in https://ui.perfetto.dev)")


def milliseconds(profiler: profile, steps: int) -> dict[str, float]:
    """Milliseconds of a step by part: the `RANGES`, `backward` (the step without its forward) and `optimizer`."""
    totals = dict.fromkeys((*RANGES, "optimizer"), 0.0)
    for event in profiler.key_averages():
        if event.key in RANGES:
            totals[event.key] += event.cpu_time_total
        elif event.key.startswith(_OPTIMIZER):
            totals["optimizer"] += event.cpu_time_total
    totals = {name: total / 1e3 / steps for name, total in totals.items()}
    totals["backward"] = totals["kivla::step"] - totals["kivla::forward"]
    return totals


def format_table(totals: dict[str, float]) -> str:
    """Write the milliseconds and shares of a step as a table."""
    whole = totals["kivla::data"] + totals["kivla::step"] + totals["optimizer"]
    rows = [(title, totals[name]) for name, title in RANGES.items()]
    rows += [("  backward", totals["backward"]), ("optimizer", totals["optimizer"]), ("all", whole)]
    lines = [f"{title:34}{time:10.2f} ms{100 * time / whole:8.1f} %" for title, time in rows]
    return "\n".join([f"{'part of a training step':34}{'time':>13}{'share':>10}", *lines])


class _NextStep(TrainerCallback):
    def __init__(self, profiler: profile):
        self.profiler = profiler

    def on_step_end(self, args, state, control, **kwargs):
        self.profiler.step()

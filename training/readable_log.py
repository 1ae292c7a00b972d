"""What a run logs, as lines for people: the library prints Python's dicts."""

from collections.abc import Mapping, Sequence
from itertools import takewhile

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

_BY_DIMENSION = "action_mae_"  # and a number: each dimension of the robot
_OF_THE_RUN = ("epoch", "total_flos")
_SPEED = ("runtime", "steps_per_second", "samples_per_second")


class ReadableLog(TrainerCallback):
    """Prints each entry of the log as a line."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and (line := log_line(logs, state.global_step)):
            tqdm.write(line)  # above the bars, where there are some


class _QuietBar(ProgressCallback):
    """The bar of steps alone."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


def print_readably(trainer: Trainer) -> None:
    """Let a trainer print its log as lines, in place of the library's dicts; a notebook's table stays."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_QuietBar())
    elif trainer.pop_callback(PrinterCallback) is None:
        return
    trainer.add_callback(ReadableLog())


def log_line(logs: Mapping[str, float], step: int) -> str | None:
    """Write an entry as `step 20:  loss 1.2  token_loss 0.9 ...`, by the names that it has in trackers, too.

    What all names begin with (`eval_held_out_`) is said once; the error of each dimension, `action_mae_0` and so on, as
    one list.

    Returns:
        None for the averages over the whole run that come at the end of training.
    """
    if "train_runtime" in logs:
        return None
    names = [name for name in logs if name not in _OF_THE_RUN]
    group = _common_words(names) if len(names) > 1 else ""
    values = {name.removeprefix(f"{group}_" if group else ""): logs[name] for name in names}
    dimensions = [name for name in values if name.removeprefix(_BY_DIMENSION).isdigit()]
    parts = [f"{name} {_number(value)}" for name, value in values.items() if name not in (*dimensions, *_SPEED)]
    if dimensions:
        parts.append(f"{_BY_DIMENSION}... {' '.join(_number(values[name]) for name in dimensions)}")
    return f"step {step:,}{f', {group}' if group else ''}:  {'  '.join(parts)}"


def _common_words(names: Sequence[str]) -> str:
    """What all names begin with, in whole words: eval_held_out of eval_held_out_loss and eval_held_out_runtime."""
    columns = zip(*(name.split("_")[:-1] for name in names), strict=False)
    return "_".join(words[0] for words in takewhile(lambda words: len(set(words)) == 1, columns))


def _number(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


__all__ = ["ReadableLog", "log_line", "print_readably"]

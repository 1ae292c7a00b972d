"""Watching a run: what the log says about a loss that jumps and an expert that learns nothing; examples by name."""

import logging
import math
import statistics
from collections.abc import Mapping, Sequence

from torch.utils.data import Dataset, Subset
from transformers import TrainerCallback

from .data.mixture import Mixture
from .data.robot_dataset import RobotDataset
from .data.vlm.dataset import VLMDataset
from .data.vlm.texts import TextDataset

logger = logging.getLogger(__name__)

SPIKE_WINDOW, SPIKE_MINIMUM, SPIKE_DEVIATIONS = 50, 20, 6.0
DEAD_EXPERT_LOGS, DEAD_EXPERT_STEPS, DEAD_EXPERT_RATIO = 10, 200, 0.95


class NonFiniteError(RuntimeError):
    """A loss or a gradient was NaN or infinite, and `on_nonfinite` says to stop."""


class LossWatch(TrainerCallback):
    """Warns of loss spikes and of a dead action expert. All that it needs is in the log, also after a resumption.

    **Spike**: a logged loss more than 6 robust standard deviations (1.4826 · median absolute deviation, at least 1 % of
    the median) above the median of the 50 before it, of which there must be 20.

    **Dead expert**: from 200 steps after the warm-up on, the mean of 10 logged flow losses is more than 0.95 of that of
    `mean_velocity_flow_loss`, what always predicting the mean velocity would cost. An expert that reads nothing but
    the noisy chunk, and knows nothing of pictures and words, needs at most 0.8 of that for Gaussian actions, whatever
    their spread: one above 0.95 does not even read its own input. Warns once.
    """

    def __init__(self):
        self._warned_of_expert = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not math.isfinite(logs.get("loss", math.nan)):
            return
        history = [entry for entry in state.log_history if math.isfinite(entry.get("loss", math.nan))]
        if spike := spike_of([entry["loss"] for entry in history]):
            logger.warning("Step %d: %s", state.global_step, spike)
        first_step = DEAD_EXPERT_STEPS + args.get_warmup_steps(state.max_steps)
        names = ("flow_loss", "mean_velocity_flow_loss")
        pairs = [[entry[n] for n in names] for entry in history if entry["step"] >= first_step and names[1] in entry]
        if not self._warned_of_expert and (dead := dead_expert_of(pairs)):
            self._warned_of_expert = True
            logger.warning("Step %d: %s", state.global_step, dead)


def spike_of(losses: Sequence[float]) -> str | None:
    """Say in words if the last of the logged losses is a spike (see `LossWatch`); None if it is not."""
    *before, last = losses
    window = before[-SPIKE_WINDOW:]
    if len(window) < SPIKE_MINIMUM:
        return None
    median = statistics.median(window)
    deviation = max(1.4826 * statistics.median(abs(loss - median) for loss in window), 0.01 * abs(median))
    if last <= median + SPIKE_DEVIATIONS * deviation:
        return None
    return (
        f"the loss jumped to {last:.4g}, {(last - median) / deviation:.0f} robust standard deviations above the median "
        f"{median:.4g} of the last {len(window)} logged ones."
    )


def dead_expert_of(losses: Sequence[tuple[float, float]]) -> str | None:
    """Say in words if flow losses, each with that of the mean velocity, are those of a dead expert; None if not."""
    last = losses[-DEAD_EXPERT_LOGS:]
    if len(last) < DEAD_EXPERT_LOGS:
        return None
    flow_loss, of_mean = (statistics.fmean(values) for values in zip(*last, strict=True))
    if flow_loss <= DEAD_EXPERT_RATIO * of_mean:
        return None
    return (
        f"the action expert learns nothing. Its flow loss, {flow_loss:.3f} over the last {len(last)} log entries, is "
        f"that of always predicting the mean velocity, {of_mean:.3f}. Look at expert_grad_norm and its learning rate."
    )


def name_examples(dataset: Dataset, origins: Sequence[Mapping]) -> str:
    """Name examples in a message: "lerobot/pusht episode 3 frame 17; ..."."""
    return "; ".join(_name_example(dataset, origin) for origin in origins)


def _name_example(dataset: Dataset, origin: Mapping) -> str:
    source, index = dataset, origin["index"]
    while isinstance(source, Mixture | Subset):
        if isinstance(source, Mixture):
            source, index = source.locate(index)
        else:
            source, index = source.dataset, source.indices[index]
    name = source.name if isinstance(source, RobotDataset) else type(source).__name__
    if "episode_index" in origin:
        return f"{name} episode {origin['episode_index']} frame {origin['frame_index']}"
    return f"{name} {'row' if isinstance(source, VLMDataset | TextDataset) else 'example'} {index}"


__all__ = ["LossWatch", "NonFiniteError", "dead_expert_of", "name_examples", "spike_of"]

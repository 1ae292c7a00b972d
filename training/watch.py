"""Watching a run: what the log says about a loss that jumps and an expert that learns nothing; examples by name."""

import logging
import math
import statistics
from collections.abc import Mapping, Sequence

from torch.utils.data import Dataset, Subset
from transformers import TrainerCallback

from .lerobot_dataset import LeRobotDataset
from .mixture import Mixture
from .vlm_dataset import VLMDataset

logger = logging.getLogger(__name__)

SPIKE_WINDOW, SPIKE_MINIMUM, SPIKE_DEVIATIONS = 50, 20, 6.0
DEAD_EXPERT_LOGS, DEAD_EXPERT_STEPS = 10, 200


class NonFiniteError(RuntimeError):
    """A loss or a gradient was NaN or infinite, and `on_nonfinite` says to stop."""


class LossWatch(TrainerCallback):
    """Warns of loss spikes and of a dead action expert. All that it needs is in the log, also after a resumption.

    **Spike**: a logged loss more than 6 robust standard deviations (1.4826 · median absolute deviation, at least 1 % of
    the median) above the median of the 50 before it, of which there must be 20.

    **Dead expert**: from 200 steps after the warm-up on, none of the last 10 logged flow losses was below 1. The target
    is noise - actions, and the noise has variance 1: a velocity that does not depend on the noise cannot do better than
    1, whatever it knows of the actions. So such an expert does not even read its own input. (One that reads nothing
    else gets below 1: the noisier the chunk, the plainer the noise is to see.) Warns once.
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
        flow_losses = [entry["flow_loss"] for entry in history if "flow_loss" in entry and entry["step"] >= first_step]
        if not self._warned_of_expert and is_dead(flow_losses):
            self._warned_of_expert = True
            logger.warning(
                "Step %d: the action expert learns nothing: none of the last %d flow losses was below 1 (the least is "
                "%.3f), which is what a velocity costs that ignores the noisy actions. Look at expert_grad_norm, and "
                "at the expert's learning rate.",
                state.global_step,
                DEAD_EXPERT_LOGS,
                min(flow_losses[-DEAD_EXPERT_LOGS:]),
            )


def spike_of(losses: Sequence[float]) -> str | None:
    """Whether the last of the logged losses is a spike (see `LossWatch`), in words."""
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


def is_dead(flow_losses: Sequence[float]) -> bool:
    """Whether the last logged flow losses are those of a dead expert (see `LossWatch`)."""
    last = flow_losses[-DEAD_EXPERT_LOGS:]
    return len(last) == DEAD_EXPERT_LOGS and min(last) >= 1.0


def name_examples(dataset: Dataset, origins: Sequence[Mapping]) -> str:
    """Examples for a message: "lerobot/pusht episode 3 frame 17; ..."."""
    return "; ".join(_name_example(dataset, origin) for origin in origins)


def _name_example(dataset: Dataset, origin: Mapping) -> str:
    source, index = dataset, origin["index"]
    while isinstance(source, Mixture | Subset):
        if isinstance(source, Mixture):
            source, index = source.locate(index)
        else:
            source, index = source.dataset, source.indices[index]
    name = source.name if isinstance(source, LeRobotDataset) else type(source).__name__
    if "episode_index" in origin:
        return f"{name} episode {origin['episode_index']} frame {origin['frame_index']}"
    return f"{name} {'row' if isinstance(source, VLMDataset) else 'example'} {index}"


__all__ = ["LossWatch", "NonFiniteError", "is_dead", "name_examples", "spike_of"]

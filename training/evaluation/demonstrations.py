"""What was demonstrated, in robot units, as the examples of an evaluation have it."""

from collections.abc import Callable, Mapping, Sequence

import torch

from ...processing.normalization import as_numbers
from ...processing.observation_history import newest_state


class WithDemonstrations:
    """Collates examples, and adds what was demonstrated to the batch, as the examples have it.

    `batch["demonstrated"]` is (B, H, D), float32, in robot units, D that of the widest robot. NaN is what is not there:
    steps past the end of an episode, dimensions that a robot does not have, and examples without actions. (What the
    processor makes of actions is for the model: normalised, padded and held.) `batch["robot_state"]` is a list of the
    present states, in robot units: chunks of relative actions become absolute by them.

    Args:
        collator: makes a batch (a dict) from examples.
        chunk_size: H.
        action_dim: D.
    """

    def __init__(self, collator: Callable[[list], Mapping], chunk_size: int, action_dim: int):
        self.collator, self.chunk_size, self.action_dim = collator, chunk_size, action_dim

    def __call__(self, examples: Sequence[Mapping]) -> Mapping:
        batch = self.collator(examples)
        demonstrated = torch.full((len(examples), self.chunk_size, self.action_dim), torch.nan)
        for row, example in zip(demonstrated, examples, strict=True):
            if example.get("actions") is not None:
                actions = torch.as_tensor(as_numbers(example["actions"]), dtype=torch.float32)
                row[: len(actions), : actions.shape[1]] = actions
            if example.get("action_is_pad") is not None:
                is_pad = torch.as_tensor(as_numbers(example["action_is_pad"]), dtype=torch.bool)
                row[: len(is_pad)][is_pad] = torch.nan
        batch["demonstrated"] = demonstrated
        batch["robot_state"] = [newest_state(example.get("state")) for example in examples]
        return batch


__all__ = ["WithDemonstrations"]

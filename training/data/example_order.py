"""Which example comes when, and which random numbers it sees: functions of seed and position alone.

A run that is interrupted cannot carry over the random state of loader workers, nor that of examples that were loaded
but not yet trained on. So nothing is drawn from a state that has a history: what is random in an example (an
augmentation, say) depends on the seed, the epoch and the example; what is random in a training step on the seed, the
step and the device, as in openpi (`jax.random.fold_in(rng, step)`).
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, set_seed

# What an example may say about where it is from, beside its number.
_NAMES = ("episode_index", "frame_index", "robot")
_U64 = (1 << 64) - 1
_ROUNDS = 8


def fold_seed(*numbers: int) -> int:
    """One 32-bit seed of several non-negative numbers; neighbours give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def shuffled(position: int, length: int, seed: int) -> int:
    """What stands at a position of 0 .. length-1 after shuffling: computed alone, nothing of that length is kept.

    A Feistel network over a domain of 4^k >= length (at least 256), walked until inside (Black and Rogaway, "Ciphers
    with arbitrary finite domains", 2002); its round function is the finaliser of splitmix64.
    """
    half = max((length - 1).bit_length() + 1, 8) // 2
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for turn in range(_ROUNDS):
            mixed = ((seed * _ROUNDS + turn << 32) + right) * 0x9E3779B97F4A7C15 & _U64
            mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _U64
            mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _U64
            left, right = right, left ^ (mixed ^ mixed >> 31) & mask
        position = left << half | right
        if position < length:
            return position


class SeedEveryStep(TrainerCallback):
    """Every step draws the same random numbers however often the run was interrupted, and every device its own."""

    def on_step_begin(self, args, state, control, **kwargs):
        set_seed(fold_seed(args.seed, state.global_step, args.process_index))


class ExampleOrder(Sampler):
    """The order of an epoch's examples, shuffled anew in every epoch; in epoch e example i has number e·n + i.

    Args:
        num_examples: n.
        seed: epoch e is shuffled with seed + e, as accelerate's `SeedableRandomSampler` does.
        shuffle: otherwise every epoch has the dataset's own order.
        epoch_order: the shuffled order for a seed, where it is not to be that of all examples alike.
    """

    def __init__(
        self,
        num_examples: int,
        seed: int,
        shuffle: bool,
        epoch_order: Callable[[int], Iterator[int]] | None = None,
    ):
        self.num_examples, self.seed, self.shuffle = num_examples, seed, shuffle
        self.epoch_order = epoch_order
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_examples

    def __iter__(self) -> Iterator[int]:
        if self.shuffle and self.epoch_order is not None:
            first = self.epoch * self.num_examples
            yield from (first + example for example in self.epoch_order(fold_seed(self.seed, self.epoch)))
            return
        order = torch.arange(self.num_examples)
        if self.shuffle:
            order = torch.randperm(self.num_examples, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        for block in (order + self.epoch * self.num_examples).split(65_536):  # not a list of all of them
            yield from block.tolist()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class NumberedExamples(Dataset):
    """A dataset whose items are (index, example), each made with its own random numbers.

    Item e·n + i is example i as epoch e sees it: Python's, numpy's and torch's (CPU) random numbers are seeded before
    it is read.

    Args:
        augment: changes an example after it was read, by random numbers of its own.
    """

    def __init__(
        self,
        examples: Dataset,
        seed: int,
        augment: Callable[[Mapping, np.random.Generator], Mapping] | None = None,
    ):
        self.examples, self.seed, self.augment = examples, seed, augment

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> tuple[int, Mapping]:
        seed = fold_seed(self.seed, number)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        index = number % len(self)
        example = self.examples[index]
        if self.augment is not None:
            example = self.augment(example, np.random.default_rng((self.seed, number)))
        return index, example


class NumberedCollator:
    """Collates what `NumberedExamples` gives; `batch["origins"]` says of every example where it is from, for messages.

    Args:
        collator: makes a batch (a dict) from the examples.
    """

    def __init__(self, collator: Callable[[list], Mapping]):
        self.collator = collator

    def __call__(self, numbered: Sequence[tuple[int, Mapping]]) -> Mapping:
        batch = self.collator([example for _, example in numbered])
        batch["origins"] = [
            {"index": index, **{name: example[name] for name in _NAMES if name in example}}
            for index, example in numbered
        ]
        return batch


__all__ = [
    "ExampleOrder",
    "NumberedCollator",
    "NumberedExamples",
    "SeedEveryStep",
    "fold_seed",
    "shuffled",
]

"""Examples of like length next to each other, within an optimiser step."""

from collections.abc import Callable, Iterator
from itertools import islice

from torch.utils.data import Sampler

from .example_order import ExampleOrder


class StepBuckets(Sampler):
    """The examples of every optimiser step from small to large, so that its micro-batches hold what is alike.

    A batch is padded to its longest example. With several micro-batches in a step (gradient accumulation, several
    devices) short examples then meet short ones. The step has the same examples as before, and its losses are means
    over all of them: it is the same step. Without several micro-batches nothing changes.

    Args:
        order: of the epoch's examples.
        step_size: examples in an optimiser step: of a device × accumulation steps × devices.
        size_of: example → how long it is, roughly; anything that sorts.
    """

    def __init__(self, order: ExampleOrder, step_size: int, size_of: Callable[[int], object]):
        self.order, self.step_size, self.size_of = order, step_size, size_of

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        order = iter(self.order)
        while step := list(islice(order, self.step_size)):
            yield from sorted(step, key=self.size_of)

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)


__all__ = ["StepBuckets"]

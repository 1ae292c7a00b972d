"""Several sources of examples as one dataset, in given shares."""

from collections.abc import Sequence

import numpy as np
import torch

from .example_order import fold_seed, shuffled
from .robot_dataset import RobotDataset
from .vlm.dataset import VLMDataset


class Mixture(torch.utils.data.Dataset):
    """`num_examples` examples, each from one of the sources.

    Every source is gone through in a shuffled order, then again in another one, so that none of its examples is seen
    twice before all were seen once. Streamed VLM data is gone through in its own order (shuffle the stream),
    streamed demonstrations in windows of files (`FileWindows`). Example i
    depends on the seed and i alone: a sampler may take them in any order, ranks may share them out, and a resumed run
    goes on with the same ones. `KIVLATrainer` takes them as they come.

    Args:
        sources: map-style datasets, none empty.
        weights: the share of each source, in any unit.
        num_examples: length, e.g. steps times batch size.
        seed: of the shares' order and of the shuffling.

    Attributes:
        sources, seed: as above.
        weights: the shares, (sources,), together 1.

    Raises:
        ValueError: no sources, an empty one, or weights that are not one positive number for each.
    """

    def __init__(self, sources: Sequence, weights: Sequence[float], num_examples: int, seed: int = 0):
        shares = np.asarray(weights, dtype=np.float64)
        if not len(sources) or shares.shape != (len(sources),) or not (np.isfinite(shares) & (shares > 0)).all():
            raise ValueError(
                f"Got {len(sources)} sources and weights {list(weights)}: give one positive weight for each."
            )
        if empty := [i for i, source in enumerate(sources) if not len(source)]:
            raise ValueError(f"Source {empty[0]} of the mixture is empty.")
        self.sources = list(sources)
        self._in_order = [isinstance(source, VLMDataset) and source.is_stream for source in sources]
        self.seed = seed
        self.weights = shares / shares.sum()
        rng = np.random.default_rng(seed)
        self._source = rng.choice(len(sources), size=num_examples, p=self.weights)  # (num_examples,)
        self._turn = np.zeros(num_examples, dtype=np.int64)  # how many examples of the same source come before
        for i in range(len(sources)):
            mine = self._source == i
            self._turn[mine] = np.arange(mine.sum())

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int):
        source, item = self.locate(index)
        return source[item]

    def locate(self, index: int) -> tuple[torch.utils.data.Dataset, int]:
        """The source of example `index`, and which of its items it is."""
        number = int(self._source[index])
        source = self.sources[number]
        epoch, position = divmod(int(self._turn[index]), len(source))
        if self._in_order[number]:
            return source, position
        seed = fold_seed(self.seed, number, epoch)
        if isinstance(source, RobotDataset) and source.file_windows is not None:
            return source, source.file_windows.item(position, seed)
        return source, shuffled(position, len(source), seed)

    def size_of(self, index: int) -> tuple[int, int]:
        """Images and characters of text of an example, without reading them."""
        source, item = self.locate(index)
        return source.size_of(item)


__all__ = ["Mixture"]

"""An exponential moving average of the trained weights: what is evaluated and deployed, as openpi does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

EMA_FILE = "ema.safetensors"


class WeightAverage:
    """`average = decay · average + (1 - decay) · weight` of every trained parameter, in float32, from its start value.

    Where FSDP2 shards a parameter, every device averages its own part.

    Args:
        model: the model that is trained; frozen parameters need no average.
        decay: openpi's policies use 0.99 and 0.999.

    Attributes:
        weights: the average, by the parameters' names; where they are sharded, this device's part.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: _local(p).float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after an optimiser step into the average."""
        weights = [_local(parameter).float() for parameter in self._parameters.values()]
        get_ema_multi_avg_fn(self.decay)(list(self.weights.values()), weights, None)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the model's weights for a while. Takes their memory once more."""
        kept = {name: _local(parameter).clone() for name, parameter in self._parameters.items()}
        self.take()
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                _local(parameter).copy_(kept[name])

    @torch.no_grad()
    def take(self) -> None:
        """Make the average the model's weights for good."""
        for name, parameter in self._parameters.items():
            _local(parameter).copy_(self.weights[name])

    def save(self, folder: Path, is_writer: bool) -> None:
        """Write `ema.safetensors`, with whole tensors under their parameters' names. To be called on all devices."""
        whole = {}
        for name, parameter in self._parameters.items():
            average = self.weights[name]
            if isinstance(parameter, DTensor):
                sharding = {"shape": parameter.shape, "stride": parameter.stride()}
                average = DTensor.from_local(average, parameter.device_mesh, parameter.placements, **sharding)
                average = average.full_tensor()
            if is_writer:
                whole[name] = average.cpu().contiguous()
        if is_writer:
            save_file(whole, folder / EMA_FILE)

    def load(self, folder: Path) -> None:
        """Read the average that `save` has written.

        Raises:
            ValueError: the checkpoint has no average, or that of other parameters.
        """
        if not (folder / EMA_FILE).is_file():
            raise ValueError(
                f"{folder} has no {EMA_FILE}: it is of a run without ema_decay. Leave out ema_decay, or start anew."
            )
        whole = load_file(folder / EMA_FILE)
        if whole.keys() != self.weights.keys():
            differing = sorted(whole.keys() ^ self.weights.keys())
            raise ValueError(
                f"{folder / EMA_FILE} has the average of other parameters than are trained now: {len(differing)} are "
                f"only in one of them ({differing[:3]} ...). Resume with the arguments of the run that wrote it."
            )
        for name, parameter in self._parameters.items():
            average = whole[name].to(self.weights[name].device)
            if isinstance(parameter, DTensor):
                average = distribute_tensor(average, parameter.device_mesh, parameter.placements).to_local()
            self.weights[name].copy_(average)


def _local(parameter: nn.Parameter) -> torch.Tensor:
    """This device's part of a parameter; shares its memory."""
    data = parameter.detach()
    return data.to_local() if isinstance(data, DTensor) else data


__all__ = ["EMA_FILE", "WeightAverage"]

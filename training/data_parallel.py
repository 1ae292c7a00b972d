"""Several devices, where an example may teach the VLM, the expert, or both: what DDP and FSDP need beside accelerate.

In one step one device may have answers to learn and another only actions, and with insulation the flow loss gives the
VLM no gradient at all: `None`, which an optimiser skips, and not zero, which decays weights and moves them on old
momentum. The parameters after a step must be those of a single device with the same examples.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from .preemption import Interrupted, Preempted


class _Touch(torch.autograd.Function):
    """Identity on the loss whose backward reaches every parameter with no gradient: DDP then knows that it is done."""

    @staticmethod
    def forward(ctx, loss, *parameters):
        ctx.count = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, *[None] * ctx.count


class DDPGradients:
    """Lets DDP average gradients that only some devices have, without looking for unused parameters.

    DDP waits for every parameter's gradient. Its own remedy, `find_unused_parameters=True`, walks the whole autograd
    graph in every step. Here the loss is made to depend on all parameters at no cost (`touch`): DDP takes what is
    missing as zero, in its usual buckets and while backward still runs. Afterwards, what no device had a gradient for
    gets `None` again (`forget_unused`), after one small message about who had what.

    Measured on one CPU core with 811 parameters and a graph of 4,664 nodes: 2 ms a step, where DDP's search takes 5 ms
    and grows with the graph. The price: gradients of a part that learns nothing anywhere in a step are sent as zeros.
    Averaging after backward instead, without DDP, would send only what there is, but nothing while backward runs, and
    that costs every other step (in the same measurement 18 ms).
    Reentrant gradient checkpointing hides layers from the graph and cannot be used with it (nor with DDP's own remedy).

    Args:
        model: wrapped by DDP with `find_unused_parameters=False`.
    """

    def __init__(self, model: DistributedDataParallel):
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._used: set[int] = set()
        for number, parameter in enumerate(self.parameters):
            parameter.register_post_accumulate_grad_hook(lambda p, number=number: self._note(number, p))

    def _note(self, number: int, parameter: nn.Parameter) -> None:
        if parameter.grad is not None:  # the hook also runs for a parameter that is only touched
            self._used.add(number)

    def touch(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss, for the backward after which DDP averages; not under `no_sync`."""
        return _Touch.apply(loss, *self.parameters)

    def forget_unused(self, accelerator: Accelerator) -> None:
        """After that backward."""
        used = torch.zeros(len(self.parameters), dtype=torch.int32, device=accelerator.device)
        used[list(self._used)] = 1
        self._used.clear()
        for parameter, is_used in zip(self.parameters, accelerator.reduce(used, "max").tolist(), strict=True):
            if not is_used:
                parameter.grad = None


def keep_inputs_exact(accelerator: Accelerator) -> None:
    """Mixed precision under FSDP2: bf16 weights to compute with, float32 ones to update, gradients added in float32.

    By default accelerate also adds gradients in bf16, and FSDP casts what the model is given: actions, noise and flow
    times would be rounded to three digits. Autocast casts where a layer computes, as it does without FSDP.
    """
    # Of outputs that are views, in case somebody writes into them; nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    plugin = accelerator.state.fsdp_plugin
    given = plugin.mixed_precision_policy
    if given is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=given.param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def reshard_after_forward(model: nn.Module, accelerator: Accelerator) -> None:
    """Which layers give up their gathered weights between forward and backward, under FSDP2.

    As the launch file says, but for the last to run. And where the VLM learns from the flow loss (joint training), its
    text decoder keeps them: FSDP gathers a layer's weights when the gradient of the layer's output arrives, and the
    keys and values that the expert reads are no outputs. Without labels no other gradient reaches the last layers.
    """
    keep = {model, model.get_input_embeddings(), model.get_output_embeddings()}
    if model.config.backbone_gradient_scale > 0:
        keep.update(model.get_decoder().modules())
    wanted = accelerator.state.fsdp_plugin.reshard_after_forward
    for unit in _units(model):
        unit.set_reshard_after_forward(wanted and unit not in keep, recurse=False)


class ReshardAfterForward(TrainerCallback):
    """`reshard_after_forward` when the model has been sharded."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_train_begin(self, args, state, control, model, **kwargs):
        if self.accelerator.is_fsdp2:
            reshard_after_forward(model, self.accelerator)


def _units(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def whole_weights(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """All weights on every device, for evaluation: there devices need not run the same layers equally often.

    A model that FSDP2 has not sharded (yet: accelerate leaves it in the host's memory until training begins) is put on
    its device.
    """
    units = _units(model)
    if not units:
        model.to(accelerator.device)
        yield
        return
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
        reshard_after_forward(model, accelerator)


@contextmanager
def unsharded_init(args: TrainingArguments) -> Iterator[None]:
    """For making a model under DeepSpeed: with ZeRO-3 the library would share out the VLM's weights while it is made.

    An expert cannot be measured and made for such a VLM. DeepSpeed shares out the whole policy when training begins.
    """
    if args.deepspeed_plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        args.deepspeed_plugin.set_deepspeed_weakref()


@contextmanager
def original_class(model: nn.Module) -> Iterator[None]:
    """For `save_pretrained`, which copies the code of the model's class: FSDP2 puts one of its own in that place."""
    found = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = next(c for c in found.__mro__ if not issubclass(c, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = found


@contextmanager
def ended_process_group() -> Iterator[None]:
    """For a program that is over afterwards: torch's threads may abort a process that ends under them.

    After an error of one device the others may still wait for it in the group; the launcher ends them.
    """
    try:
        yield
    except (Preempted, Interrupted):  # all devices have stopped together
        _end_process_group()
        raise
    _end_process_group()


def _end_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def total_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Of all of a gradient, also where every device has a part of it; to be called on all devices."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


__all__ = [
    "DDPGradients",
    "ReshardAfterForward",
    "ended_process_group",
    "keep_inputs_exact",
    "original_class",
    "total_norm",
    "unsharded_init",
    "whole_weights",
]

"""Whether the weights that are trained can take small steps."""

import logging

import torch
from accelerate import Accelerator
from torch import nn

logger = logging.getLogger(__name__)


def check_trained_dtype(model: nn.Module, accelerator: Accelerator) -> None:
    """Warn where an optimiser would update weights of half precision.

    DeepSpeed, and FSDP2 with mixed precision, keep float32 ones to update.

    Raises:
        ValueError: float16 weights with float16 mixed precision, whose scaler needs float32 ones.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    half = [parameter for parameter in trained if parameter.dtype in (torch.bfloat16, torch.float16)]
    has_float32_copies = accelerator.mixed_precision != "no" and accelerator.is_fsdp2
    if not half or has_float32_copies or accelerator.state.deepspeed_plugin is not None:
        return
    dtype = str(half[0].dtype).removeprefix("torch.")
    advice = 'Load the policy with dtype="float32", and train with bf16=True for speed (mixed precision).'
    if half[0].dtype == torch.float16 and accelerator.mixed_precision == "fp16":
        raise ValueError(f"fp16=True scales gradients of float32 weights, but the policy is in float16. {advice}")
    count, total = (sum(parameter.numel() for parameter in group) for group in (half, trained))
    logger.warning(
        "%.0f %% of the trained weights are %s, and so are the optimiser's moments. Most steps of usual learning rates "
        "are too small for it: such weights do not move at all. %s",
        100 * count / total,
        dtype,
        advice,
    )


__all__ = ["check_trained_dtype"]

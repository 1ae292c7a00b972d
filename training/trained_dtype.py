"""Whether a policy can be trained in the types that were chosen."""

import logging

import torch
import transformers
from accelerate import Accelerator
from packaging.version import Version
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


def check_mixed_precision(model_type: str, mixed_precision: str) -> None:
    """Refuse mixed precision for a VLM whose code in the installed library cannot do it.

    Args:
        model_type: of the VLM.
        mixed_precision: accelerate's name: "no", "bf16", "fp16" or "fp8".

    Raises:
        ValueError: SmolVLM before transformers 5.18, which writes pictures of one type into words of another.
    """
    is_old = Version(transformers.__version__) < Version("5.18")
    if model_type == "smolvlm" and mixed_precision != "no" and is_old:
        raise ValueError(
            f"SmolVLM cannot be trained in mixed precision ({mixed_precision}) with transformers "
            f"{transformers.__version__}. Install transformers 5.18 or newer, or train in float32 (bf16=False)."
        )


__all__ = ["check_mixed_precision", "check_trained_dtype"]

"""The error of action chunks: the one place where it is computed.

The sums of a batch add up over batches and devices, and figures are made of them at the end. What the trainer logs,
`kivla predict`, `kivla evaluate` and the metric `action_error` report are these.
"""

import numpy as np
import torch

ACTION_ERROR_SUMS = ("absolute_error", "squared_error", "values")


def action_error_sums(
    predicted: torch.Tensor, demonstrated: torch.Tensor, real: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Sum up the errors of chunks, for each example and dimension.

    Args:
        predicted: (B, H, D), robot units; or (D,), one action for all steps.
        demonstrated: (B, H, D).
        real: (B, H, D) bool, True where a value counts; elsewhere anything may stand, NaN too.

    Returns:
        Sums over steps, (B, D), named as in `ACTION_ERROR_SUMS`; all of one dtype, so that devices can exchange them.
    """
    error = (predicted - demonstrated).masked_fill(~real, 0.0)
    values = real.sum(1, dtype=error.dtype)
    return {"absolute_error": error.abs().sum(1), "squared_error": error.square().sum(1), "values": values}


def action_error(sums: dict[str, torch.Tensor]) -> dict:
    """Make figures of sums.

    Args:
        sums: as of `action_error_sums`, of one example or of many: (D,) or (n, D).

    Returns:
        `mae` and `rmse` over all values, and `mae_per_dimension`, (D,); None where there is no value.
    """
    absolute, squared, count = (
        sums[name].double().reshape(-1, sums[name].shape[-1]).sum(0) for name in ACTION_ERROR_SUMS
    )
    total = float(count.sum())
    if not total:
        return {"mae": None, "rmse": None, "mae_per_dimension": [None] * len(count)}
    return {
        "mae": float(absolute.sum()) / total,
        "rmse": (float(squared.sum()) / total) ** 0.5,
        "mae_per_dimension": [float(a / n) if n else None for a, n in zip(absolute, count, strict=True)],
    }


def error_of_chunks(predicted: np.ndarray, demonstrated: np.ndarray, real: np.ndarray) -> dict:
    """Compute the figures of arrays.

    Args:
        predicted: (n, H, D), robot units; or (D,), one action for all steps.
        demonstrated: (n, H, D).
        real: (n, H) bool, True at the steps that count.

    Returns:
        As `action_error`.
    """
    predicted, demonstrated = (torch.tensor(np.asarray(chunks, np.float64)) for chunks in (predicted, demonstrated))
    mask = torch.as_tensor(real)[..., None].expand(demonstrated.shape)
    return action_error(action_error_sums(predicted, demonstrated, mask))


__all__ = ["ACTION_ERROR_SUMS", "action_error", "action_error_sums", "error_of_chunks"]

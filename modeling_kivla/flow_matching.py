"""Flow matching on action chunks, as pure functions.

Direction of openpi: flow time t = 1 is noise, t = 0 is data; `x_t = t·noise + (1 - t)·actions`, and the expert predicts
the velocity `dx/dt = noise - actions`. (The knowledge-insulation paper writes τ = 1 - t and the same target ω - a.)
"""

import math

import torch


def sample_flow_time(
    num_samples: int, alpha: float, beta: float, scale: float, offset: float, device: torch.device
) -> torch.Tensor:
    """Flow times `scale · Beta(alpha, beta) + offset`, float32, (num_samples,). π0: 0.999 · Beta(1.5, 1) + 0.001."""
    parameters = torch.tensor([alpha, beta], dtype=torch.float32, device=device)
    samples = torch.distributions.Beta(parameters[0], parameters[1]).sample((num_samples,))
    return samples * scale + offset


def interpolate(actions: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The noisy chunk `x_t`; `actions` and `noise` are (M, H, D), `timestep` is (M,)."""
    t = timestep[:, None, None]
    return t * noise + (1 - t) * actions


def flow_matching_loss(
    velocity: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    num_supervised: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Squared error of the velocity, averaged over real values only: padding does not dilute it.

    Args:
        velocity, target: (M, H, D), float32.
        mask: (M, H, D) bool, True where a value is real.
        num_supervised: what to divide the sum by; the number of True values in `mask` if None. A trainer passes the
            count over all devices and accumulation steps, so that splitting a batch does not change its gradient.
    """
    squared_error = (velocity - target).square().masked_fill(~mask, 0.0)
    return squared_error.sum() / (mask.sum().clamp(min=1) if num_supervised is None else num_supervised)


def time_embedding(
    timestep: torch.Tensor, size: int, min_period: float, max_period: float, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Sinusoidal embedding of the flow time, (M,) -> (M, size), float32: all sines, then all cosines (openpi).

    Args:
        dtype: in which the angles are computed. It is part of a checkpoint's convention: openpi and LeRobot use
            float64, transformers' PI0 float32, and the velocity of a random model differs by 2e-4 between the two.
    """
    fraction = torch.linspace(0.0, 1.0, size // 2, dtype=dtype, device=timestep.device)
    period = min_period * (max_period / min_period) ** fraction
    angles = timestep.to(dtype)[:, None] * (1.0 / period * 2 * math.pi)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def euler_times(num_steps: int, device: torch.device) -> torch.Tensor:
    """The flow times at which an Euler integration from 1 to 0 asks for the velocity: 1, 1 - 1/n, ..., 1/n."""
    return (1.0 - torch.arange(num_steps, dtype=torch.float64, device=device) / num_steps).float()

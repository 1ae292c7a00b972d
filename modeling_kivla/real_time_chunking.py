"""Real-time chunking (RTC): new chunks that go on from old ones, which the robot executes while the policy computes.

Index i of a chunk is the action for control step t_obs + i, where t_obs is the step of the observation that the chunk
is computed from. It can be used `delay` steps later; by then the old chunk's actions for these steps have been
executed. So the new chunk has to begin with them, and to go on from there without a jump. Two methods:

* "guidance" (Black et al. 2025, arXiv 2506.07339): every Euler step is pulled towards what is left of the old chunk,
  through the network; any flow policy can do it, at the price of a backward pass of the expert for each step;
* "trained" (Black et al. 2025, arXiv 2512.05964): the expert has learned to go on from a clean beginning
  (`KIVLAConfig.rtc_max_delay`), and is given the old chunk's; it costs nothing.

The papers' time τ is 1 - t here: t = 1 is noise, t = 0 data; and their velocity is ours with the other sign.
"""

import math
import numbers
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .configuration_kivla import KIVLAConfig

METHODS = ("guidance", "trained")
MAX_GUIDANCE_WEIGHT = 5.0  # β of the paper


@dataclass
class RealTimeChunking:
    """What is left of a batch's old chunks, and how the new ones are to go on from it.

    Args:
        previous: (B, H, D), normalised: the old chunk's actions for the steps of the new one, from the step of the new
            observation on. What stands behind the known ones, or in dimensions that a robot does not have, is not read.
        num_previous: (B,) int, how many of these H steps are known. An example with 0 is sampled in the ordinary way.
        delay: (B,) int, how many steps pass before the new chunk can be used. As many of the old chunk's actions are
            held; where fewer are known, all of them.
        method: "guidance" or "trained".
        execution_horizon: s of the paper, for "guidance": the last s steps of the new chunk are free. By default those
            that the old chunk does not reach, as in the paper's algorithm 1, where s is what has been used of it.
        max_guidance_weight: β of the paper, for "guidance".
    """

    previous: torch.Tensor
    num_previous: torch.Tensor
    delay: torch.Tensor
    method: str = "guidance"
    execution_horizon: int | None = None
    max_guidance_weight: float = MAX_GUIDANCE_WEIGHT

    def checked(self, config: KIVLAConfig, batch_size: int, device: torch.device) -> "RealTimeChunking | None":
        """The same on a device, or None where no step is known, so that there is nothing to go on from.

        Raises:
            ValueError: shapes, a delay, a horizon or a weight that make no sense, values that are not finite, or a
                method that this policy cannot; with the numbers.
        """
        check_method(config, self.method)
        shape = (batch_size, config.chunk_size, config.max_action_dim)
        if self.previous.shape != shape:
            raise ValueError(
                f"`previous` must be (batch, chunk_size, max_action_dim) = {shape}, got {tuple(self.previous.shape)}."
            )
        delay = _whole_numbers("delay", self.delay, batch_size)
        num_previous = _whole_numbers("num_previous", self.num_previous, batch_size)
        if num_previous.max() > config.chunk_size:
            raise ValueError(f"{int(num_previous.max())} previous actions, but a chunk has {config.chunk_size}.")
        if delay.max() >= config.chunk_size:
            raise ValueError(
                f"A delay of {int(delay.max())} steps leaves nothing of a chunk of {config.chunk_size} actions: before "
                "it can be used, it is over."
            )
        if self.method == "trained":
            check_trained_delay(config, int(delay.masked_fill(num_previous == 0, 0).max()))
        elif self.execution_horizon is not None:
            check_horizon(config, self.execution_horizon, int(delay.max()))
        check_guidance_weight(self.max_guidance_weight)
        if not num_previous.any():
            return None
        known = first_steps(num_previous, config.chunk_size)[..., None]  # (B, H, 1)
        previous = self.previous.cpu().float().masked_fill(~known, 0.0)
        if not previous.isfinite().all():
            raise ValueError("The previous actions are not all finite: such a chunk is never to be executed.")
        return replace(self, previous=previous.to(device), num_previous=num_previous.to(device), delay=delay.to(device))

    @property
    def held(self) -> torch.Tensor:
        """(B, H) bool, the steps that are executed before the new chunk can be used, as far as they are known."""
        return first_steps(torch.minimum(self.delay, self.num_previous), self.previous.shape[1])

    @property
    def weights(self) -> torch.Tensor:
        """(B, H), how much each step of the old chunk weighs in the guidance: see `soft_mask`."""
        return soft_mask(self.delay, self.num_previous, self.previous.shape[1], self.execution_horizon)


# --------------------------------------------------------------------------------------------------------- guidance
def soft_mask(
    delay: torch.Tensor, num_previous: torch.Tensor, chunk_size: int, execution_horizon: int | None = None
) -> torch.Tensor:
    """How much each step of the old chunk weighs, (B,) and (B,) -> (B, H) (W of arXiv 2506.07339).

    1 for the d steps that are executed meanwhile, then falling to 0 at the end of what is known, and at H - s:
    `c_i (e^c_i - 1) / (e - 1)` with `c_i = (end - i) / (end - d + 1)`.
    """
    end = num_previous if execution_horizon is None else num_previous.clamp(max=chunk_size - execution_horizon)
    end = end[:, None]
    start = torch.minimum(delay[:, None], end)
    step = torch.arange(chunk_size, device=delay.device)
    c = (end - step) / (end - start + 1)  # (B, H)
    falling = c * c.expm1() / (math.e - 1)
    return torch.where(step < start, 1.0, falling).masked_fill(step >= end, 0.0)


def guidance_weight(t: torch.Tensor, max_weight: float) -> torch.Tensor:
    """`min(β, (1 - τ) / (τ r²))` with `r² = (1 - τ)² / (τ² + (1 - τ)²)` of arXiv 2506.07339, at τ = 1 - t."""
    return ((t**2 + (1 - t) ** 2) / (t * (1 - t))).clamp(max=max_weight)


def guided_velocity(
    velocity_of: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    t: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor,
    max_weight: float,
) -> torch.Tensor:
    """The velocity of a step that is pulled towards a target chunk (ΠGDM, as arXiv 2506.07339 has it).

    With the final chunk as the step believes it, `Â = x - t·v(x)`, it is `v - weight(t) · (Y - Â)ᵀ diag(W) ∂Â/∂x`.
    The product goes through the network: what must change in `x` so that `Â` comes to lie at the target. It is computed
    for `x` alone; no parameter gets a gradient.

    Args:
        velocity_of: the network at this step, (B, H, D) -> (B, H, D).
        x: (B, H, D), the noisy chunk.
        t: (), its flow time.
        target, weights: (B, H, D), Y and W.
        max_weight: β.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        velocity = velocity_of(x)
        final = x - t * velocity
        error = (target - final.detach()) * weights
        (pull,) = torch.autograd.grad(final, x, error)
    return velocity.detach() - guidance_weight(t, max_weight) * pull


# --------------------------------------------------------------------------------------------------------- training
def first_steps(count: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """True for the first `count` (M,) steps of each chunk: (M, H)."""
    return torch.arange(chunk_size, device=count.device) < count[:, None]


def draw_delays(num_draws: int, max_delay: int) -> torch.Tensor:
    """Draw a delay for each of the chunks to be learned, (num_draws,), uniform in 0 .. max_delay."""
    return torch.randint(0, max_delay + 1, (num_draws,))


def count_learned_actions(action_mask: torch.Tensor, delay: torch.Tensor | None = None) -> torch.Tensor:
    """How many action values of each example the flow loss is over, (B,): the mean over its noise draws.

    Args:
        action_mask: (B, H, D) bool, True where a value is real.
        delay: (N·B,), how many actions at the beginning are given in each draw, draw 0 of every example first.
    """
    if delay is None:
        return action_mask.sum((1, 2))
    batch_size, chunk_size, _ = action_mask.shape
    is_learned = ~first_steps(delay, chunk_size).unflatten(0, (-1, batch_size))  # (N, B, H)
    return (action_mask.sum(2) * is_learned.float().mean(0)).sum(1)


# ----------------------------------------------------------------------------------------------------------- checks
def check_method(config: KIVLAConfig, method: str) -> None:
    """Refuse a method that is none, or that this policy was not trained for.

    Raises:
        ValueError: naming it.
    """
    if method not in METHODS:
        raise ValueError(f"The methods of real-time chunking are {' and '.join(map(repr, METHODS))}, got {method!r}.")
    if method == "trained" and config.rtc_max_delay == 0:
        raise ValueError(
            "This policy was not trained with delays (rtc_max_delay = 0), so it cannot go on from a given beginning. "
            'Use the method "guidance", which needs no training; or train it: kivla train --policy ... '
            "--rtc_max_delay N."
        )


def check_trained_delay(config: KIVLAConfig, delay: int) -> None:
    """Refuse a delay that is longer than those of the training.

    Raises:
        ValueError: naming both.
    """
    if delay > config.rtc_max_delay:
        raise ValueError(
            f"A delay of {delay} steps, but this policy was trained with delays of up to {config.rtc_max_delay} "
            '(rtc_max_delay). Make it faster (fewer num_steps, compile_expert), use the method "guidance", or train '
            "it with longer delays: kivla train --policy ... --rtc_max_delay N."
        )


def check_guidance_weight(weight: float) -> None:
    """Refuse a weight that is negative or no number.

    Raises:
        ValueError: naming it.
    """
    if not isinstance(weight, numbers.Real) or not 0 <= weight < math.inf:
        raise ValueError(f"max_guidance_weight must be a number that is not negative, got {weight!r}.")


def check_horizon(config: KIVLAConfig, execution_horizon: int, delay: int = 0) -> None:
    """Refuse a horizon with which the steps that are held, and those that are free, are more than a chunk has.

    Raises:
        ValueError: naming the numbers.
    """
    if not 0 <= whole_number("execution_horizon", execution_horizon) <= config.chunk_size - delay:
        raise ValueError(
            f"execution_horizon = {execution_horizon} with a delay of {delay}: a chunk has {config.chunk_size} "
            "actions, of which the first `delay` are held and the last `execution_horizon` are free. Use one between 0 "
            f"and {config.chunk_size - delay}, or leave it out."
        )


def whole_number(name: str, value) -> int:
    """Refuse anything but a whole number.

    Raises:
        ValueError: naming it.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}.") from None


def _whole_numbers(name: str, values: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Refuse anything but a whole number from 0 on for each example; return them on the CPU, where they are checked."""
    if values.shape != (batch_size,) or values.is_floating_point() or (values < 0).any():
        raise ValueError(
            f"`{name}` must have a whole number of steps, not negative, for each of {batch_size} examples; got "
            f"{values.tolist()}."
        )
    return values.cpu()


__all__ = ["RealTimeChunking", "count_learned_actions"]

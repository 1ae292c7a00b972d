"""Muon for the weight matrices inside a model, AdamW for everything else, as one optimiser."""

from collections import defaultdict
from collections.abc import Mapping

import torch

from .parts import split_groups

MOMENTUM = 0.95
# Of the quintic iteration that brings singular values near 1 (Jordan et al. 2024, kellerjordan.github.io/posts/muon)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Find the nearest matrices with singular values about 1, of (B, m, n) at once, in their own precision."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT).mT
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (B, m, m)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum, of AdamW's size: `torch.optim.Muon` with `match_rms_adamw`.

    That one goes through the matrices one by one and in bfloat16, which takes a small model on a CPU a third of its
    step. Here those of one shape go together, in float32.

    Args:
        params: matrices (m, n).
        lr: learning rate.
        weight_decay: AdamW's: every step takes `lr * weight_decay` of a weight away.
    """

    def __init__(self, params, lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                directions = orthogonalize(torch.stack([self._with_momentum(p) for p in parameters]).float())
                size = 0.2 * max(shape) ** 0.5  # root mean square of AdamW's updates
                for parameter, direction in zip(parameters, directions, strict=True):
                    if group["weight_decay"]:
                        parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction.to(parameter.dtype), alpha=-group["lr"] * size)
        return loss

    def _with_momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        """Nesterov's: the gradient, and what is remembered of those before it."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(state["momentum_buffer"], MOMENTUM)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for matrices, and AdamW for embeddings and vectors.

    Small models learn several times faster with it than with AdamW alone. Its updates have the size of AdamW's, so
    that one learning rate serves both. It goes to a `Trainer` as `optimizers=(optimizer, None)`.

    Args:
        named_parameters: `model.named_parameters()`. Those that need no gradient are left out.
        lr: learning rate.
        betas, eps: AdamW's.
        weight_decay: of both, at the learning rate; vectors (norms, biases) are not decayed.
    """

    def __init__(
        self,
        named_parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        matrices, others = [], []
        for name, parameter in named_parameters:
            if parameter.requires_grad:
                (matrices if parameter.ndim == 2 and not _is_embedding(name) else others).append(parameter)
        self.muon = Muon([{"params": matrices}], lr, weight_decay)  # perhaps none
        if weight_decay:
            decayed = [{"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay}]
            others = [group for group in (*decayed, {"params": [p for p in others if p.ndim < 2]}) if group["params"]]
        self.adamw = torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=betas, eps=eps)
        super().__init__(self.muon.param_groups + self.adamw.param_groups, {})
        self._share_groups()

    def split_groups(self, parts: Mapping[torch.nn.Parameter, str], rates: dict[str, float]) -> None:
        """See `parts.split_groups`."""
        for optimizer in (self.muon, self.adamw):
            optimizer.param_groups[:] = split_groups(optimizer.param_groups, parts, rates)
        self._share_groups()

    def _share_groups(self):
        """The two read what a scheduler writes into our groups: they are the same dicts."""
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.muon.step(closure)
        self.adamw.step()
        return loss

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._share_groups()


def _is_embedding(name: str) -> bool:
    return "embed" in name or "lm_head" in name


__all__ = ["MuonWithAdamW"]

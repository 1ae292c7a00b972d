"""Muon for the weight matrices inside a model, AdamW for everything else, as one optimiser."""

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` takes matrices only, and embeddings are none in its sense; they and all vectors go to AdamW.

    Small models learn several times faster with it than with AdamW alone. Its updates have the size of AdamW's
    (`match_rms_adamw`), so that one rate serves both. It goes to a `Trainer` as `optimizers=(optimizer, None)`.

    Args:
        named_parameters: `model.named_parameters()`. Those that need no gradient are left out.
        lr: learning rate.
        weight_decay: decoupled, of the matrices alone.
        betas: AdamW's.
    """

    def __init__(self, named_parameters, lr: float = 1e-3, weight_decay: float = 0.0, betas=(0.9, 0.99)):
        matrices, others = [], []
        for name, parameter in named_parameters:
            if parameter.requires_grad:
                (matrices if parameter.ndim == 2 and not _is_embedding(name) else others).append(parameter)
        self.muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=betas)
        super().__init__(self.muon.param_groups + self.adamw.param_groups, {})
        self._share_groups()

    def _share_groups(self):
        """The two read what a scheduler writes into our groups: they are the same dicts."""
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
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

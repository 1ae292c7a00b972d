"""What must never reach a robot: actions that are not finite, and action tokens that are no actions."""

import numpy as np
import torch
from transformers import LogitsProcessor

# Of the values of a chunk: where more lie outside the range of the data, somebody should know.
LARGE_CLIPPED_SHARE = 0.1


class NonFiniteActionsError(FloatingPointError):
    """The policy computed NaN or infinity.

    Attributes:
        observations: indices in the batch.
    """

    def __init__(self, observations: list[int], batch_size: int):
        self.observations = observations
        which = "" if batch_size == 1 else f" for the observations {observations} of the batch (of {batch_size})"
        super().__init__(
            f"The policy's actions are not all finite{which}: they are not sent to a robot. Did its training diverge, "
            "or are its weights damaged?"
        )


class UndecodableActionsError(ValueError):
    """The policy's action tokens do not stand for actions."""

    def __init__(self, failure):
        super().__init__(f"The policy's action tokens do not decode: {failure}. Let it act by flow (acts_by).")


def check_finite(chunks) -> None:
    """Refuse actions that are not all finite.

    Args:
        chunks: (B, ...) array or tensor, one entry for each observation.

    Raises:
        NonFiniteActionsError: naming the observations.
    """
    is_finite = torch.isfinite(chunks) if torch.is_tensor(chunks) else np.isfinite(chunks)
    if not is_finite.all():
        bad = [i for i, row in enumerate(is_finite) if not row.all()]
        raise NonFiniteActionsError(bad, len(chunks))


class NaNWatch(LogitsProcessor):
    """Remembers whether scores were NaN, and changes none: `generate` would go on with tokens that mean nothing.

    The answer is asked for at the end, so that a device need not be waited for at every token.
    """

    def __init__(self):
        self._is_nan = None  # (B,) bool

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        is_nan = scores.isnan().any(-1)
        self._is_nan = is_nan if self._is_nan is None else self._is_nan | is_nan
        return scores

    def check(self) -> None:
        """Refuse what was generated if it came from NaN.

        Raises:
            NonFiniteActionsError: some scores were NaN.
        """
        if self._is_nan is not None and self._is_nan.any():
            raise NonFiniteActionsError(self._is_nan.nonzero().flatten().tolist(), len(self._is_nan))


def actions_of(result: dict) -> np.ndarray:
    """The actions (H, action_dim), in robot units, of one result of `pipeline("action-prediction")`.

    Raises:
        UndecodableActionsError: there are none, because the action tokens do not decode.
        NonFiniteActionsError: a value is NaN or infinite.
    """
    if result["actions"] is None:
        raise UndecodableActionsError(result["failure"])
    check_finite(result["actions"][None])
    return result["actions"]


__all__ = [
    "LARGE_CLIPPED_SHARE",
    "NaNWatch",
    "NonFiniteActionsError",
    "UndecodableActionsError",
    "actions_of",
    "check_finite",
]

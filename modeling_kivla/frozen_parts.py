"""Keep what is not trained as it is: no dropout in it, and the statistics of its norms do not move."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def set_frozen_to_eval(part: nn.Module, is_inside: bool = False) -> None:
    """Put a part none of whose parameters is trained into eval mode; of a part that is trained in part, what is inside.

    Layers that are checkpointed keep their mode (not what is in them) if something else in the part is trained: its
    gradient may pass through them, and checkpointing goes by the mode.
    """
    parameters = list(part.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        for child in part.children():
            set_frozen_to_eval(child, is_inside=True)
    elif parameters:
        layers = [m for m in part.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
        part.eval()
        for layer in layers if is_inside else ():
            layer.training = True

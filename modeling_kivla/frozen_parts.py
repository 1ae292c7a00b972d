"""What is not trained stays as it is, dropout and norms with statistics of their own included."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def rest(part: nn.Module, is_inside: bool = False) -> None:
    """Put into eval mode what has parameters of which none is trained: the part as a whole, or what is inside it.

    Layers that are checkpointed keep their mode (not what is in them) if something else in the part is trained: its
    gradient may pass through them, and checkpointing goes by the mode.
    """
    parameters = list(part.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        for child in part.children():
            rest(child, is_inside=True)
    elif parameters:
        layers = [m for m in part.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
        part.eval()
        for layer in layers if is_inside else ():
            layer.training = True

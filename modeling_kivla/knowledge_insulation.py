"""Knowledge insulation: the one place where the action expert's gradient is kept from the vision-language model."""

import torch


class _ScaleGradient(torch.autograd.Function):
    """Identity whose backward multiplies by a constant. `x * s + x.detach() * (1 - s)` would change low bits of x."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.scale, None


def insulate(x: torch.Tensor, gradient_scale: float) -> torch.Tensor:
    r"""What the action expert may read of the backbone: the same values, with another gradient.

    The paper (Driess et al. 2025, arXiv 2505.23705, section 5) puts a stop-gradient `sg` on the backbone's keys and
    values where the query is an action token, with one softmax over backbone and action keys:

        P = softmax([Q_b K_bᵀ, 0 ; Q_a sg(K_b)ᵀ, Q_a K_aᵀ] + A),   E_a = P_ab sg(V_b) + P_aa V_a

    The gradient contract, for every key and value that the expert reads:

    * `gradient_scale` = 0: the flow loss gives **no** gradient (`None`, not zero) to any backbone parameter, and
      needs no backbone graph at all;
    * `gradient_scale` = s in (0, 1]: backbone parameters get s times the gradient of joint training; 1 *is* joint
      training;
    * the backbone's own attention never passes through here, so the gradient of the token loss is untouched;
    * values are the same, bit for bit, whatever the scale: insulation exists only in backward.

    Args:
        x: keys or values of one backbone layer, (B, num_key_value_heads, S, D).
        gradient_scale: `KIVLAConfig.backbone_gradient_scale`, in [0, 1].
    """
    if gradient_scale == 0.0:
        return x.detach()
    if gradient_scale == 1.0:
        return x
    return _ScaleGradient.apply(x, gradient_scale)

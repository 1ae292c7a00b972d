"""π0 and π0.5 written down from their published formulas, in plain torch, on weights under openpi's names.

Nothing of it is shared with the package: no class, no name rule, no cache. Each Euler step runs image tower, VLM and
action expert as one joint sequence, as openpi does in training (arXiv 2410.24164, 2504.16054).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

HEADS, VISION_HEADS = 8, 16  # of all variants of openpi
EPS = 1e-6
VLM, EXPERT = "paligemma_with_expert.paligemma.", "paligemma_with_expert.gemma_expert."
VISION = VLM + "model.vision_tower.vision_model."


@dataclass(frozen=True)
class Size:
    """Sizes of a checkpoint; the defaults are tiny. `patches` is the number of image tokens."""

    vocab: int = 2048
    hidden: int = 32
    mlp: int = 64
    layers: int = 3
    head_dim: int = 4
    vision_hidden: int = 32
    vision_mlp: int = 40
    vision_layers: int = 2
    patch: int = 4
    patches: int = 4
    expert: int = 16
    expert_mlp: int = 48
    dim: int = 5

    @property
    def image(self) -> int:
        return math.isqrt(self.patches) * self.patch


TINY = Size()
PUBLISHED = Size(257152, 2048, 16384, 18, 256, 1152, 4304, 27, 14, 256, 1024, 4096, 32)


def shapes(variant: str, size: Size = TINY) -> dict[str, tuple[int, ...]]:
    """Every key of an openpi checkpoint: "pi0" or "pi05"."""
    found = {}

    def linear(name: str, inputs: int, outputs: int, bias: bool = True):
        found[f"{name}.weight"] = (outputs, inputs)
        if bias:
            found[f"{name}.bias"] = (outputs,)

    def norm(name: str, width: int):
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    def decoder(prefix: str, width: int, mlp: int, adaptive: bool):
        def rms(name: str):
            if adaptive:
                linear(f"{name}.dense", width, 3 * width)
            else:
                found[f"{name}.weight"] = (width,)

        for i in range(size.layers):
            layer = f"{prefix}layers.{i}."
            linear(layer + "self_attn.q_proj", width, HEADS * size.head_dim, bias=False)
            linear(layer + "self_attn.k_proj", width, size.head_dim, bias=False)
            linear(layer + "self_attn.v_proj", width, size.head_dim, bias=False)
            linear(layer + "self_attn.o_proj", HEADS * size.head_dim, width, bias=False)
            linear(layer + "mlp.gate_proj", width, mlp, bias=False)
            linear(layer + "mlp.up_proj", width, mlp, bias=False)
            linear(layer + "mlp.down_proj", mlp, width, bias=False)
            rms(layer + "input_layernorm")
            rms(layer + "post_attention_layernorm")
        rms(prefix + "norm")

    found[VISION + "embeddings.patch_embedding.weight"] = (size.vision_hidden, 3, size.patch, size.patch)
    found[VISION + "embeddings.patch_embedding.bias"] = (size.vision_hidden,)
    found[VISION + "embeddings.position_embedding.weight"] = (size.patches, size.vision_hidden)
    for i in range(size.vision_layers):
        layer = f"{VISION}encoder.layers.{i}."
        norm(layer + "layer_norm1", size.vision_hidden)
        norm(layer + "layer_norm2", size.vision_hidden)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(layer + "self_attn." + part, size.vision_hidden, size.vision_hidden)
        linear(layer + "mlp.fc1", size.vision_hidden, size.vision_mlp)
        linear(layer + "mlp.fc2", size.vision_mlp, size.vision_hidden)
    norm(VISION + "post_layernorm", size.vision_hidden)
    linear(VLM + "model.multi_modal_projector.linear", size.vision_hidden, size.hidden)
    found[VLM + "lm_head.weight"] = (size.vocab, size.hidden)
    decoder(VLM + "model.language_model.", size.hidden, size.mlp, adaptive=False)
    decoder(EXPERT + "model.", size.expert, size.expert_mlp, adaptive=variant == "pi05")
    found[EXPERT + "lm_head.weight"] = (size.vocab, size.expert)
    linear("action_in_proj", size.dim, size.expert)
    linear("action_out_proj", size.expert, size.dim)
    if variant == "pi05":
        linear("time_mlp_in", size.expert, size.expert)
        linear("time_mlp_out", size.expert, size.expert)
    else:
        linear("state_proj", size.dim, size.expert)
        linear("action_time_mlp_in", 2 * size.expert, size.expert)
        linear("action_time_mlp_out", size.expert, size.expert)
    return found


def random_weights(variant: str, size: Size = TINY) -> dict[str, torch.Tensor]:
    """Weights with which every part of the model matters."""
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        spread = 0.3 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
        return torch.randn(shape, generator=generator) * spread

    return {name: draw(name, shape) for name, shape in shapes(variant, size).items()}


def sample_actions(
    weights: dict[str, torch.Tensor],
    images: torch.Tensor,  # (B, cameras, 3, S, S) in [-1, 1]; -1 where a camera is missing
    image_mask: torch.Tensor,  # (B, cameras) bool
    tokens: torch.Tensor,  # (B, T), padded on the right
    token_mask: torch.Tensor,  # (B, T) bool
    noise: torch.Tensor,  # (B, H, D)
    state: torch.Tensor | None = None,  # (B, D), π0 only
    num_steps: int = 10,
) -> torch.Tensor:
    """Actions (B, H, D): Euler from t = 1 (noise) to t = 0."""
    batch, cameras = image_mask.shape
    seen = image_tokens(weights, images.flatten(0, 1)).unflatten(0, (batch, cameras))  # (B, cameras, patches, hidden)
    table = weights[VLM + "lm_head.weight"]  # tied
    words = table[tokens] * math.sqrt(table.shape[1])
    prefix = torch.cat([seen.flatten(1, 2), words], dim=1)
    prefix_mask = torch.cat([image_mask.repeat_interleave(seen.shape[2], dim=1), token_mask], dim=1)
    x, time, dt = noise, 1.0, -1.0 / num_steps
    while time >= -dt / 2:
        t = torch.full((batch,), time, dtype=torch.float32)
        x = x + dt * velocity(weights, prefix, prefix_mask, x, t, state)
        time += dt
    return x


def image_tokens(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """SigLIP and the projector: (N, 3, S, S) -> (N, patches, hidden of the language model). No scaling."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], EPS)

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (VISION_HEADS, -1)).transpose(1, 2)

    kernel = weights[VISION + "embeddings.patch_embedding.weight"]
    x = F.conv2d(images, kernel, weights[VISION + "embeddings.patch_embedding.bias"], stride=kernel.shape[-1])
    x = x.flatten(2).transpose(1, 2) + weights[VISION + "embeddings.position_embedding.weight"]
    for i in range(depth(weights, VISION + "encoder.layers.")):
        layer = f"{VISION}encoder.layers.{i}."
        y = norm(layer + "layer_norm1", x)
        q, k, v = (split(linear(f"{layer}self_attn.{part}_proj", y)) for part in "qkv")
        y = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + linear(layer + "self_attn.out_proj", y.transpose(1, 2).flatten(2))
        y = linear(layer + "mlp.fc1", norm(layer + "layer_norm2", x))
        x = x + linear(layer + "mlp.fc2", F.gelu(y, approximate="tanh"))
    return linear(VLM + "model.multi_modal_projector.linear", norm(VISION + "post_layernorm", x))


def time_embedding(t: torch.Tensor, size: int) -> torch.Tensor:
    """Sines, then cosines, of periods from 0.004 to 4; (B,) -> (B, size)."""
    fraction = torch.linspace(0, 1, size // 2, dtype=torch.float64)
    angle = t.double()[:, None] * 2 * math.pi / (4e-3 * (4.0 / 4e-3) ** fraction)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(t.dtype)


def velocity(
    weights: dict[str, torch.Tensor],
    prefix: torch.Tensor,  # (B, P, hidden)
    prefix_mask: torch.Tensor,  # (B, P) bool
    actions: torch.Tensor,  # (B, H, D), noisy
    t: torch.Tensor,  # (B,)
    state: torch.Tensor | None,
) -> torch.Tensor:
    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def rms(name: str, x: torch.Tensor, condition: torch.Tensor | None):
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
        if condition is None:
            return x * (1 + weights[f"{name}.weight"]), 1.0
        scale, shift, gate = linear(f"{name}.dense", condition)[:, None].chunk(3, dim=-1)
        return x * (1 + scale) + shift, gate

    # Suffix: what the expert reads of its own. Blocks see what comes before them: [prefix], [state], [actions].
    horizon = actions.shape[1]
    suffix = linear("action_in_proj", actions)
    embedding = time_embedding(t, suffix.shape[-1])
    condition, blocks = None, [1] + [0] * (horizon - 1)
    if "time_mlp_in.weight" in weights:
        condition = F.silu(linear("time_mlp_out", F.silu(linear("time_mlp_in", embedding))))
    else:
        joined = torch.cat([suffix, embedding[:, None].expand_as(suffix)], dim=-1)
        suffix = linear("action_time_mlp_out", F.silu(linear("action_time_mlp_in", joined)))
        suffix = torch.cat([linear("state_proj", state)[:, None], suffix], dim=1)
        blocks = [1, *blocks]
    length = prefix.shape[1]
    real = F.pad(prefix_mask, (0, suffix.shape[1]), value=True)
    block = torch.tensor([0] * length + blocks).cumsum(0)
    mask = (block[None, :] <= block[:, None]) & real[:, None, :] & real[:, :, None]  # (B, S, S): query, key
    bias = torch.where(mask, 0.0, -2.3819763e38)[:, None]
    positions = real.long().cumsum(-1) - 1

    streams = [(VLM + "model.language_model.", prefix, None), (EXPERT + "model.", suffix, condition)]
    for i in range(depth(weights, streams[0][0] + "layers.")):
        normed = [rms(f"{name}layers.{i}.input_layernorm", x, c) for name, x, c in streams]
        q, k, v = (
            torch.cat(
                [
                    linear(f"{s[0]}layers.{i}.self_attn.{part}_proj", y)
                    for s, (y, _) in zip(streams, normed, strict=True)
                ],
                dim=1,
            )
            for part in "qkv"
        )
        q = rotate(q.unflatten(-1, (HEADS, -1)).transpose(1, 2), positions)
        k, v = rotate(k[:, None], positions), v[:, None]  # one key/value head
        y = ((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
        after = []
        for (name, x, c), (_, gate), part in zip(streams, normed, y.tensor_split([length], dim=1), strict=True):
            layer = f"{name}layers.{i}."
            x = x + gate * linear(layer + "self_attn.o_proj", part)
            z, gate = rms(layer + "post_attention_layernorm", x, c)
            z = F.gelu(linear(layer + "mlp.gate_proj", z), approximate="tanh") * linear(layer + "mlp.up_proj", z)
            after.append((name, x + gate * linear(layer + "mlp.down_proj", z), c))
        streams = after
    x, _ = rms(EXPERT + "model.norm", streams[1][1], condition)
    return linear("action_out_proj", x[:, -horizon:])


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of (B, heads, S, head_dim): the first half of a head turns with the second."""
    half = x.shape[-1] // 2
    angle = positions[:, None, :, None] * 10000.0 ** (-torch.arange(half) / half)
    a, b = x.split(half, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def depth(weights: dict[str, torch.Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))

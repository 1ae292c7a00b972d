"""The action expert: a compact transformer over noisy action tokens that reads the backbone's keys and values.

One expert layer for each backbone layer that is read, with that layer's key/value heads, head sizes and rotary
embedding. Its own class rather than a shrunk copy of the backbone's, which would bring the backbone's sliding windows,
mixtures of experts and caches along. Parameter names are those of Gemma (and so of the π0 family's experts).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_dtype import attention_dtype, without_autocast
from .backbone_attention import apply_rope
from .configuration_kivla import KIVLAConfig, KIVLAExpertConfig
from .flow_matching import time_embedding


@dataclass
class Prefix:
    """What the expert reads of the backbone, for each of B examples.

    Attributes:
        key_values: for each expert layer, K (B, num_key_value_heads, P, key_dim) and V (..., value_dim).
        mask: (B, P) bool, True where the expert may look; None if it may look everywhere.
        next_position: (B,), the position after the last one that the expert may look at.
        inv_freq: rotary frequencies (R,) by the buffer's name in the text decoder.
    """

    key_values: list[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor | None
    next_position: torch.Tensor
    inv_freq: dict[str, torch.Tensor]


@dataclass
class SuffixLayout:
    """Where the suffix tokens are and what they may see, for one layer: constant over denoising steps.

    Attributes:
        rotary: cos and sin, each (M, T, 1, R); None if the layer has no rotary embedding.
        mask: (M, 1, T, P + T), or (1, 1, T, P + T), 0 where a token may look and -inf where not; None if everything is
            visible.
        prefix_length: P.
        given: (M, T, 1) bool, True where a token is an action that is given, at flow time 0; None if none is.
    """

    rotary: tuple[torch.Tensor, torch.Tensor] | None
    mask: torch.Tensor | None
    prefix_length: int
    given: torch.Tensor | None


# What an adaptive norm makes of the flow times: `1 + scale`, `shift` and `gate`, each (M, K, W)
NormModulation = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class TimeCondition:
    """The flow times as the expert uses them; M rows, or one row shared by the batch.

    K is 1, where all tokens of a row have one time; or 2: that of the noisy actions, and 0, that of the given ones
    (`SuffixLayout.given`). So each of them is made once, however many tokens have it.

    Attributes:
        embedding: (M, K, W), what "concat" joins to the actions.
        condition: (M, K, W), what the norms are modulated by ("adarms"); otherwise None.
        modulations: of every norm, two for each layer and the last one (None each without "adarms"), where they were
            made ahead; None where each layer makes its own when it runs.
    """

    embedding: torch.Tensor
    condition: torch.Tensor | None
    modulations: list[NormModulation | None] | None

    def rows(self) -> list["TimeCondition"]:
        """One condition for each of the M flow times; its modulations must have been made ahead."""
        parts = [None if m is None else list(zip(*(x.split(1) for x in m), strict=True)) for m in self.modulations]
        return [
            TimeCondition(
                self.embedding[i : i + 1],
                None if self.condition is None else self.condition[i : i + 1],
                [None if part is None else part[i] for part in parts],
            )
            for i in range(len(self.embedding))
        ]


def of_each_token(values: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    """What each token has of values (M, K, W) of the flow times: (M, 1, W) for all of them, or (M, T, W)."""
    return values if given is None else torch.where(given, values[:, 1:], values[:, :1])


def sinusoidal_positions(length: int, width: int, device: torch.device) -> torch.Tensor:
    """Sines and cosines (length, width) of the places 0, 1, ...: periods of 2π to 10,000 · 2π."""
    frequencies = 10_000.0 ** -torch.linspace(0, 1, width // 2, device=device)
    angles = torch.arange(length, device=device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Modulation(nn.Linear):
    """Scale, shift and gate of a norm from the flow time; zero at first (`KIVLAPreTrainedModel._init_weights`)."""


class ExpertRMSNorm(nn.Module):
    """RMSNorm in float32 at least; Gemma's `(1 + weight)`, or adaptive with scale, shift and gate from the flow time.

    The adaptive form is openpi's adaRMS: `x̂·(1 + scale) + shift`, and the caller adds `gate · sublayer` to the
    residual. It starts as the identity (all three zero).
    """

    def __init__(self, config: KIVLAExpertConfig):
        super().__init__()
        self.eps = config.rms_norm_eps
        if config.time_conditioning == "adarms":
            self.dense = Modulation(config.hidden_size, 3 * config.hidden_size)
        else:
            self.dense = None
            self.weight = nn.Parameter(torch.zeros(config.hidden_size))

    def modulation(self, condition: torch.Tensor | None) -> NormModulation | None:
        """What this norm makes of the condition (M, K, W); None if it is not adaptive."""
        if self.dense is None:
            return None
        scale, shift, gate = self.dense(condition).chunk(3, dim=-1)
        return 1.0 + at_least_float32(scale), at_least_float32(shift), gate

    def forward(
        self, x: torch.Tensor, modulation: NormModulation | None, given: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The normed `x` (M, T, W), and the gate of what is computed from it; None for no gate."""
        normed = F.rms_norm(at_least_float32(x), x.shape[-1:], eps=self.eps)
        if modulation is None:
            return (normed * (1.0 + at_least_float32(self.weight))).to(x.dtype), None
        scale, shift, gate = (of_each_token(part, given) for part in modulation)
        return torch.addcmul(shift, normed, scale).to(x.dtype), gate.to(x.dtype)


def gated_residual(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """The residual stream `x` with a sublayer's output `y` added, through its gate if it has one."""
    return x + y if gate is None else x + gate * y


class ExpertAttention(nn.Module):
    """Queries of the action tokens over one joint softmax of [prefix keys ; own keys]."""

    def __init__(self, config: KIVLAExpertConfig, kv_layer: dict):
        super().__init__()
        self.num_heads = config.num_attention_heads or kv_layer["num_attention_heads"]
        self.num_key_value_heads = kv_layer["num_key_value_heads"]
        self.key_dim, self.value_dim = kv_layer["key_dim"], kv_layer["value_dim"]
        self.rope, self.rope_start = kv_layer["rope"], kv_layer["rope_start"]
        self.inv_freq, self.rope_order = kv_layer["inv_freq"], kv_layer["rope_order"]
        width = config.hidden_size
        self.q_proj = nn.Linear(width, self.num_heads * self.key_dim, bias=False)
        self.k_proj = nn.Linear(width, self.num_key_value_heads * self.key_dim, bias=False)
        self.v_proj = nn.Linear(width, self.num_key_value_heads * self.value_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.value_dim, width, bias=False)

    def rotary(self, tables: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Cosines and sines of this layer, from those of all frequency buffers; None without rotary embedding."""
        if self.rope is None:
            return None
        cos, sin = tables[self.inv_freq]
        return (cos, sin) if self.rope_order is None else (cos[..., self.rope_order], sin[..., self.rope_order])

    def forward(
        self, x: torch.Tensor, prefix_key: torch.Tensor, prefix_value: torch.Tensor, layout: SuffixLayout
    ) -> torch.Tensor:
        # Queries and keys are made and rotated together: one call for both.
        batch, length, _ = x.shape
        heads = self.num_heads, self.num_key_value_heads
        query_key = torch.cat([self.q_proj(x), self.k_proj(x)], dim=-1)
        # Heads come after tokens in memory, here and so in what attention returns: `o_proj` needs no copy of it.
        query_key = query_key.view(batch, length, -1, self.key_dim)  # (M, T, Hq + Hkv, Dk)
        value = self.v_proj(x).view(batch, length, -1, self.value_dim).transpose(1, 2)  # (M, Hkv, T, Dv)
        if layout.rotary is not None:
            query_key = apply_rope(query_key, *layout.rotary, self.rope, self.rope_start)
        # One softmax over the backbone's keys and the expert's own.
        query, key = query_key.transpose(1, 2).split(heads, dim=1)
        dtype = attention_dtype(x.device, query.dtype)
        with without_autocast(x.device):
            attended = F.scaled_dot_product_attention(
                query.to(dtype),
                join(prefix_key, key.to(dtype), layout.prefix_length),  # (M, Hkv, P + T, Dk)
                join(prefix_value, value.to(dtype), layout.prefix_length),
                attn_mask=layout.mask,
                enable_gqa=self.num_heads != self.num_key_value_heads,
            )
        return self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1).to(query.dtype))


def join(prefix: torch.Tensor, own: torch.Tensor, prefix_length: int) -> torch.Tensor:
    """Join keys or values of the prefix (B, Hkv, P, D) and of the suffix (N·B, Hkv, T, D): (N·B, Hkv, P + T, D).

    A prefix that has room for the suffix (`ActionExpert.with_room`) is written into.
    """
    if prefix.shape[2] > prefix_length:
        prefix[:, :, prefix_length:] = own
        return prefix
    prefix = prefix.to(own)  # device and dtype
    if len(own) == len(prefix):
        return torch.cat([prefix, own], dim=2)
    own = own.unflatten(0, (-1, len(prefix)))  # (N, B, ...), draw 0 of every example first
    return torch.cat([prefix.expand(len(own), *prefix.shape), own], dim=3).flatten(0, 1)


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module computes; accelerate, which may keep its weights elsewhere, says so in a hook."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):  # several come as one that lists them
        if one is not None and one.execution_device is not None:
            return torch.device(one.execution_device)
    return module.weight.device


class ExpertMLP(nn.Module):
    """Gated MLP, as in Gemma: `down(act(gate(x)) · up(x))`."""

    def __init__(self, config: KIVLAExpertConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class ExpertLayer(GradientCheckpointingLayer):
    """One layer of the expert: attention that also reads the backbone, then the MLP."""

    def __init__(self, config: KIVLAExpertConfig, kv_layer: dict):
        super().__init__()
        self.self_attn = ExpertAttention(config, kv_layer)
        self.mlp = ExpertMLP(config)
        self.input_layernorm = ExpertRMSNorm(config)
        self.post_attention_layernorm = ExpertRMSNorm(config)

    def modulations(self, condition: torch.Tensor | None) -> list[NormModulation | None]:
        """What the norms in front of attention and of the MLP make of the condition (M, K, W)."""
        return [norm.modulation(condition) for norm in (self.input_layernorm, self.post_attention_layernorm)]

    def forward(
        self,
        x: torch.Tensor,  # (M, T, W)
        prefix_key: torch.Tensor,
        prefix_value: torch.Tensor,
        condition: torch.Tensor | None,
        modulations: list[NormModulation | None] | None,
        layout: SuffixLayout,
    ) -> torch.Tensor:
        before_attention, before_mlp = self.modulations(condition) if modulations is None else modulations
        normed, gate = self.input_layernorm(x, before_attention, layout.given)
        x = gated_residual(x, self.self_attn(normed, prefix_key, prefix_value, layout), gate)
        normed, gate = self.post_attention_layernorm(x, before_mlp, layout.given)
        return gated_residual(x, self.mlp(normed), gate)


class ActionExpert(nn.Module):
    """Predicts the velocity of a noisy action chunk from the chunk, the flow time and the backbone's prefix."""

    def __init__(self, config: KIVLAConfig):
        super().__init__()
        self.config = config.expert_config
        width = self.config.hidden_size
        self.layers = nn.ModuleList(ExpertLayer(self.config, layer) for layer in config.expert_layers)
        self.norm = ExpertRMSNorm(self.config)
        self.action_in_proj = nn.Linear(config.max_action_dim, width)
        self.action_out_proj = nn.Linear(width, config.max_action_dim)
        self.adds_positions = config.action_positions == "sinusoidal"
        self.state_proj = nn.Linear(config.max_state_dim, width) if config.state_encoding == "continuous" else None
        if self.config.time_conditioning == "adarms":
            self.time_mlp_in = nn.Linear(width, width)
            self.time_mlp_out = nn.Linear(width, width)
        else:
            self.action_time_mlp_in = nn.Linear(2 * width, width)
            self.action_time_mlp_out = nn.Linear(width, width)

    @property
    def dtype(self) -> torch.dtype:
        return self.action_in_proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device where actions go in."""
        return device_of(self.action_in_proj)

    def with_room(self, prefix: Prefix, length: int) -> Prefix:
        """A copy whose keys and values end in `length` free places, so that no step of sampling copies the rest.

        Each is where its layer runs, in the type of its attention. What a step writes into these places is gone with
        the next one: where gradients are taken there must be none (`length` 0).
        """
        key_values = []
        for layer, key_value in zip(self.layers, prefix.key_values, strict=True):
            device = device_of(layer.self_attn.q_proj)
            there = (x.to(device, attention_dtype(device, self.dtype)) for x in key_value)
            key_values.append(tuple(F.pad(x, (0, 0, 0, length)) for x in there))
        return replace(prefix, key_values=key_values)

    def time_condition(self, timestep: torch.Tensor, ahead: bool = True, with_given: bool = False) -> TimeCondition:
        """Everything in the network that depends on the flow time (M,) alone.

        Args:
            with_given: also for actions that are given, whose flow time is 0.
            ahead: with the modulations, which sampling uses for every chunk. Otherwise each layer makes its own when it
                runs: training uses them once, and FSDP has a layer's weights at hand only while the layer runs.
        """
        config = self.config
        times = timestep[:, None]  # (M, K)
        if with_given:
            times = torch.cat([times, torch.zeros_like(times)], dim=1)
        embedding = time_embedding(
            times.flatten(),
            config.hidden_size,
            config.min_period,
            config.max_period,
            getattr(torch, config.time_embedding_dtype),
        ).to(self.dtype)
        embedding = embedding.unflatten(0, times.shape)  # (M, K, W)
        condition = None
        if config.time_conditioning == "adarms":
            condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(embedding))))
        modulations = None
        if ahead:
            modulations = [modulation for layer in self.layers for modulation in layer.modulations(condition)]
            modulations.append(self.norm.modulation(condition))
        return TimeCondition(embedding, condition, modulations)

    def suffix_layout(
        self, prefix: Prefix, chunk_size: int, num_draws: int = 1, given: torch.Tensor | None = None
    ) -> list[SuffixLayout]:
        """Positions and masks of the suffix: [state token, if any ; action tokens], right after the visible prefix.

        Positions count on from the last *visible* position, as if action tokens in the backbone's suffix were not
        there, so training and inference agree. Action tokens see each other; the state token does not see them.

        Args:
            given: (M, H) bool, which actions are given; None if none is. The state token has the noisy actions' time.
        """
        has_state = self.state_proj is not None
        length = chunk_size + has_state
        if given is not None:
            given = F.pad(given, (int(has_state), 0))[..., None]  # (M, T, 1)
        prefix_length = prefix.key_values[0][0].shape[2]
        # Angles of all rotary embeddings, and the mask, once for every device that has layers.
        by_device = {}
        for device in {device_of(layer.self_attn.q_proj) for layer in self.layers}:  # nearly always one
            start = prefix.next_position.to(device).repeat(num_draws)
            position = start[:, None] + torch.arange(length, device=device)  # (M, T)
            angles = {
                name: position[:, :, None, None].float() * f.to(device).float() for name, f in prefix.inv_freq.items()
            }
            tables = {name: (a.cos(), a.sin()) for name, a in angles.items()}  # (M, T, 1, R)
            mask = self._mask(prefix, prefix_length, length, num_draws, device)
            by_device[device] = tables, mask, None if given is None else given.to(device)
        # Each layer takes those of its own embedding.
        layout = []
        for layer in self.layers:
            tables, mask, is_given = by_device[device_of(layer.self_attn.q_proj)]
            layout.append(SuffixLayout(layer.self_attn.rotary(tables), mask, prefix_length, is_given))
        return layout

    def _mask(self, prefix: Prefix, prefix_length: int, length: int, num_draws: int, device) -> torch.Tensor | None:
        has_state = self.state_proj is not None
        if prefix.mask is None and not has_state:
            return None
        own = torch.ones(length, length, dtype=torch.bool, device=device)
        if has_state:
            own[0, 1:] = False
        seen = torch.ones(1, prefix_length, dtype=torch.bool, device=device)
        if prefix.mask is not None:
            seen = prefix.mask.to(device).repeat(num_draws, 1)
        visible = torch.cat([seen[:, None].expand(-1, length, -1), own.expand(len(seen), -1, -1)], dim=-1)
        # To be added to the scores: attention would turn truth values into this in every layer of every step.
        mask = torch.zeros(visible.shape, dtype=attention_dtype(device, self.dtype), device=device)
        return mask.masked_fill(~visible, float("-inf"))[:, None]

    def forward(
        self,
        noisy_actions: torch.Tensor,
        time: TimeCondition,
        prefix: Prefix,
        layout: list[SuffixLayout],
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The velocity (M, H, D) of `noisy_actions` (M, H, D), in their type; `state` is (M, max_state_dim)."""
        # Tokens: one for each action, with the flow time mixed in ("concat"), and one for the state in front of them.
        x = self.action_in_proj(noisy_actions.to(self.dtype))  # (M, H, W)
        if self.config.time_conditioning == "concat":
            given = layout[0].given
            given = None if given is None else given[:, -x.shape[1] :].to(x.device)
            embedding = of_each_token(time.embedding, given).expand_as(x)
            joined = torch.cat([x, embedding.to(x.dtype)], dim=-1)
            x = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(joined)))
        if self.adds_positions:
            x = x + sinusoidal_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        if self.state_proj is not None:
            x = torch.cat([self.state_proj(state.to(x.device, self.dtype))[:, None].to(x.device), x], dim=1)
        x = x.to(self.dtype)  # under autocast the projections give bf16; the residual stream stays as its weights are
        # Every layer reads its own keys and values of the backbone.
        for i, (layer, (key, value)) in enumerate(zip(self.layers, prefix.key_values, strict=True)):
            made_ahead = None if time.modulations is None else time.modulations[2 * i : 2 * i + 2]
            x = layer(x, key, value, time.condition, made_ahead, layout[i])
        last = self.norm.modulation(time.condition) if time.modulations is None else time.modulations[-1]
        x, _ = self.norm(x, last, layout[-1].given)
        return self.action_out_proj(x[:, -noisy_actions.shape[1] :]).to(noisy_actions)

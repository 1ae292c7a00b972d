"""What a VLM and its action expert weigh and cost: parameters, keys and values, and the arithmetic of a training step.

All of it follows from the config: models are built on the meta device, and no weight is read.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from ..modeling_kivla.action_expert import ActionExpert, Modulation
from ..modeling_kivla.backbone_attention import find_text_decoder
from .parts import PROJECTOR, part_of, vocabulary_weights

# Products of a training step per product of its forward pass: a matrix has two in its backward pass; attention has
# five for its two, as fused kernels make the scores again (FlashAttention's convention, and torch's flop counter's).
STEP_PER_PRODUCT, STEP_PER_ATTENTION = 3.0, 3.5
# How configs call the number of experts that a token goes to, in mixtures of experts.
_ACTIVE_EXPERTS = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k", "num_activated_experts")
_ALL_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_WIDTHS = range(128, 1024 + 1, 64)  # that are suggested; 1024 is the π0 family's, and a wider expert is nobody's
_LARGEST_STRIDE = 4
_NARROWEST = 4  # an expert narrower than a fourth of the VLM's width skips layers first (π0's has half the width)


@dataclass(frozen=True)
class ExampleShape:
    """How many tokens one training example has.

    Attributes:
        prompt: P, which the expert reads.
        learned: the VLM's tokens after it, which it learns.
        chunk: T, those of the expert in one draw.
        draws: N noise draws.
    """

    prompt: int
    learned: int
    chunk: int
    draws: int


def build_without_memory(config: KIVLAConfig, dtype: str = "float32") -> KIVLAForActionPrediction:
    """Build the policy on the meta device, where parameters have sizes and no memory.

    Args:
        dtype: of the weights, as `from_pretrained` takes it: a name, or "auto" for that of the VLM's config.
    """
    kind = config.vlm_config.dtype if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        return KIVLAForActionPrediction(copy.deepcopy(config)).to(kind)


def part_sizes(model: KIVLAForActionPrediction) -> dict[str, int]:
    """Count the parameters of each part, tied ones once; parts that the policy does not have are left out."""
    vocabulary = {id(weight) for weight in vocabulary_weights(model)}
    decoder = {id(parameter) for parameter in find_text_decoder(model.vlm).parameters()}
    sizes = dict.fromkeys(("vision and sound", "projector", "text layers", "vocabulary", "expert"), 0)
    for name, parameter in model.vlm.named_parameters():
        if id(parameter) in vocabulary:
            part = "vocabulary"
        elif id(parameter) in decoder:
            part = "text layers"
        else:
            part = "projector" if part_of(name) == PROJECTOR else "vision and sound"
        sizes[part] += parameter.numel()
    sizes["expert"] = sum(parameter.numel() for parameter in model.expert.parameters())
    return {part: size for part, size in sizes.items() if size}


def key_value_numbers(config: KIVLAConfig) -> int:
    """Count the numbers that the expert reads of each prompt token: the keys and values of all layers that it reads."""
    return sum(layer["num_key_value_heads"] * (layer["key_dim"] + layer["value_dim"]) for layer in config.expert_layers)


def decoder_products(model: KIVLAForActionPrediction, shape: ExampleShape) -> float:
    """Count the multiplications of the VLM's text decoder in a training step of one example; all of it learns.

    The vision tower is left out: its cost depends on how a family cuts pictures into patches. In a mixture a token
    goes through some of the experts. Attention is counted in full, as kernels without a causal shortcut compute it.
    """
    decoder, text = find_text_decoder(model.vlm), model.config.get_text_config()
    vocabulary = {id(weight) for weight in vocabulary_weights(model)}
    tokens = shape.prompt + shape.learned
    share = _active_share(text)
    matrices = 0.0
    for module in decoder.modules():
        if isinstance(module, nn.Embedding):
            continue  # rows are looked up
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1 and id(parameter) not in vocabulary:
                is_mixture = parameter.ndim == 3 and len(parameter) == _first(text, _ALL_EXPERTS)
                matrices += parameter.numel() * (share if is_mixture else 1.0)
    attention = sum(
        layer["num_attention_heads"] * (layer["key_dim"] + layer["value_dim"]) for layer in model.config.kv_layers
    )
    head = text.vocab_size * text.hidden_size * shape.learned
    return STEP_PER_PRODUCT * (matrices * tokens + head) + STEP_PER_ATTENTION * attention * tokens**2


def expert_products(expert: ActionExpert, shape: ExampleShape) -> float:
    """Count the multiplications of the expert in a training step of one example, all draws together."""
    matrices = of_time = attention = 0
    for name, module in expert.named_modules():
        if isinstance(module, Modulation) or name.startswith("time_mlp"):
            of_time += module.weight.numel()  # once for a draw: its tokens have one flow time
        elif isinstance(module, nn.Linear):
            matrices += module.weight.numel()
    for layer in expert.layers:
        heads = layer.self_attn
        attention += heads.num_heads * (heads.key_dim + heads.value_dim)
    products = matrices * shape.chunk + of_time
    seen = shape.prompt + shape.chunk
    return shape.draws * (STEP_PER_PRODUCT * products + STEP_PER_ATTENTION * attention * shape.chunk * seen)


def expert_shares(model: KIVLAForActionPrediction, shape: ExampleShape) -> tuple[float, float]:
    """Return the expert's size, and its arithmetic in a training step, as shares of the VLM's.

    Of the VLM's size everything counts; of its arithmetic the text decoder alone, so that the true share is smaller.
    """
    sizes = part_sizes(model)
    expert = sizes.pop("expert")
    return expert / sum(sizes.values()), expert_products(model.expert, shape) / decoder_products(model, shape)


@dataclass(frozen=True)
class SuggestedExpert:
    """An expert that keeps to a budget.

    Attributes:
        hidden_size, intermediate_size, layer_stride: of `KIVLAExpertConfig`.
        parameter_share, step_share: of `expert_shares`.
    """

    hidden_size: int
    intermediate_size: int
    layer_stride: int
    parameter_share: float
    step_share: float


def suggest_expert(
    config: KIVLAConfig, shape: ExampleShape, max_parameter_share: float, max_step_share: float
) -> SuggestedExpert | None:
    """Suggest the widest expert within a budget, up to π0's width, at the smallest stride at which it is wide enough.

    Wide enough is a fourth of the VLM's width; where no stride allows that, the widest of all. Its MLP is four times as
    wide as the expert, as in the π0 family.

    Args:
        max_parameter_share, max_step_share: at most so much of `expert_shares`.

    Returns:
        None: even the narrowest expert of the largest stride is beyond the budget.
    """
    model = build_without_memory(config)
    vlm_size = sum(size for part, size in part_sizes(model).items() if part != "expert")
    vlm_products = decoder_products(model, shape)

    def measured(width: int, stride: int) -> SuggestedExpert:
        expert_config = copy.deepcopy(config.expert_config)
        expert_config.hidden_size, expert_config.intermediate_size = width, 4 * width
        expert_config.layer_stride = stride
        candidate = copy.copy(config)
        candidate.expert_config = expert_config
        with torch.device("meta"):
            expert = ActionExpert(candidate)
        size = sum(parameter.numel() for parameter in expert.parameters())
        products = expert_products(expert, shape)
        return SuggestedExpert(width, 4 * width, stride, size / vlm_size, products / vlm_products)

    def fits(one: SuggestedExpert) -> bool:
        return one.parameter_share <= max_parameter_share and one.step_share <= max_step_share

    best = None
    for stride in range(1, min(_LARGEST_STRIDE, len(config.kv_layers)) + 1):
        # Both shares grow with the width: halve the range until the widest that fits is found.
        low, high, widest = 0, len(_WIDTHS), None
        while low < high:
            middle = (low + high) // 2
            one = measured(_WIDTHS[middle], stride)
            low, high, widest = (middle + 1, high, one) if fits(one) else (low, middle, widest)
        if widest is None:
            continue
        if widest.hidden_size * _NARROWEST >= config.get_text_config().hidden_size:
            return widest
        if best is None or widest.hidden_size > best.hidden_size:
            best = widest
    return best


def _first(config: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def _active_share(text: PreTrainedConfig) -> float:
    """The share of a mixture's experts that a token goes through; 1 without a mixture."""
    active, whole = _first(text, _ACTIVE_EXPERTS), _first(text, _ALL_EXPERTS)
    return active / whole if active and whole else 1.0

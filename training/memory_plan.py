"""How much memory a training step needs on each device, by part, worked out from the model's sizes alone.

Weights, gradients and moments are counted. What the forward pass keeps for the backward pass is worked out from the
layers: every linear layer's output is kept by what reads it, a norm keeps what it normalised, attention its queries,
keys, values and output (fused kernels; scores are not kept), the MLP its activation. `python -m
benchmarks.memory_plan` compares with measured steps.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..modeling_kivla import KIVLAForActionPrediction
from ..modeling_kivla.action_expert import ExpertLayer
from ..modeling_kivla.backbone_attention import decoder_layers, find_text_decoder
from .model_size import ExampleShape, key_value_numbers
from .parts import vocabulary_weights

FLOAT, HALF = 4, 2  # bytes
USUAL_PATCH = 14  # pixels, where a VLM's config does not say it as one number
COPY_OF_LORA = "original_module"  # peft trains a copy of what has this in its name


@dataclass(frozen=True)
class StepShape:
    """What one device computes at once.

    Attributes:
        example: tokens of one example.
        batch_size: examples of a micro-batch.
        patches: tokens of the vision tower in one example, of all its pictures.
    """

    example: ExampleShape
    batch_size: int
    patches: int


@dataclass(frozen=True)
class Training:
    """How a step is computed.

    Attributes:
        bf16: mixed precision: float32 weights, layers in bfloat16.
        checkpointing: gradient checkpointing of all repeated layers.
        accumulates: whether gradients of earlier micro-batches wait meanwhile.
        devices: that share out weights, gradients and moments (FSDP2); 1 for one device, and for DDP.
        moments: numbers that the optimiser keeps for each trained one: 2 for AdamW.
    """

    bf16: bool = False
    checkpointing: bool = False
    accumulates: bool = False
    devices: int = 1
    moments: float = 2


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device.

    Attributes:
        weights, gradients, moments: that it holds.
        copies: weights in bfloat16 for the layers, and those that FSDP gathers.
        vision, text, expert: activations that wait for the backward pass.
        recomputed: with checkpointing, the largest layer while its backward pass runs.
        logits: of the learned tokens, with their gradient.
        head: the gradient of the vocabulary's matrix, which exists while activations still wait.
    """

    weights: float
    gradients: float
    moments: float
    copies: float
    vision: float
    text: float
    expert: float
    recomputed: float
    logits: float
    head: float
    accumulates: bool = False

    @property
    def activations(self) -> float:
        return self.vision + self.text + self.expert

    def parts(self) -> dict[str, float]:
        """What there is at one time or another, for people."""
        return {
            "weights": self.weights,
            "copies of them to compute with": self.copies,
            "gradients": self.gradients,
            "moments": self.moments,
            "activations of the vision tower": self.vision,
            "of the text layers": self.text,
            "of the expert": self.expert,
            "of the layer that is computed again": self.recomputed,
            "logits": self.logits,
        }

    @property
    def peak(self) -> float:
        """The most of it at one time: as the backward pass begins, or with all gradients at its end."""
        early = self.gradients if self.accumulates else self.head
        at_first = self.activations + max(self.logits, self.recomputed) + early
        return self.weights + self.moments + self.copies + max(at_first, self.gradients)


def step_shape(model: KIVLAForActionPrediction, batch: Mapping, batch_size: int) -> StepShape:
    """What a device computes in a micro-batch of examples like the largest of `batch`, which a collator made."""
    labels, pictures = batch["labels"], batch.get("pixel_values")
    learned = int((labels != -100).sum(1).max())
    config = model.config
    example = ExampleShape(labels.shape[1] - learned, learned, config.chunk_size, config.num_flow_samples)
    patches = 0.0
    if pictures is not None and pictures.ndim < 4:  # cut into patches by the processor
        patches = pictures.flatten(0, -2).shape[0] / len(labels)
    elif pictures is not None:
        side = getattr(getattr(config.vlm_config, "vision_config", None), "patch_size", USUAL_PATCH)
        side = side if isinstance(side, int) else USUAL_PATCH
        patches = pictures[..., 0, :, :].numel() / side**2 / len(labels)
    return StepShape(example, batch_size, round(patches))


def plan_memory(
    model: KIVLAForActionPrediction,
    shape: StepShape,
    training: Training,
    parameters: Iterable[nn.Parameter] | None = None,
    adapter_size: int = 0,
) -> MemoryPlan:
    """Work out what a training step needs.

    Args:
        model: perhaps without memory (`build_without_memory`); what is trained is what requires a gradient.
        parameters: all of them, where peft has wrapped the model; its own by default.
        adapter_size: parameters of an adapter that the model does not have yet.
    """
    parameters = list(model.parameters() if parameters is None else parameters)
    held = sum(p.numel() for p in parameters) + adapter_size
    trained = sum(p.numel() for p in parameters if p.requires_grad) + adapter_size
    dtype = parameters[0].element_size() if parameters else FLOAT
    narrow = HALF if training.bf16 else dtype  # of what layers compute
    example, rows = shape.example, shape.batch_size
    tokens = rows * (example.prompt + example.learned)
    decoder = find_text_decoder(model.vlm)
    towers = _vision_layers(model, decoder)

    def waiting(layers: list[nn.Module], count: float, kept: list[float]) -> tuple[float, float]:
        """Bytes that layers keep of so many tokens, and that one makes anew in the backward pass."""
        stream = _width(layers[0]) * count if layers else 0
        ends = stream * (2 * dtype + narrow)  # what goes into the first one, and the norm behind the last
        if training.checkpointing:
            return ends + stream * len(layers) * dtype, max(kept, default=0.0)
        return ends + sum(kept), 0.0

    # Text, with keys and values for the expert where layers do not keep them.
    text_layers, towers = decoder_layers(decoder), [layer for layer in towers if _is_trained(layer)]
    text, again = waiting(text_layers, tokens, [tokens * _kept(layer, dtype, narrow) for layer in text_layers])
    if training.checkpointing:
        text += rows * example.prompt * key_value_numbers(model.config) * dtype
    learns_text = adapter_size > 0 or any(p.requires_grad for p in model.vlm.parameters())
    # Vision: nothing is kept of a tower that rests.
    patches = rows * shape.patches
    vision, again_vision = waiting(towers, patches, [patches * _kept(layer, dtype, narrow) for layer in towers])
    # Expert: its own tokens, and in every layer keys and values of the prompt once more for each draw.
    draws = rows * example.draws
    of_experts = []
    for layer in cast(list[ExpertLayer], list(model.expert.layers)):
        heads = layer.self_attn
        joined = heads.num_key_value_heads * (heads.key_dim + heads.value_dim) * narrow
        own = example.chunk * _kept(layer, dtype, narrow, joins=True)
        of_experts.append(draws * (own + joined * (example.prompt + example.chunk)))
    expert, again_expert = waiting(list(model.expert.layers), draws * example.chunk, of_experts)
    if not learns_text:
        text = vision = again = again_vision = 0.0
    if model.config.flow_loss_weight == 0 or not _is_trained(model.expert):
        expert = again_expert = 0.0

    vocabulary = vocabulary_weights(model)
    size = model.get_output_embeddings().weight.numel()
    logits = 2 * rows * example.learned * model.vocab_size * narrow
    head = size * FLOAT if any(p.requires_grad for p in vocabulary) else 0
    if training.bf16:
        head += head / 2  # computed in bfloat16, then cast
    # Autocast keeps copies of what linear layers multiply with. FSDP gathers two layers, and what is in none.
    copies = 0.0
    if training.devices > 1:
        largest = max(_size(layer) for layer in (*text_layers, *model.expert.layers))
        copies = (2 * largest + sum(p.numel() for p in vocabulary)) * narrow
        head += size * FLOAT if head else 0  # whole, before it is shared out
    elif training.bf16:
        copies = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)) * HALF
    share = 1 / training.devices
    return MemoryPlan(
        weights=held * dtype * share,
        gradients=trained * dtype * share,
        moments=trained * dtype * training.moments * share,
        copies=copies,
        vision=vision,
        text=text,
        expert=expert,
        recomputed=max(again, again_vision, again_expert),
        logits=logits if learns_text else 0.0,
        head=head * 1.0,
        accumulates=training.accumulates,
    )


def _kept(layer: nn.Module, dtype: int, narrow: int, joins: bool = False) -> float:
    """Bytes that one repeated layer keeps of each of its tokens.

    Args:
        joins: an expert's layer. Its keys and values are counted with those of the prompt, its norms' modulation is one
            for a draw, and its gates keep what they multiply.
    """
    width = _width(layer)
    modules = {name: module for path, module in layer.named_modules() if (name := _without_peft(path)) is not None}
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    kept = 0.0
    for name, module in linears.items():
        last = name.rpartition(".")[2]
        if last in _BACK:  # what comes in, and the stream that it is added to, which the next norm keeps
            kept += module.in_features * narrow + width * dtype + joins * width * narrow
        elif not joins or last not in ("k_proj", "v_proj", "dense"):
            kept += module.out_features * narrow
        if last in _GATES:  # activated, beside the product that goes down
            kept += linears[name.replace(last, "down_proj")].in_features * narrow
    for name, module in modules.items():
        if "norm" in type(module).__name__.lower():
            of_heads = linears.get(name.replace("_norm", "_proj"))  # of queries or keys
            size = width if of_heads is None else of_heads.out_features
            kept += size * (narrow if isinstance(module, nn.LayerNorm) else narrow + dtype)
    return kept


def _without_peft(path: str) -> str | None:
    """A module's name as it is without LoRA; None of what does not compute, or keeps nothing of its own."""
    words = path.split(".")
    if COPY_OF_LORA in words or "lora_B" in words:
        return None
    return ".".join(word for word in words if word not in ("base_layer", "modules_to_save", "default"))


# Linear layers whose output is added to the residual stream, and those of a gated MLP's gate, as families call them
_BACK = ("o_proj", "out_proj", "down_proj", "fc2", "linear_fc2", "proj", "c_proj")
_GATES = ("gate_proj", "gate_up_proj")


def _width(layer: nn.Module) -> int:
    """Width of the residual stream: what the layer's first linear layer takes."""
    return next(module.in_features for module in layer.modules() if isinstance(module, nn.Linear))


def _vision_layers(model: KIVLAForActionPrediction, decoder: nn.Module) -> list[nn.Module]:
    of_text = set(decoder.modules())
    return [
        module
        for module in model.vlm.modules()
        if isinstance(module, GradientCheckpointingLayer)
        and module not in of_text
        and any(isinstance(part, nn.Linear) for part in module.modules())
    ]


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


__all__ = ["MemoryPlan", "StepShape", "Training", "plan_memory", "step_shape"]

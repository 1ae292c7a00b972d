"""How much memory a training step needs on each device, by part, worked out from the model's sizes alone.

Weights, gradients and moments are counted. What the forward pass keeps for the backward pass is worked out from the
layers: every linear layer's output is kept by what reads it, a norm keeps what it normalised, attention its queries,
keys, values and output (fused kernels; scores are not kept), the MLP its activation. In mixed precision every linear
layer keeps its own bfloat16 copies of its weight and of what it reads. The peak follows from the order in which the
backward pass frees the one and makes gradients. `python -m benchmarks.memory_plan` compares with measured steps.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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
        wide_attention: attention in float32 all the same, as KIVLA has it on a CPU.
        checkpointing: gradient checkpointing of all repeated layers.
        accumulates: whether gradients of earlier micro-batches wait meanwhile.
        devices: that share out weights, gradients and moments (FSDP2); 1 for one device, and for DDP.
        moments: numbers that the optimiser keeps for each trained one: 2 for AdamW.
    """

    bf16: bool = False
    wide_attention: bool = False
    checkpointing: bool = False
    accumulates: bool = False
    devices: int = 1
    moments: float = 2


@dataclass(frozen=True)
class Part:
    """Bytes of one part of the model that come and go in a step.

    Attributes:
        activations: that wait for its backward pass.
        recomputed: with checkpointing, those of its largest layer while its backward pass runs.
        copies: weights in bfloat16 that its layers multiply with.
        gradients: that its backward pass makes.
    """

    activations: float = 0.0
    recomputed: float = 0.0
    copies: float = 0.0
    gradients: float = 0.0


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device.

    Attributes:
        weights, gradients, moments: that it holds.
        gathered: weights that FSDP has brought together to compute with.
        vision, text, expert: what comes and goes with each part.
        logits: of the learned tokens, with their gradient.
        head: the gradient of the vocabulary's matrix, which exists while activations still wait.
        passing: of a VLM that learns nothing, what its pass holds at its largest layer, and what the expert reads.
        accumulates: whether gradients of earlier micro-batches wait meanwhile.
    """

    weights: float
    gradients: float
    moments: float
    gathered: float
    vision: Part
    text: Part
    expert: Part
    logits: float
    head: float
    passing: float
    accumulates: bool = False

    @property
    def backward(self) -> tuple[Part, Part, Part]:
        """The parts in the order of the backward pass."""
        return self.expert, self.text, self.vision

    @property
    def activations(self) -> float:
        return sum(part.activations for part in self.backward)

    @property
    def copies(self) -> float:
        return self.gathered + sum(part.copies for part in self.backward)

    @property
    def recomputed(self) -> float:
        return max(part.recomputed for part in self.backward)

    def parts(self) -> dict[str, float]:
        """What there is at one time or another, for people."""
        return {
            "weights": self.weights,
            "copies of them, gathered or in bfloat16": self.copies,
            "gradients": self.gradients,
            "moments": self.moments,
            "activations of the vision tower": self.vision.activations,
            "of the text layers": self.text.activations,
            "of the expert": self.expert.activations,
            "of the layer that is computed again": self.recomputed,
            "logits": self.logits,
        }

    @property
    def peak(self) -> float:
        """The most of it at one time.

        The backward pass goes through the expert, the output layer, the text layers and the vision tower; it frees what
        waited for it, and makes gradients.
        """
        most = max(self.passing, self.gradients)
        waiting = self.logits + sum(part.activations + part.copies for part in self.backward)
        made = self.gradients if self.accumulates else 0.0
        for part in self.backward:
            if part is self.text:
                made = min(self.gradients, made + self.head)
                most = max(most, waiting + made)
                waiting -= self.logits
            most = max(most, waiting + made + part.recomputed)
            waiting -= part.activations + part.copies
            made = min(self.gradients, made + part.gradients)
            most = max(most, waiting + made + part.recomputed)
        return self.weights + self.moments + self.gathered + most


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
    numbers = _Numbers.of(dtype, training)
    example, rows = shape.example, shape.batch_size
    tokens = rows * (example.prompt + example.learned)
    decoder = find_text_decoder(model.vlm)
    vocabulary = vocabulary_weights(model)
    learns_text = adapter_size > 0 or _is_trained(model.vlm)
    learns_actions = model.config.flow_loss_weight > 0 and _is_trained(model.expert)
    share = 1 / training.devices

    def part(layers: list[nn.Module], count: float, kept: list[float], whole: Iterable[nn.Module]) -> Part:
        """What comes and goes with layers of which each keeps so much, of so many tokens; and what else is there."""
        stream = _width(layers[0]) * count if layers else 0
        ends = stream * (2 * dtype + numbers.narrow)  # what goes into the first one, and the norm behind the last
        activations, recomputed = ends + sum(kept), 0.0
        if training.checkpointing:
            activations, recomputed = ends + stream * len(layers) * dtype, max(kept, default=0.0)
        linears = {m.weight for top in whole for m in top.modules() if isinstance(m, nn.Linear)}
        copies = sum(weight.numel() for weight in linears) * HALF if training.bf16 and training.devices == 1 else 0
        learned = {p for top in whole for p in top.parameters() if p.requires_grad} - set(vocabulary)
        return Part(activations, recomputed, copies, sum(p.numel() for p in learned) * dtype * share)

    # Text, with keys and values for the expert where layers do not keep them.
    text_layers = decoder_layers(decoder)
    kept = [tokens * _kept(layer, numbers) for layer in text_layers]
    towers = [layer for layer in _vision_layers(model, decoder) if _is_trained(layer)]
    text, vision, head = Part(), Part(), model.get_output_embeddings()
    key_values = rows * example.prompt * key_value_numbers(model.config) * numbers.attention
    if learns_text:
        text = part(text_layers, tokens, kept, [decoder, head])
        if training.checkpointing:
            text = replace(text, activations=text.activations + key_values)
        # Vision: nothing is kept of a tower that rests.
        patches = rows * shape.patches
        vision = part(towers, patches, [patches * _kept(layer, numbers) for layer in towers], towers)
    # Expert: its own tokens, and in every layer keys and values of the prompt once more for each draw.
    draws = rows * example.draws
    of_experts = []
    for layer in cast(list[ExpertLayer], list(model.expert.layers)):
        heads = layer.self_attn
        joined = heads.num_key_value_heads * (heads.key_dim + heads.value_dim) * numbers.attention
        own = example.chunk * _kept(layer, numbers, joins=True)
        of_experts.append(draws * (own + joined * (example.prompt + example.chunk)))
    expert = Part()
    if learns_actions:
        expert = part(list(model.expert.layers), draws * example.chunk, of_experts, [model.expert])
        if not learns_text:
            expert = replace(expert, activations=expert.activations + key_values)

    # The output layer. Its gradient in bfloat16 takes the place of its copy.
    logits = 2 * rows * example.learned * model.vocab_size * numbers.narrow
    size = head.weight.numel()
    of_head = size * dtype * share if any(p.requires_grad for p in vocabulary) else 0.0
    # FSDP gathers two layers, and what is in none; and has that gradient whole, before it is shared out.
    gathered = 0.0
    if training.devices > 1:
        largest = max(_size(layer) for layer in (*text_layers, *model.expert.layers))
        gathered = (2 * largest + sum(p.numel() for p in vocabulary)) * numbers.narrow
        gathered += size * (dtype + HALF * training.bf16) if of_head else 0
    return MemoryPlan(
        weights=held * dtype * share,
        gradients=trained * dtype * share,
        moments=trained * dtype * training.moments * share,
        gathered=gathered,
        vision=vision,
        text=text,
        expert=expert,
        logits=logits if learns_text else 0.0,
        head=of_head,
        passing=0.0 if learns_text else key_values + max(*kept, size * HALF * training.bf16),
        accumulates=training.accumulates,
    )


@dataclass(frozen=True)
class _Numbers:
    """Bytes of a number: of the residual stream, in layers, and in attention.

    Attributes:
        casts: whether every layer makes its own narrow copy of what it reads, as autocast does.
    """

    stream: int
    narrow: int
    attention: int
    casts: bool

    @classmethod
    def of(cls, dtype: int, training: Training) -> "_Numbers":
        narrow = HALF if training.bf16 else dtype
        return cls(dtype, narrow, FLOAT if training.wide_attention else narrow, narrow < dtype)


def _kept(layer: nn.Module, numbers: _Numbers, joins: bool = False) -> float:
    """Bytes that one repeated layer keeps of each of its tokens.

    Args:
        joins: an expert's layer. Its keys and values are counted with those of the prompt, its norms' modulation is one
            for a draw, and its gates keep what they multiply.
    """
    width, narrow = _width(layer), numbers.narrow
    modules = {name: module for path, module in layer.named_modules() if (name := _without_peft(path)) is not None}
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    kept = 0.0
    for name, module in linears.items():
        last = name.rpartition(".")[2]
        attends = "attn" in name or "attention" in name
        if last in _BACK:  # what comes in, and the stream that it is added to, which the next norm keeps
            kept += module.in_features * narrow + width * numbers.stream + joins * width * narrow
            if attends and numbers.attention > narrow:
                kept += module.in_features * numbers.attention
            continue
        if not joins or last not in ("k_proj", "v_proj", "dense"):
            kept += module.out_features * (numbers.attention if attends else narrow)
        if numbers.casts and last != "dense":
            kept += module.in_features * narrow
        if last in _GATES:  # activated, beside the product that goes down
            kept += linears[name.replace(last, "down_proj")].in_features * narrow
    for name, module in modules.items():
        if "norm" in type(module).__name__.lower():
            of_heads = linears.get(name.replace("_norm", "_proj"))  # of queries or keys
            size = width if of_heads is None else of_heads.out_features
            given = 0 if numbers.casts and of_heads is None else narrow  # else each layer behind it has its copy
            kept += size * (given if isinstance(module, nn.LayerNorm) else given + numbers.stream)
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

"""Is the memory of a training step what `kivla train` plans? And what would VLMs at their published sizes need?

python -m benchmarks.memory_plan              # three steps measured here, beside their plans
python -m benchmarks.memory_plan published    # by arithmetic alone: VLMs at published sizes, for docs/costs.md

What is measured: all tensors that exist at the peak of a step of AdamW, after a first one that made the moments; on the
CPU in float32, with attention whose kernel keeps no scores (as many key/value heads as heads, no mask). What is not
measured here: bfloat16, FSDP2 and GPUs, and what an allocator keeps beside tensors.
"""

import argparse
from dataclasses import dataclass, replace
from functools import partial

import torch
from tqdm import tqdm
from transformers import LlavaConfig

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from kivla.training.memory_plan import MemoryPlan, StepShape, Training, plan_memory
from kivla.training.model_size import ExampleShape, build_without_memory
from kivla.training.parts import freeze_vision, vocabulary_weights

from .expert_cost import SHAPE, published_config
from .timing import peak_memory

IMAGE_TOKEN, ACTION_DIM = 4, 14


@dataclass(frozen=True)
class Size:
    """A LLaVA and an expert: width, layers, vocabulary; pictures of `image` pixels in patches of 14."""

    width: int
    layers: int
    vocabulary: int
    image: int
    draws: int = 4
    batch_size: int = 4

    @property
    def shape(self) -> StepShape:
        patches = (self.image // 14) ** 2
        return StepShape(ExampleShape(patches + 24, 16, 16, self.draws), self.batch_size, patches)


TINY = Size(64, 2, 512, 56)
SIZES = (Size(256, 4, 4096, 112), Size(384, 6, 8192, 112, draws=1), Size(512, 4, 32768, 168, batch_size=2))


def build(size: Size) -> KIVLAForActionPrediction:
    heads = {"num_attention_heads": 8, "hidden_size": size.width}
    text = {"model_type": "llama", **heads, "num_hidden_layers": size.layers, "intermediate_size": 3 * size.width}
    vision = {"model_type": "clip_vision_model", "num_attention_heads": 8, "hidden_size": size.width // 2}
    vision |= {"num_hidden_layers": 2, "intermediate_size": 2 * size.width, "image_size": size.image, "patch_size": 14}
    config = LlavaConfig(
        text_config={**text, "vocab_size": size.vocabulary, "num_key_value_heads": 8},
        vision_config=vision,
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    expert = {"hidden_size": size.width // 4, "intermediate_size": size.width}
    torch.manual_seed(0)
    return KIVLAForActionPrediction(
        KIVLAConfig(
            vlm_config=config,
            expert_config=expert,
            chunk_size=size.shape.example.chunk,
            max_action_dim=ACTION_DIM,
            num_flow_samples=size.draws,
        )
    ).train()


def batch_of(size: Size) -> dict[str, torch.Tensor]:
    shape, rows = size.shape, size.batch_size
    ids = torch.randint(IMAGE_TOKEN + 1, size.vocabulary, (rows, shape.example.prompt + shape.example.learned))
    ids[:, : shape.patches] = IMAGE_TOKEN
    is_prompt = torch.arange(ids.shape[1]) < shape.example.prompt
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(is_prompt, -100),
        "pixel_values": torch.randn(rows, 3, size.image, size.image),
        "actions": torch.randn(rows, shape.example.chunk, ACTION_DIM),
        "expert_attention_mask": is_prompt.expand(rows, -1),
    }


def measure(size: Size, checkpointing: bool) -> tuple[MemoryPlan, float]:
    """What is planned for a step, and the bytes that it takes."""
    model = build(size)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = batch_of(size)
    step = partial(_step, model, optimizer, batch)
    step()
    optimizer.zero_grad()
    held = sum(p.nbytes for p in model.parameters())
    moments = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim)
    return plan_memory(model, size.shape, Training(checkpointing=checkpointing)), held + moments + peak_memory(step)


def _step(model: KIVLAForActionPrediction, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> None:
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def compare(sizes: tuple[Size, ...]) -> str:
    lines = [
        "| VLM and expert | checkpointing | weights | gradients | moments | activations | logits "
        "| planned | measured | planned / measured |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for size in sizes:
        for checkpointing in (False, True):
            plan, measured = measure(size, checkpointing)
            name = f"{size.layers} layers of {size.width}, {size.vocabulary:,} tokens, {size.draws} draws"
            parts = (plan.weights, plan.gradients, plan.moments, plan.activations + plan.recomputed)
            parts += (plan.logits, plan.peak, measured)
            cells = [name, "yes" if checkpointing else "no", *(f"{part / 1e6:,.1f} MB" for part in parts)]
            lines.append("| " + " | ".join([*cells, f"{plan.peak / measured:.3f}"]) + " |")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------- at published sizes
# Patches of the two cameras' pictures, in the vision tower
PATCHES = {
    "SmolVLM-256M": 2 * 1024,
    "SmolVLM-500M": 2 * 1024,
    "SmolVLM2-2.2B": 2 * 729,
    "PaliGemma 2 3B": 2 * 256,
    "Qwen3-VL-2B": 4 * 2 * 256,
    "Qwen3-VL-4B": 4 * 2 * 256,
    "Qwen3-VL-8B": 4 * 2 * 256,
}
CARDS = (24e9, 80e9)
LORA_RANK = 16
USABLE = 0.92  # of a card: its context, and what the allocator keeps beside tensors


def make_table() -> str:
    """Per GPU for a micro-batch of 8: bfloat16, gradient checkpointing, AdamW; two cameras, four noise draws."""
    lines = [
        "| VLM | full | weights, gradients, moments | activations, a layer anew, logits "
        "| frozen vision | LoRA | FSDP2 x 2, 4, 8 | in 24 GB | in 80 GB |",
        "|---|--:|--:|--:|--:|--:|--:|---|---|",
        *(_row(name) for name in tqdm(PATCHES, desc="VLMs", leave=False)),
    ]
    return "\n".join(lines)


def _row(name: str) -> str:
    config = KIVLAConfig(vlm_config=published_config(name), chunk_size=SHAPE.chunk, state_encoding="none")
    model = build_without_memory(config)
    shape = StepShape(SHAPE, batch_size=8, patches=PATCHES[name])
    way = Training(bf16=True, checkpointing=True)
    full = plan_memory(model, shape, way)
    plans = {"full": full}
    shared = {n: plan_memory(model, shape, replace(way, devices=n)) for n in (2, 4, 8)}
    freeze_vision(model)
    plans["frozen vision"] = plan_memory(model, shape, way)
    model.vlm.requires_grad_(False)
    linears = [m for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
    adapter = LORA_RANK * sum(m.in_features + m.out_features for m in linears)
    assert not any(weight.requires_grad for weight in vocabulary_weights(model))
    plans["LoRA"] = plan_memory(model, shape, way, adapter_size=adapter)
    plans |= {f"x {n}": plan for n, plan in shared.items()}
    gb = {way: f"{plan.peak / 1e9:.0f}" for way, plan in plans.items()}
    fits = []
    for card in CARDS:
        ways = [way for way, plan in plans.items() if plan.peak < card * USABLE]
        fits.append("all" if len(ways) == len(plans) else ", ".join(ways) or "none")
    states = f"{full.weights / 1e9:.0f}, {full.gradients / 1e9:.0f}, {full.moments / 1e9:.0f}"
    cells = [
        name,
        gb["full"],
        states,
        f"{full.activations / 1e9:.1f}, {full.recomputed / 1e9:.1f}, {full.logits / 1e9:.1f}",
    ]
    cells += [gb["frozen vision"], gb["LoRA"], ", ".join(gb[f"x {n}"] for n in shared), *fits]
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_plan", description=__doc__.split("\n")[0])
    ways = ("measured", "published")
    parser.add_argument("which", nargs="?", choices=ways, default=ways[0], help="sizes: those that are measured here")
    options = parser.parse_args(arguments)
    print(make_table() if options.which == "published" else compare(SIZES))


if __name__ == "__main__":
    main()

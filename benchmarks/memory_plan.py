"""Is the memory of a training step what `kivla train` plans? And what would VLMs at their published sizes need?

python -m benchmarks.memory_plan              # steps of three sizes in five ways, measured beside their plans
python -m benchmarks.memory_plan gpu          # the plan of what `python -m benchmarks.gpu` measures
python -m benchmarks.memory_plan published    # by arithmetic alone: VLMs at published sizes, for docs/costs.md

What is measured: all tensors that exist at the peak of a step of AdamW, after a first one that made the moments; on the
CPU, with attention whose kernel keeps no scores (as many key/value heads as heads, no mask), and which computes in
float32 in mixed precision too. What is not measured here: FSDP2 and GPUs, and what an allocator keeps beside tensors.
"""

import argparse
from dataclasses import dataclass, replace
from functools import partial

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from tqdm import tqdm
from transformers import LlavaConfig

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from kivla.training.memory_plan import MemoryPlan, StepShape, Training, plan_memory
from kivla.training.model_size import ExampleShape, build_without_memory
from kivla.training.parts import freeze_vision, vocabulary_weights

from . import gpu
from .expert_cost import SHAPE, published_config
from .policies import policy
from .timing import peak_memory

IMAGE_TOKEN, ACTION_DIM = 4, 14


@dataclass(frozen=True)
class Size:
    """A LLaVA and an expert: width, layers, vocabulary; pictures of `image` pixels in patches of 14.

    If `shares`, embedding and output layer are one matrix.
    """

    width: int
    layers: int
    vocabulary: int
    image: int
    draws: int = 4
    batch_size: int = 4
    shares: bool = False

    @property
    def shape(self) -> StepShape:
        patches = (self.image // 14) ** 2
        return StepShape(ExampleShape(patches + 24, 16, 16, self.draws), self.batch_size, patches)


TINY = Size(64, 2, 512, 56)
SIZES = (
    Size(256, 4, 4096, 112),
    Size(384, 6, 8192, 112, draws=1),
    Size(512, 4, 32768, 168, batch_size=8, shares=True),
)


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
        tie_word_embeddings=size.shares,
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


WAYS = ("all weights", "mixed precision", "LoRA", "frozen VLM", "tokens alone")


def measure(size: Size, checkpointing: bool, way: str = WAYS[0]) -> tuple[MemoryPlan, float]:
    """What is planned for a step, and the bytes that it takes."""
    whole, batch, shape = build(size), batch_of(size), size.shape
    model: nn.Module = whole
    if way == "frozen VLM":  # which has nothing to learn, so that no token is a response
        whole.vlm.requires_grad_(False)
        length = batch.pop("labels").shape[1]
        shape = replace(shape, example=replace(shape.example, prompt=length, learned=0))
    elif way == "tokens alone":
        whole.config.flow_loss_weight = 0.0
        whole.expert.requires_grad_(False)
    elif way == "LoRA":
        model = with_lora(whole)
    if checkpointing:
        whole.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    bf16 = way == "mixed precision"
    step = partial(_step, model.train(), optimizer, batch, bf16)
    step()
    held = sum(p.nbytes for p in model.parameters())
    moments = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim)
    training = Training(checkpointing=checkpointing, bf16=bf16, wide_attention=bf16)
    plan = plan_memory(whole, shape, training, model.parameters())
    return plan, held + moments + peak_memory(step)


def with_lora(model: KIVLAForActionPrediction, rank: int = 8) -> nn.Module:
    """Adapters in the text layers; the expert is trained in full."""
    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    layers = [f"{path}.{name}" for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    experts = [f"expert.{name}" for name, module in model.expert.named_modules() if isinstance(module, nn.Linear)]
    return get_peft_model(model, LoraConfig(r=rank, target_modules=layers, modules_to_save=experts))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def compare(sizes: tuple[Size, ...], ways: tuple[str, ...] = WAYS) -> str:
    lines = [
        "| VLM and expert | learns | planned, measured | planned / measured | checkpointed: planned, measured "
        "| planned / measured |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for size in sizes:
        for way in tqdm(ways, desc=f"{size.layers} layers", leave=False):
            shape = f"{size.layers} layers of {size.width}, {size.vocabulary:,} tokens"
            cells = [f"{shape}, batch {size.batch_size}, draws: {size.draws}", way]
            for checkpointing in (False, True):
                plan, measured = measure(size, checkpointing, way)
                cells += [f"{plan.peak / 1e6:,.1f}, {measured / 1e6:,.1f} MB", f"{plan.peak / measured:.3f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plan_for_gpu() -> str:
    """What is planned for the steps of `benchmarks.gpu`; what they took stands in gpu.md."""
    with torch.device("meta"):
        model = policy(gpu.PI05, torch.bfloat16)
    lines = ["| insulated | gradient checkpointing | planned |", "|---|---|--:|"]
    for checkpointing in (False, True):
        for draws in gpu.DRAWS:
            model.config.num_flow_samples = draws
            planned = gpu.planned_bytes(model, gpu.PI05, checkpointing)
            lines.append(f"| {draws} draws | {'yes' if checkpointing else 'no'} | {planned / 1e9:.1f} GB |")
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
    tables = {"measured": partial(compare, SIZES), "gpu": plan_for_gpu, "published": make_table}
    parser.add_argument("which", nargs="?", choices=tables, default="measured", help="sizes: those measured here")
    print(tables[parser.parse_args(arguments).which]())


if __name__ == "__main__":
    main()

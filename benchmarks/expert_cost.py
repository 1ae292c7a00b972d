"""What does the action expert cost beside VLMs at their published sizes, and which one keeps to a tenth of them?

python -m benchmarks.expert_cost            # prints the table
python -m benchmarks.expert_cost --write    # and puts it into docs/costs.md

By arithmetic: every VLM is built on the meta device from the sizes in its published `config.json`, and no weight is
needed. `kivla inspect MODEL` says the same of one VLM.
"""

import argparse
from pathlib import Path

from tqdm import tqdm
from transformers import AutoConfig, PreTrainedConfig

from kivla.modeling_kivla import KIVLAConfig
from kivla.training.model_size import (
    ExampleShape,
    build_without_memory,
    expert_shares,
    key_value_numbers,
    part_sizes,
    suggest_expert,
)

PAGE = Path(__file__).parents[1] / "docs" / "costs.md"
START, END = (
    "<!-- expert cost: written by `python -m benchmarks.expert_cost --write` -->",
    "<!-- end of expert cost -->",
)
# Two cameras of 256 tokens and an instruction; FAST tokens; chunks of π0.5; the noise draws of `kivla train`.
SHAPE = ExampleShape(prompt=600, learned=40, chunk=50, draws=4)
MAX_PARAMETER_SHARE, MAX_STEP_SHARE = 0.10, 0.15


def sizes(**named) -> dict:
    """The sizes of one part, by their names in its config."""
    return named


SIGLIP_SO400M = sizes(hidden_size=1152, num_hidden_layers=27, num_attention_heads=16, intermediate_size=4304)
SIGLIP_BASE = sizes(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)


def decoder(hidden, layers, heads, kv_heads, intermediate, vocabulary, **more) -> dict:
    """The sizes of a text decoder as most configs call them."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    values = (hidden, layers, heads, kv_heads, intermediate)
    return {**dict(zip(names, values, strict=True)), "vocab_size": vocabulary, **more}


# Each VLM with its text decoder's sizes, those of its vision tower, and what else its config says.
PUBLISHED: dict[str, dict] = {
    "SmolVLM-256M": sizes(
        model_type="smolvlm",
        text_config=decoder(576, 30, 9, 3, 1536, 49280, model_type="llama", head_dim=64, tie_word_embeddings=False),
        vision_config=SIGLIP_BASE,
        scale_factor=4,
        tie_word_embeddings=False,
    ),
    "SmolVLM-500M": sizes(
        model_type="smolvlm",
        text_config=decoder(960, 32, 15, 5, 2560, 49280, model_type="llama", head_dim=64, tie_word_embeddings=False),
        vision_config=SIGLIP_BASE,
        scale_factor=4,
        tie_word_embeddings=False,
    ),
    "SmolVLM2-2.2B": sizes(
        model_type="smolvlm",
        text_config=decoder(2048, 24, 32, 32, 8192, 49280, model_type="llama", head_dim=64, tie_word_embeddings=False),
        vision_config=SIGLIP_SO400M,
        scale_factor=3,
        tie_word_embeddings=False,
    ),
    "InternVL3-2B": sizes(
        model_type="internvl",
        text_config=decoder(1536, 28, 12, 2, 8960, 151674, model_type="qwen2", tie_word_embeddings=False),
        vision_config=sizes(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
        tie_word_embeddings=False,
    ),
    "Qwen3-VL-2B": sizes(
        model_type="qwen3_vl",
        text_config=decoder(2048, 28, 16, 8, 6144, 151936, head_dim=128, tie_word_embeddings=True),
        vision_config=sizes(depth=24, hidden_size=1024, intermediate_size=4096, out_hidden_size=2048),
        tie_word_embeddings=True,
    ),
    "PaliGemma 2 3B": sizes(
        model_type="paligemma",
        text_config=decoder(2304, 26, 8, 4, 9216, 257216, model_type="gemma2", head_dim=256),
        vision_config=sizes(model_type="siglip_vision_model", patch_size=14, image_size=224, **SIGLIP_SO400M),
        projection_dim=2304,
    ),
    "Gemma 3 4B": sizes(
        model_type="gemma3",
        text_config=decoder(2560, 34, 8, 4, 10240, 262208, head_dim=256, sliding_window=1024),
        vision_config=sizes(patch_size=14, image_size=896, **SIGLIP_SO400M),
    ),
    "Qwen3-VL-4B": sizes(
        model_type="qwen3_vl",
        text_config=decoder(2560, 36, 32, 8, 9728, 151936, head_dim=128, tie_word_embeddings=True),
        vision_config=sizes(depth=24, hidden_size=1024, intermediate_size=4096, out_hidden_size=2560),
        tie_word_embeddings=True,
    ),
    "LLaVA-1.5-7B": sizes(
        model_type="llava",
        text_config=decoder(4096, 32, 32, 32, 11008, 32064, model_type="llama"),
        vision_config=sizes(
            model_type="clip_vision_model",
            **sizes(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
            **sizes(image_size=336, patch_size=14),
        ),
    ),
    "Qwen2.5-VL-7B": sizes(
        model_type="qwen2_5_vl",
        text_config=decoder(3584, 28, 28, 4, 18944, 152064, tie_word_embeddings=False),
        vision_config=sizes(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584),
        tie_word_embeddings=False,
    ),
    "Qwen3-VL-8B": sizes(
        model_type="qwen3_vl",
        text_config=decoder(4096, 36, 32, 8, 12288, 151936, head_dim=128, tie_word_embeddings=False),
        vision_config=sizes(
            **sizes(depth=27, hidden_size=1152, intermediate_size=4304, out_hidden_size=4096),
            deepstack_visual_indexes=[8, 16, 24],
        ),
        tie_word_embeddings=False,
    ),
    "GLM-4.1V-9B": sizes(
        model_type="glm4v",
        text_config=decoder(
            *(4096, 40, 32, 2, 13696, 151552),
            rope_parameters=sizes(
                rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5, mrope_section=[8, 12, 12]
            ),
            tie_word_embeddings=False,
        ),
        vision_config=sizes(depth=24, hidden_size=1536, intermediate_size=13696, out_hidden_size=4096),
        tie_word_embeddings=False,
    ),
    "Qwen3-VL-30B-A3B": sizes(
        model_type="qwen3_vl_moe",
        text_config=decoder(
            *(2048, 48, 32, 4, 6144, 151936),
            **sizes(head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768),
            tie_word_embeddings=False,
        ),
        vision_config=sizes(
            **sizes(depth=27, hidden_size=1152, intermediate_size=4304, out_hidden_size=2048),
            deepstack_visual_indexes=[8, 16, 24],
        ),
        tie_word_embeddings=False,
    ),
    "Kimi-K2.5": sizes(
        model_type="kimi_k25",
        text_config=decoder(
            *(7168, 61, 64, 64, 18432, 163840),
            **sizes(model_type="deepseek_v3", n_routed_experts=384, num_experts_per_tok=8, moe_intermediate_size=2048),
            **sizes(n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=1536, kv_lora_rank=512),
            **sizes(qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, tie_word_embeddings=False),
        ),
    ),
}


def published_config(name: str) -> PreTrainedConfig:
    return AutoConfig.for_model(**PUBLISHED[name])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.expert_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/costs.md")
    options = parser.parse_args(arguments)
    table = make_table()
    print(table)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(START)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{START}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def make_table() -> str:
    """One row for each VLM: what the default expert costs, and one that keeps to the budget."""
    lines = [
        "| VLM | parameters | layers | key/value heads | read of a token, in bfloat16 "
        "| default: of the VLM, of a step | within 10 %, 15 %: width, every k-th layer | of the VLM, of a step |",
        "|---|--:|--:|---|--:|--:|--:|--:|",
        *(_row(name) for name in tqdm(PUBLISHED, desc="VLMs", leave=False)),
    ]
    return "\n".join(lines)


def _row(name: str) -> str:
    config = KIVLAConfig(vlm_config=published_config(name), chunk_size=SHAPE.chunk, state_encoding="none")
    model = build_without_memory(config)
    vlm = sum(size for part, size in part_sizes(model).items() if part != "expert")
    layer = config.kv_layers[-1]
    keys = f"{layer['num_key_value_heads']} x ({layer['key_dim']} + {layer['value_dim']})"
    one = suggest_expert(config, SHAPE, MAX_PARAMETER_SHARE, MAX_STEP_SHARE)
    cells = [
        name,
        f"{vlm / 1e9:.2f}B",
        f"{len(config.kv_layers)}",
        keys,
        f"{key_value_numbers(config) * 2 / 1e3:,.0f} kB",
        "{:.1%}, {:.1%}".format(*expert_shares(model, SHAPE)),
        "-" if one is None else f"{one.hidden_size}, {one.layer_stride}",
        "-" if one is None else f"{one.parameter_share:.1%}, {one.step_share:.1%}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

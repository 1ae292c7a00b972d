"""What a VLM's text decoder does that an action expert must cope with, in words."""

from collections.abc import Iterator

from transformers import PreTrainedConfig

# Numbers in a text config that say so by being more than zero
_COUNTS = {
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "latent attention": ("kv_lora_rank",),
    "sparse attention": ("index_topk", "index_topk_blocks", "indexer_budget"),
    "shared keys": ("num_kv_shared_layers",),
    "inputs for each layer": ("hidden_size_per_layer_input",),
}


def mechanisms(config: PreTrainedConfig, kv_layers: list[dict]) -> set[str]:
    """The mechanisms of a VLM by its config and by what `probe_backbone` measures of it.

    Sizes and numbers of layers do not count, so a tiny model of a family can have the mechanisms of a large one.
    """
    text = config.get_text_config()
    fields = vars(text)  # asked by name, a config whose layers differ would insist on a layer
    found = {f"rope: {layer['rope']}" for layer in kv_layers}
    sizes = {tuple(layer[n] for n in ("num_attention_heads", "num_key_value_heads", "key_dim")) for layer in kv_layers}
    layer_types = set(fields.get("layer_types") or ())
    rope = list(_dicts(fields.get("rope_parameters")))
    facts = {
        "no rotary embedding": all(layer["rope"] is None for layer in kv_layers),
        "rotary part last": any(layer["rope_start"] for layer in kv_layers),
        "frequencies in another order": any(layer["rope_order"] for layer in kv_layers),
        "part of a head turns": any(r.get("partial_rotary_factor", 1.0) < 1.0 for r in rope),
        "M-RoPE": any("mrope_section" in r for r in rope),
        "frequencies by layer": len({layer["inv_freq"] for layer in kv_layers} - {None}) > 1,
        "heads by layer": len(sizes) > 1,
        "values of another size": any(layer["key_dim"] != layer["value_dim"] for layer in kv_layers),
        "layers without keys": len(kv_layers) < text.num_hidden_layers,
        "windows": any("sliding" in kind for kind in layer_types),
        "chunks": any("chunked" in kind for kind in layer_types),
        "both directions": bool(fields.get("use_bidirectional_attention")),
    }
    for name, counts in _COUNTS.items():
        facts[name] = any((fields.get(count) or 0) > 0 for count in counts)
    return found | {name for name, holds in facts.items() if holds}


def _dicts(value) -> Iterator[dict]:
    """A dict and all dicts in it."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _dicts(inner)

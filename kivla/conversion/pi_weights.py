"""Names and sizes of π0 and π0.5 weights, as openpi, LeRobot, transformers and KIVLA write them.

Everything here works on names and shapes alone. What a checkpoint is (layout; π0 or π0.5) is told by its keys, never by
the name of its folder.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .weight_files import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

EMBEDDING = "vlm.model.language_model.embed_tokens.weight"
OUTPUT_LAYER = "vlm.lm_head.weight"
_TIED = "equal to embed_tokens: one matrix for input and output"

# The first pattern that matches the beginning of a name decides.
_PI = r"(?:model\.)?paligemma_with_expert\."
_PALIGEMMA = _PI + r"paligemma\."
_HEADS = r"(action_in_proj|action_out_proj|state_proj|(?:action_)?time_mlp_(?:in|out))\."
_RENAME = (
    (_PALIGEMMA + r"(?:language_model\.)?lm_head\.", r"vlm.lm_head."),
    (_PALIGEMMA + r"(?:model\.)?vision_tower\.(?:vision_model\.)?", r"vlm.model.vision_tower."),
    (_PALIGEMMA + r"(?:model\.)?multi_modal_projector\.", r"vlm.model.multi_modal_projector."),
    (_PALIGEMMA + r"(?:model\.)?language_model\.(?:model\.)?", r"vlm.model.language_model."),
    (_PI + r"gemma_expert\.model\.(layers|norm)\.", r"expert.\1."),
    (r"model\.vlm\.vision_tower\.(?:vision_model\.)?", r"vlm.model.vision_tower."),
    (r"model\.vlm\.(multi_modal_projector|language_model)\.", r"vlm.model.\1."),
    (r"model\.dit\.(layers|norm)\.", r"expert.\1."),
    (r"embed_action_time\." + _HEADS, r"expert.\1."),
    (r"(?:model\.)?" + _HEADS, r"expert.\1."),
    (r"vlm\.model\.vision_tower\.(?:vision_model\.)?", r"vlm.model.vision_tower."),
    (r"(vlm|expert)\.", r"\1."),
)
_UNUSED = re.compile(_PI + r"gemma_expert\.(?:lm_head|model\.embed_tokens)\.weight$|model\.dit\.embed_tokens\.weight$")
_UNUSED_REASON = "the action expert's own vocabulary: nothing reads it (openpi leaves it random)"
# LeRobot reads strictly, and has the expert's vocabulary although nothing reads it
LEROBOT_UNUSED = "model.paligemma_with_expert.gemma_expert.lm_head.weight"
_TO_LEROBOT = (
    (r"vlm\.model\.vision_tower\.", "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model."),
    (r"vlm\.", "model.paligemma_with_expert.paligemma."),
    (r"expert\.(layers|norm)\.", r"model.paligemma_with_expert.gemma_expert.model.\1."),
    (r"expert\.", "model."),
)
_OLD_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
_LAYOUTS = {
    "LeRobot": "model.paligemma_with_expert.",
    "openpi": "paligemma_with_expert.",
    "transformers": "model.vlm.",
    "KIVLA": "vlm.",
}


@dataclass
class Sizes:
    """What the shapes tell. `variant` is "pi0" or "pi05"; `state_dim` is None for π0.5, which has no state weights."""

    variant: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    query_width: int
    key_width: int
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_num_layers: int
    image_size: int
    patch_size: int
    expert_hidden_size: int
    expert_intermediate_size: int
    action_dim: int
    state_dim: int | None


@dataclass
class Plan:
    """Attributes:
    sources: name in the model -> name in the checkpoint.
    dropped: name in the checkpoint -> why nothing is lost without it.
    is_tied: whether one matrix is both embedding and output layer.
    """

    sources: dict[str, str]
    dropped: dict[str, str]
    is_tied: bool


def detect_layout(names) -> str:
    """ "LeRobot", "openpi", "transformers" or "KIVLA".

    Raises:
        CheckpointError: none of them, or a mixture.
    """
    found = [layout for layout, prefix in _LAYOUTS.items() if any(name.startswith(prefix) for name in names)]
    if len(found) == 1:
        return found[0]
    given = f"a mixture of {' and '.join(found)}" if found else f"none of them; it has {_some(names)}"
    raise CheckpointError(
        f"The checkpoint should be of one layout ({', '.join(_LAYOUTS)}), but it is {given}. Give a PyTorch checkpoint "
        "of π0 or π0.5 (JAX ones are converted by openpi's own script first)."
    )


def kivla_name(name: str) -> str | None:
    """The name of a weight in KIVLA, without the level `vision_model.`; None if no rule knows it."""
    return _renamed(name, _RENAME)


def lerobot_name(name: str) -> str:
    """The name that LeRobot's files have for a weight of KIVLA."""
    return _renamed(kivla_name(name), _TO_LEROBOT)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in rules:
        if match := re.match(pattern, name):
            return match.expand(replacement) + name[match.end() :]
    return None


def plan(names, same: Callable[[str, str], bool], keep_untied: bool = False) -> Plan:
    """Which weight becomes what.

    Args:
        names: of the checkpoint.
        same: whether two weights of the checkpoint are equal; asked only where there are an embedding and an output
            layer.
        keep_untied: keep both where they differ.

    Raises:
        CheckpointError: names without a rule, two names for one weight, two different matrices where there should be
            one.
    """
    sources, dropped, unexpected, doubled = {}, {}, [], []
    for name in names:
        target = kivla_name(name)
        if _UNUSED.match(name):
            dropped[name] = _UNUSED_REASON
        elif target is None:
            unexpected.append(name)
        elif target in sources:
            doubled.append(f"{sources[target]} and {name}")
        else:
            sources[target] = name
    if doubled:
        raise CheckpointError(f"{len(doubled)} weights are there twice, under two names: {_some(doubled)}.")
    if unexpected:
        is_old = any(name.startswith(_OLD_STATISTICS) for name in unexpected)
        raise CheckpointError(
            f"The checkpoint has {len(unexpected)} unexpected keys: {_some(unexpected)}."
            + (" It is of an early LeRobot: run LeRobot's migrate_policy_normalization.py on it first." * is_old)
        )
    return Plan(sources, dropped, _tie(sources, dropped, same, keep_untied))


def _tie(sources: dict[str, str], dropped: dict[str, str], same: Callable, keep_untied: bool) -> bool:
    if OUTPUT_LAYER not in sources:
        return True
    output = sources[OUTPUT_LAYER]
    if EMBEDDING not in sources:
        sources[EMBEDDING] = sources.pop(OUTPUT_LAYER)
        return True
    if same(sources[EMBEDDING], output):
        dropped[output] = _TIED
        del sources[OUTPUT_LAYER]
        return True
    if keep_untied:
        return False
    raise CheckpointError(
        f"The checkpoint has two different matrices {sources[EMBEDDING]} and {output}, which are one in PaliGemma. "
        "LeRobot trains them apart and reads its inputs from embed_tokens. Keep both with --keep_untied."
    )


def check(sources: Mapping[str, str], shapes: Shapes, expected: Shapes) -> None:
    """The planned weights are exactly those that the model expects, shapes included.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen keys.
    """
    found = {target: tuple(shapes[source]) for target, source in sources.items()}
    missing = [name for name in expected if name not in found]
    unexpected = [sources[name] for name in found if name not in expected]
    misshapen = [
        f"{sources[name]} is {shape}, expected {tuple(expected[name])}"
        for name, shape in found.items()
        if name in expected and shape != tuple(expected[name])
    ]
    problems = [
        f"{len(keys)} {kind} keys: {_some(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError("The checkpoint does not fit its own sizes. " + "; ".join(problems) + ".")


def read_sizes(shapes: Shapes) -> Sizes:
    """Sizes from the shapes of the weights, named as `plan` names them.

    Raises:
        CheckpointError: a weight that tells a size is missing; it is neither π0 nor π0.5, or both.
    """

    def shape(name: str, ndim: int = 2) -> tuple[int, ...]:
        if name not in shapes:
            raise CheckpointError(f"The checkpoint has no {name} (1 missing key), which tells the size of the model.")
        if len(shapes[name]) != ndim:
            raise CheckpointError(f"{name} is {tuple(shapes[name])}, expected {ndim} dimensions (1 misshapen key).")
        return tuple(shapes[name])

    # How the flow time enters tells π0.5 (adaptive norms) from π0 (beside the action).
    adaptive = "expert.time_mlp_in.weight" in shapes, "expert.layers.0.input_layernorm.dense.weight" in shapes
    concat = "expert.action_time_mlp_in.weight" in shapes, "expert.state_proj.weight" in shapes
    if all(adaptive) == all(concat) or any(adaptive) == any(concat):
        raise CheckpointError(
            "The checkpoint is neither π0 (action_time_mlp_in, state_proj) nor π0.5 (time_mlp_in, "
            f"input_layernorm.dense): found are {_some([n for n in shapes if n.startswith('expert.')])}. "
            "π0-FAST and PaliGemma have no action expert."
        )
    # Every size is a side of some weight; only the number of heads is not (`make_config`).
    text, vision = "vlm.model.language_model.", "vlm.model.vision_tower."
    patches, _ = shape(vision + "embeddings.position_embedding.weight")
    vision_hidden, _, patch, _ = shape(vision + "embeddings.patch_embedding.weight", 4)
    vocab, hidden = shape(EMBEDDING)
    expert_hidden, action_dim = shape("expert.action_in_proj.weight")
    return Sizes(
        variant="pi05" if all(adaptive) else "pi0",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=shape(text + "layers.0.mlp.gate_proj.weight")[0],
        num_layers=_num_layers(shapes, text),
        query_width=shape(text + "layers.0.self_attn.q_proj.weight")[0],
        key_width=shape(text + "layers.0.self_attn.k_proj.weight")[0],
        vision_hidden_size=vision_hidden,
        vision_intermediate_size=shape(vision + "encoder.layers.0.mlp.fc1.weight")[0],
        vision_num_layers=_num_layers(shapes, vision + "encoder."),
        image_size=math.isqrt(patches) * patch,
        patch_size=patch,
        expert_hidden_size=expert_hidden,
        expert_intermediate_size=shape("expert.layers.0.mlp.gate_proj.weight")[0],
        action_dim=action_dim,
        state_dim=shape("expert.state_proj.weight")[1] if all(concat) else None,
    )


def _num_layers(shapes: Shapes, prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"layers\.(\d+)\.")
    return 1 + max(int(match[1]) for name in shapes if (match := pattern.match(name)))


def _some(names, most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
